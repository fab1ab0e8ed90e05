"""Reports as what a vision-language model says next: the inputs, the loss, and the writing.

A row is the conversation that `build_inputs` makes (prompt, image), then the report and the token
that ends it. The loss is over the report's tokens alone; add `regularisation` for Eq. 11. Writing
starts from the same conversation.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from peft import PeftModel
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, ProcessorMixin

from medqua.core.errors import ConfigError, ShapeError
from medqua.core.model.classifier import vision_language_model
from medqua.core.vision.processor import build_inputs
from medqua.train.data.manifest import IGNORED


def report_inputs(
    processor: ProcessorMixin,
    images: Sequence[np.ndarray],
    prompt: str,
    reports: Sequence[str],
    *,
    max_tokens: int = 256,
) -> dict[str, Tensor]:
    """One batch of images with the reports to be learned.

    Args:
        processor: The backbone's.
        images: B grey images, as for `build_inputs`.
        prompt: Text before the image, the same in every row.
        reports: B texts.
        max_tokens: A report and its end are cut to this many tokens; one that is cut has no end.

    Returns:
        What `build_inputs` returns, the R tokens of the longest report appended and shorter ones
        padded on the right, and `labels` `[B, R]` int64: the report's tokens, `IGNORED` at padding.

    Raises:
        ShapeError: Not a report for each image.
        ConfigError: `max_tokens` below 1.
    """
    if len(images) != len(reports):
        raise ShapeError(f"{len(images)} images with {len(reports)} reports: needed one for each")
    if max_tokens < 1:
        raise ConfigError(f"max_tokens = {max_tokens}: needed at least 1")
    return append_reports(processor, build_inputs(processor, images, prompt), reports, max_tokens)


def append_reports(
    processor: ProcessorMixin, asked: dict[str, Tensor], reports: Sequence[str], max_tokens: int
) -> dict[str, Tensor]:
    """Put reports behind conversations that are batched already; see `report_inputs`.

    Args:
        processor: The backbone's.
        asked: Of `build_inputs`, B rows; left as it is.
        reports: B texts.
        max_tokens: A report and its end are cut to this many tokens.
    """
    tokenizer = processor.tokenizer
    end = int(tokenizer.eos_token_id)
    texts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in reports]
    rows = [torch.tensor([*ids, end][:max_tokens]) for ids in texts]
    labels = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)
    there = labels != IGNORED
    added = {
        "input_ids": labels.masked_fill(~there, int(tokenizer.pad_token_id)),
        "attention_mask": there.long(),
        "mm_token_type_ids": torch.zeros_like(labels),
    }
    joined = {name: torch.cat([asked[name], added[name]], 1) for name in added if name in asked}
    return asked | joined | {"labels": labels}


def report_loss(
    backbone: PreTrainedModel | PeftModel, inputs: dict[str, Tensor]
) -> Float32[Tensor, ""]:
    """Mean cross-entropy of the report's tokens, in nats.

    The language head is computed where a report's token is predicted and nowhere else.

    Args:
        backbone: The model, with or without an adapter.
        inputs: From `report_inputs`, on the model's device.
    """
    inputs = dict(inputs)
    labels = inputs.pop("labels")
    model: Any = vision_language_model(backbone)
    hidden_states = model.base_model(**inputs, use_cache=False).last_hidden_state
    each = token_loss(model, hidden_states, labels)
    return each.sum() / (labels != IGNORED).sum()


def token_loss(
    model: PreTrainedModel,
    hidden_states: Float[Tensor, "batch tokens width"],
    labels: Int64[Tensor, "batch report"],
) -> Float32[Tensor, "batch report"]:
    """Cross-entropy of each token of reports that end their rows, in nats; 0 at padding."""
    whole: Any = model
    head = whole.get_output_embeddings()
    before = hidden_states[:, -labels.shape[1] - 1 : -1]  # each token is predicted one place ahead
    logits = head(before).float().transpose(1, 2)
    return functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")


@torch.no_grad()
def write_reports(
    backbone: PreTrainedModel | PeftModel,
    processor: ProcessorMixin,
    images: Sequence[np.ndarray],
    prompt: str,
    *,
    max_tokens: int = 256,
    use_cache: bool = True,
) -> list[str]:
    """Write a report for each image, greedily, with what is attached to the backbone switched on.

    Args:
        backbone: The model; left in the mode that it was in.
        processor: The backbone's.
        images: B grey images of one size.
        prompt: Text before the image, as in training.
        max_tokens: Tokens after which a report that has not ended is cut.
        use_cache: Keep keys and values; without, the same text comes out more slowly.

    Returns:
        B texts.
    """
    model: Any = vision_language_model(backbone)
    device = next(model.parameters()).device
    inputs = {k: v.to(device) for k, v in build_inputs(processor, images, prompt).items()}
    was_training = model.training
    model.eval()
    try:
        written = model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=max_tokens,
            use_cache=use_cache,
            eos_token_id=processor.tokenizer.eos_token_id,
            pad_token_id=processor.tokenizer.pad_token_id,
            suppress_tokens=_unspoken(processor),
        )
    finally:
        model.train(was_training)
    new = written[:, inputs["input_ids"].shape[1] :]
    return [str(text) for text in processor.tokenizer.batch_decode(new, skip_special_tokens=True)]


def _unspoken(processor: ProcessorMixin) -> list[int] | None:
    """Special tokens but the end: an image token in the text would be taken for an image."""
    tokenizer = processor.tokenizer
    known = tokenizer.added_tokens_decoder.items()
    return [
        number for number, token in known if token.special and number != tokenizer.eos_token_id
    ] or None
