"""A tiny Qwen2.5-VL, built offline from random numbers: same code paths, no download.

It stands in for the published backbone in tests and wherever no network is. It knows nothing: it
is trained whole (`tune="full"`), never frozen. `tiny_cxr`, beside this module, is one that
`tools/pretrain_tiny.py` trained on phantoms: the source `"tiny-cxr"`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import AddedToken, pre_tokenizers
from transformers import (
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessorPil,
)

from medqua.core.errors import ConfigError
from medqua.core.vision.processor import QwenProcessor

_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

_CORPUS = (
    "Name the findings in this frontal chest radiograph.",
    "List every abnormality on this chest X-ray: enlarged cardiomediastinum, cardiomegaly,",
    "lung opacity, lung lesion, edema, consolidation, pneumonia, atelectasis, pneumothorax,",
    "pleural effusion, pleural other, fracture, support devices, no finding.",
    "infiltration, mass, nodule, emphysema, fibrosis, pleural thickening, hernia.",
    "The heart is enlarged. The lungs are clear. There is no pleural effusion or pneumothorax.",
)
"""What the tokenizer's merges are learned from; any other text falls back to single bytes."""

_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>{% endfor %}"
)


@dataclass(frozen=True)
class TinyArchitecture:
    """Sizes of the tiny Qwen2.5-VL; the defaults learn on two CPU cores.

    Raises:
        ConfigError: A size below 1, heads that do not divide their width, or a head width that
            the rotary embeddings cannot split.
    """

    patch_size: int = 14
    """Side of a patch, in pixels; an image's sides are multiples of `patch_size * merge_size`."""
    merge_size: int = 2
    """Patches along each side of the square that becomes one visual token."""
    temporal_patch_size: int = 1
    """Frames in a patch; the published model repeats a still image twice, here that only costs."""
    vision_depth: int = 2
    """Blocks of the vision tower, each with attention over the whole image."""
    vision_hidden: int = 64
    """Width of the vision tower."""
    vision_heads: int = 4
    """Attention heads of the vision tower."""
    vision_mlp: int = 128
    """Inner width of the vision tower's gated feed-forward."""
    decoder_layers: int = 6
    """Decoder layers; the adapter's default places one layer after every sixth."""
    hidden: int = 128
    """Width D of the decoder."""
    heads: int = 4
    """Attention heads of the decoder, each with keys and values of its own."""
    mlp: int = 256
    """Inner width of the decoder's gated feed-forward."""
    vocabulary: int = 512
    """Tokens: 256 bytes, the special tokens, and merges learned from a few radiology phrases."""
    initializer_range: float = 0.02
    """Standard deviation of the random linear weights."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ConfigError(f"{name} = {value} in TinyArchitecture: needed more than 0")
        if self.vision_hidden % (4 * self.vision_heads) or self.hidden % (2 * self.heads):
            raise ConfigError(
                f"vision_hidden = {self.vision_hidden} with {self.vision_heads} heads and hidden = "
                f"{self.hidden} with {self.heads} heads: needed vision_hidden a multiple of 4 "
                "times its heads, and hidden a multiple of 2 times its heads (rotary positions)"
            )
        if self.vocabulary < 256 + len(_SPECIAL_TOKENS):
            raise ConfigError(
                f"vocabulary = {self.vocabulary}: needed at least {256 + len(_SPECIAL_TOKENS)} "
                "(every byte and the special tokens)"
            )


def build_tiny(
    architecture: TinyArchitecture, seed: int, dtype: torch.dtype = torch.float32
) -> tuple[Qwen2_5_VLForConditionalGeneration, QwenProcessor]:
    """Build the tiny model and its processor.

    Args:
        architecture: Sizes.
        seed: Seed of every weight; the caller's random state is left as it was.
        dtype: Floating type of the weights, drawn in float32 first.

    Returns:
        The model, in eval mode and on the CPU, and its processor. Equal arguments give equal bits.
    """
    processor = _processor(architecture)
    config = _config(architecture, processor.tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = Qwen2_5_VLForConditionalGeneration(config)
    return model.to(dtype).eval(), processor


def _config(sizes: TinyArchitecture, tokenizer: PreTrainedTokenizerBase) -> Qwen2_5_VLConfig:
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    ids = {token: vocabulary[token] for token in _SPECIAL_TOKENS}
    half = sizes.hidden // sizes.heads // 2
    spatial = half * 3 // 8  # the published split of rotary frequencies: 16, 24, 24 of 64
    text: dict[str, Any] = {
        "vocab_size": sizes.vocabulary,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.mlp,
        "num_hidden_layers": sizes.decoder_layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.heads,
        "max_position_embeddings": 4096,
        "initializer_range": sizes.initializer_range,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [half - 2 * spatial, spatial, spatial],
        },
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    vision: dict[str, Any] = {
        "depth": sizes.vision_depth,
        "hidden_size": sizes.vision_hidden,
        "intermediate_size": sizes.vision_mlp,
        "num_heads": sizes.vision_heads,
        "patch_size": sizes.patch_size,
        "spatial_merge_size": sizes.merge_size,
        "temporal_patch_size": sizes.temporal_patch_size,
        "out_hidden_size": sizes.hidden,
        "window_size": 8 * sizes.patch_size * sizes.merge_size,
        "fullatt_block_indexes": list(range(sizes.vision_depth)),
        "initializer_range": sizes.initializer_range,
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def _processor(sizes: TinyArchitecture) -> QwenProcessor:
    untrained: Any = Qwen2Tokenizer(eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer = untrained.train_new_from_iterator(
        _CORPUS,
        vocab_size=sizes.vocabulary,
        new_special_tokens=[AddedToken(token, special=True) for token in _SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=sizes.patch_size,
        merge_size=sizes.merge_size,
        temporal_patch_size=sizes.temporal_patch_size,
    )
    return QwenProcessor(image_processor, tokenizer, chat_template=_CHAT_TEMPLATE)
