"""The zero-shot arm: what a backbone answers when it is asked about each finding.

For every finding the model gets the image, then a question, and its language head's next-token
logits are read: `P(yes) / (P(yes) + P(no))`. Nothing is trained.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn
from transformers import ProcessorMixin

from medqua.core.errors import BackboneError, ConfigError, ShapeError
from medqua.core.model.backbone import SHIPPED, TINY, Backbone
from medqua.core.model.classifier import vision_language_model
from medqua.core.vision.processor import build_inputs

PHRASES = {
    "Enlarged Cardiomediastinum": "an enlarged cardiomediastinum",
    "Fracture": "a fracture",
    "Hernia": "a hernia",
    "Lung Lesion": "a lung lesion",
    "Mass": "a mass",
    "No Finding": "a normal appearance without any abnormal finding",
    "Nodule": "a nodule",
    "Pleural Other": "a pleural abnormality other than effusion",
    "Support Devices": "a support device",
}
"""How a question names a label whose own name would make no sentence."""

YES = ("Yes", "yes", " Yes", " yes", "YES")
"""Spellings whose first token counts as yes."""

NO = ("No", "no", " No", " no", "NO")
"""Spellings whose first token counts as no."""

UNTAUGHT = (TINY, SHIPPED)
"""Backbones that never learned to answer a question: their answers are chance."""


class ZeroShotClassifier(nn.Module):
    """A vision-language model that is asked about each finding.

    Called with the inputs of an ordinary batch, as `MedQuaClassifier` is: its image goes before
    each question in turn (the order of Qwen's own examples), so that a forward costs as many passes
    of the backbone as there are findings. The logit of a finding is
    `log sum_yes P(t) - log sum_no P(t)` over the first tokens of the spellings of yes and no, whose
    sigmoid is P(yes) / (P(yes) + P(no)).

    Args:
        backbone: The backbone, its processor included; nothing may be attached to it.
        labels: Names of the findings, in the order of the logits.
        size: Side of the images, in pixels.
        question: Text with `{finding}` where the finding's name belongs.

    Raises:
        ConfigError: No label, or a question without `{finding}`.
        BackboneError: The tokenizer does not tell yes from no, or the processor no image token.
    """

    def __init__(self, backbone: Backbone, labels: Sequence[str], size: int, question: str) -> None:
        super().__init__()
        if not labels:
            raise ConfigError("no label to ask about: needed at least one")
        if "{finding}" not in question:
            raise ConfigError(f"question = {question!r}: needed {{finding}} in it")
        self.model = vision_language_model(backbone.model)
        self.model.requires_grad_(False)
        self.questions = tuple(question.replace("{finding}", phrase(label)) for label in labels)
        self.answers = answer_tokens(backbone)
        blank = [np.zeros((size, size), np.float32)]
        asked = (
            build_inputs(backbone.processor, blank, text, image_first=True)
            for text in self.questions
        )
        self._texts = [_text(inputs) for inputs in asked]
        self._image_token = _image_token_id(backbone.processor)

    def forward(self, **inputs: Tensor) -> Float32[Tensor, "batch labels"]:
        """Ask about one batch of images.

        Args:
            **inputs: What `build_inputs` returned; the text in it is replaced by the questions.

        Returns:
            Logits `[B, L]` float32.

        Raises:
            ShapeError: `input_ids` is missing, or the images are of another size.
        """
        if "input_ids" not in inputs:
            raise ShapeError("no input_ids among the inputs: make them with build_inputs")
        ids = inputs["input_ids"]
        own = _text(inputs)
        images = {name: tensor for name, tensor in inputs.items() if name not in own}
        yes, no = (torch.tensor(tokens, device=ids.device) for tokens in self.answers)
        columns = []
        for text in self._texts:
            rows = {name: tensor.to(ids.device) for name, tensor in text.items()}
            self._check_images(ids, rows["input_ids"])
            rows = {name: tensor.expand(len(ids), -1) for name, tensor in rows.items()}
            answer = self.model(**images, **rows, use_cache=False, logits_to_keep=1).logits
            spoken = answer[:, -1].float()  # [B, vocabulary]
            columns.append(spoken[:, yes].logsumexp(-1) - spoken[:, no].logsumexp(-1))
        return torch.stack(columns, 1)

    def _check_images(self, given: Tensor, own: Tensor) -> None:
        theirs = int((given[0] == self._image_token).sum())
        ours = int((own[0] == self._image_token).sum())
        if theirs != ours:
            raise ShapeError(
                f"images of {theirs} visual tokens for questions made for {ours}: give images of "
                "the size that this classifier was made for"
            )


def _image_token_id(processor: ProcessorMixin) -> int:
    """The id that stands for a piece of an image, as the processor puts it into `input_ids`."""
    token = getattr(processor, "image_token_id", None)
    if not isinstance(token, int):
        raise BackboneError(
            f"{type(processor).__name__} tells image_token_id = {token}, so that visual tokens "
            "cannot be counted; needed a processor that names it, such as Qwen2.5-VL's"
        )
    return token


def phrase(label: str) -> str:
    """What a question calls a label: lower case, and with an article where it needs one."""
    return PHRASES.get(label, label.replace("_", " ").lower())


def answer_tokens(backbone: Backbone) -> tuple[list[int], list[int]]:
    """First tokens of the spellings of yes and of no; those that begin both are left out.

    Raises:
        BackboneError: No token begins the one and not the other.
    """
    yes, no = _first(backbone, YES), _first(backbone, NO)
    if not yes - no or not no - yes:
        raise BackboneError(
            f"the tokenizer of {backbone.source!r} begins yes and no by the same tokens: its "
            "next-token logits tell no answer"
        )
    return sorted(yes - no), sorted(no - yes)


def _first(backbone: Backbone, spellings: Iterable[str]) -> set[int]:
    tokenizer = backbone.processor.tokenizer
    found = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in spellings)
    return {int(ids[0]) for ids in found if len(ids)}


def _text(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inputs that go with the tokens of the text: ids, masks and types, `[B, T]` each."""
    shape = inputs["input_ids"].shape
    names = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
    return {name: inputs[name] for name in names if name in inputs and inputs[name].shape == shape}
