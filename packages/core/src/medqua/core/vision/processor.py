"""Images and a prompt to the tensors that a vision-language model reads, without torchvision.

Training, evaluation and serving all call `build_inputs`, so the numbers that a model is trained on
are the numbers that it is served. Pixels stay float32 from the decoder to the patches: the only
arithmetic is the normalisation `(x - mean) / std` that the backbone was pretrained with.

Processors of the Qwen-VL family (`qwen2_vl`, `qwen2_5_vl`, `qwen3_vl`) are read by `QwenProcessor`:
`transformers.AutoProcessor` wants a video processor, which wants torchvision, and without it gives
back a bare tokenizer. Other families go through their own processor where it works as installed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
)

from medqua.core.errors import BackboneError, ShapeError
from medqua.core.vision.patches import PatchSpec, cut, stack

IMAGE_KEYS = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw", "mm_token_type_ids")
"""What `build_inputs` returns for a Qwen-VL processor, in this order."""

_QWEN_IMAGE_PROCESSOR = "Qwen2VLImageProcessor"


class QwenProcessor(Qwen2_5_VLProcessor):
    """The still-image half of the Qwen-VL processors.

    Saves and loads like any processor (`save_pretrained`, `load_processor`) and takes the place of
    the full one wherever no video is given.

    Args:
        image_processor: Patch size, merge size, mean and standard deviation.
        tokenizer: Tokenizer that knows `<|vision_start|>`, `<|image_pad|>`, `<|vision_end|>`.
        chat_template: Jinja template of a conversation; without one the prompt stands bare.
    """

    def __init__(
        self,
        image_processor: Qwen2VLImageProcessorPil,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
    ) -> None:
        self.image_token = "<|image_pad|>"
        self.video_token = "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        mixin: Any = ProcessorMixin  # not the parent's __init__: it wants a video processor
        mixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def load_processor(folder: str | Path) -> ProcessorMixin:
    """Load the processor of a vision-language model so that it works without torchvision.

    Args:
        folder: Folder with the processor's files; `load_backbone` fetches one from the hub.

    Returns:
        A processor with a tokenizer and an image processor.

    Raises:
        BackboneError: The files are missing, or the family's processor needs a package that is
            not installed.
    """
    name = str(folder)
    if not Path(folder).is_dir():
        raise BackboneError(f"no folder at {name}: needed one that holds a processor's files")
    try:
        settings, _ = Qwen2VLImageProcessorPil.get_image_processor_dict(name)
        kind = str(settings.get("image_processor_type", ""))
        if kind.removesuffix("Fast").removesuffix("Pil") == _QWEN_IMAGE_PROCESSOR:
            return _load_qwen(name)
        auto: Any = AutoProcessor
        processor: ProcessorMixin = auto.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise BackboneError(
            f"no usable processor in {name}: needed processor_config.json or "
            f"preprocessor_config.json beside the tokenizer's files ({_first_line(error)})"
        ) from error
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise BackboneError(
            f"the processor in {name} loads as {type(processor).__name__} without images: its "
            "family needs torchvision, which MedQua does not use; choose a Qwen-VL backbone"
        )
    return processor


def build_inputs(
    processor: ProcessorMixin,
    images: Sequence[np.ndarray],
    prompt: str,
    *,
    image_first: bool = False,
) -> dict[str, Tensor]:
    """Make one batch of model inputs: one image and the same prompt in every row.

    All images of a batch have one size, so no row is padded and no row depends on another. Under
    the decoder's causal mask, text after the image cannot reach the visual tokens: the prompt
    therefore stands before the image unless `image_first`.

    Args:
        processor: What `load_processor` returned.
        images: B grey images, each `[H, W]` float32 in [0, 1], as `read_image` gives them. For a
            Qwen-VL processor H and W are multiples of patch size times merge size (28 pixels).
        prompt: Instruction in plain words; may be empty.
        image_first: Put the image before the prompt (the order of Qwen's own examples).

    Returns:
        For a Qwen-VL processor `input_ids`, `attention_mask` and `mm_token_type_ids` `[B, T]` int64
        (1 at visual tokens), `pixel_values` `[B * N, C * temporal * patch * patch]` float32 with
        N patches an image, and `image_grid_thw` `[B, 3]` int64 in patches. For other families,
        what their own processor returns.

    Raises:
        ShapeError: No image, images of different sizes, a wrong dtype or range, or sides that
            the patches do not divide.
    """
    batch = stack(images)
    text = _conversation(processor, prompt, image_first=image_first)
    if not isinstance(processor, QwenProcessor):
        return _by_own_processor(processor, batch, text)
    pixel_values, grid = patchify(processor.image_processor, batch)
    n_tokens = int(grid.prod()) // processor.image_processor.merge_size**2
    text = text.replace(processor.image_token, processor.image_token * n_tokens)
    ids = torch.tensor(processor.tokenizer(text)["input_ids"], dtype=torch.int64)
    input_ids = ids.expand(len(batch), -1).clone()
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "pixel_values": pixel_values,
        "image_grid_thw": grid.expand(len(batch), -1).clone(),
        "mm_token_type_ids": (input_ids == processor.image_token_id).to(torch.int64),
    }


def patchify(
    image_processor: Qwen2VLImageProcessorPil, batch: Float32[np.ndarray, "b h w"]
) -> tuple[Float32[Tensor, "bn d"], Tensor]:
    """Normalise grey images and cut them into the patches of the Qwen-VL vision tower.

    Equal, bit for bit, to `Qwen2VLImageProcessorPil` on the grey image repeated over the channels
    with `do_rescale=False, do_resize=False`, in one pass for the whole batch.

    Args:
        image_processor: Patch size, merge size, temporal patch size, mean and standard deviation.
        batch: Grey images `[B, H, W]` in [0, 1].

    Returns:
        Patches `[B * N, C * temporal * patch * patch]`, ordered so that the `merge**2` patches
        that become one visual token are neighbours, and the grid `[1, H / patch, W / patch]`.

    Raises:
        ShapeError: H or W is not a multiple of patch size times merge size, or the image lies
            outside the pixel counts that the backbone accepts.
    """
    spec = patch_spec(image_processor)
    patches = cut(batch, spec)
    rows, columns = spec.grid(*batch.shape[1:])
    grid = torch.tensor([[1, rows, columns]], dtype=torch.int64)
    return torch.from_numpy(patches.reshape(-1, patches.shape[-1])), grid


def patch_spec(image_processor: Qwen2VLImageProcessorPil) -> PatchSpec:
    """Return the sizes and constants that a Qwen-VL image processor holds."""
    return PatchSpec(
        patch=int(image_processor.patch_size),
        merge=int(image_processor.merge_size),
        temporal=int(image_processor.temporal_patch_size),
        mean=tuple(map(float, image_processor.image_mean)),
        std=tuple(map(float, image_processor.image_std)),
        least=int(image_processor.size["shortest_edge"]),
        most=int(image_processor.size["longest_edge"]),
    )


def _load_qwen(name: str) -> QwenProcessor:
    tokenizer = AutoTokenizer.from_pretrained(name)
    settings, _ = QwenProcessor.get_processor_dict(name)
    for token in ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>"):
        if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
            raise BackboneError(
                f"the tokenizer of {name!r} does not know {token}, which marks an image for this "
                "backbone; use the tokenizer that was published with it"
            )
    return QwenProcessor(
        Qwen2VLImageProcessorPil.from_pretrained(name),
        tokenizer,
        chat_template=settings.get("chat_template") or tokenizer.chat_template,
    )


def _conversation(processor: ProcessorMixin, prompt: str, *, image_first: bool) -> str:
    """Render one user turn with one image, by the chat template where there is one."""
    image_token = getattr(processor, "image_token", None)
    if image_token is not None and image_token in prompt:
        raise ShapeError(f"the prompt holds {image_token}: give plain words, the image is added")
    content: list[dict[str, str]] = [{"type": "image"}]
    if prompt:
        content.insert(1 if image_first else 0, {"type": "text", "text": prompt})
    if processor.chat_template:
        turn: list[Any] = [{"role": "user", "content": content}]
        return str(processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False))
    image = f"<|vision_start|>{image_token}<|vision_end|>"
    if not isinstance(processor, QwenProcessor):
        image = str(image_token or "")
    return image + prompt if image_first else prompt + image


def _by_own_processor(
    processor: ProcessorMixin, batch: Float32[np.ndarray, "b h w"], text: str
) -> dict[str, Tensor]:
    """Use the family's processor; it may resize, and then rounds pixels to 8 bits on its way."""
    colour = [np.repeat(image[None], 3, axis=0) for image in batch]
    try:
        out = processor(
            images=colour,
            text=[text] * len(colour),
            do_rescale=False,
            input_data_format="channels_first",
            padding=True,
            return_tensors="pt",
        )
    except (TypeError, ValueError) as error:
        raise BackboneError(
            f"{type(processor).__name__} does not take one grey image and a prompt "
            f"({_first_line(error)}); choose a Qwen-VL backbone"
        ) from error
    return {key: value for key, value in out.items() if isinstance(value, Tensor)}


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
