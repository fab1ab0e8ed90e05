"""Where adapters go: finding a model's decoder layers and choosing blocks among them (section 3.5).

The finder reads structure, not names of model families: the decoder is the list of attention
blocks, as long as the text config says, under the module that owns the input embeddings. Vision
towers and audio encoders own no token embeddings and so are never taken for it.
"""

from collections.abc import Iterator
from typing import Literal

from torch import nn

from medqua.core.errors import BackboneError, ConfigError

Blocks = Literal["last"] | list[int] | None
"""Which blocks: every K-th (None), the last alone, or explicit 1-indexed positions."""


def find_decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Find the list of decoder layers of a Hugging Face vision-language or language model.

    Args:
        model: A `transformers` model, whole or inner (`...ForConditionalGeneration`, `...Model`,
            a text model), before or after adaptation.

    Returns:
        `(qualified_name, layers)`: the name of the list inside `model` (for Qwen2.5-VL
        `model.language_model.layers`) and the list itself.

    Raises:
        BackboneError: The model has no config or no input embeddings, or no list, or more than
            one, fits.
    """
    depth = _decoder_depth(model)
    owner = _embedding_owner(model)
    while True:
        found = [
            (f"{owner}.{name}".strip("."), module)
            for name, module in model.get_submodule(owner).named_modules()
            if isinstance(module, nn.ModuleList)
            and len(module) == depth
            and all(_has_attention(block) for block in module)
        ]
        if len(found) == 1:
            return found[0]
        if found or not owner:
            break
        owner = owner.rpartition(".")[0]
    names = [name for name, _ in found]
    raise BackboneError(
        f"{'several lists' if names else 'no list'} of {depth} attention blocks in "
        f"{type(model).__name__}{': ' + ', '.join(names) if names else ''}; needed exactly one "
        "beside the token embeddings. Pass the text decoder itself, or a model whose decoder is a "
        "torch.nn.ModuleList"
    )


def choose_blocks(depth: int, every: int, blocks: Blocks = None) -> list[int]:
    """Choose which decoder blocks carry an adapter.

    Args:
        depth: Number of decoder layers.
        every: K of section 3.3: blocks K, 2K, ... counted from 1, so that K = 6 of 36 layers
            includes the last.
        blocks: `"last"` for the last block alone, or explicit positions counted from 1; None
            leaves the choice to `every`.

    Returns:
        Ascending positions counted from **0**, at least one.

    Raises:
        ConfigError: `every` is larger than `depth`, or a position lies outside 1..depth.
    """
    if blocks == "last":
        return [depth - 1]
    if blocks is not None:
        outside = [block for block in blocks if not 1 <= block <= depth]
        if outside:
            raise ConfigError(
                f"blocks = {list(blocks)}: {outside} lie outside the model's 1..{depth} decoder "
                "layers; blocks are counted from 1"
            )
        return sorted({block - 1 for block in blocks})
    if every > depth:
        raise ConfigError(
            f"every = {every} is larger than the model's {depth} decoder layers, so that no block "
            f"would carry an adapter; needed 1..{depth}, or blocks='last'"
        )
    return list(range(every - 1, depth, every))


def ancestors(name: str) -> Iterator[str]:
    """Yield the names of the modules that enclose `name`, outermost (the root, "") first."""
    parts = name.split(".")[:-1]
    yield ""
    for end in range(1, len(parts) + 1):
        yield ".".join(parts[:end])


def _decoder_depth(model: nn.Module) -> int:
    """Number of decoder layers by the model's own config."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise BackboneError(
            f"{type(model).__name__} has no transformers config; needed a Hugging Face model, "
            "whose text config tells the number of decoder layers"
        )
    depth = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None)
    if not isinstance(depth, int) or depth < 1:
        raise BackboneError(
            f"the text config of {type(model).__name__} tells num_hidden_layers = {depth}; "
            "needed a decoder of at least one layer"
        )
    return depth


def _embedding_owner(model: nn.Module) -> str:
    """Qualified name of the module that directly owns the token embeddings."""
    try:
        embeddings: object = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        embeddings = None
    embeds_tokens = isinstance(embeddings, nn.Module) and any(
        isinstance(module, nn.Embedding) for module in embeddings.modules()
    )  # a vision tower answers with its patch convolution
    for name, module in model.named_modules():
        if embeds_tokens and module is embeddings:
            return str(name).rpartition(".")[0]
    raise BackboneError(
        f"{type(model).__name__} shows no token embeddings through get_input_embeddings(); "
        "needed a language decoder that embeds tokens itself"
    )


def _has_attention(block: nn.Module) -> bool:
    """Whether a block mixes tokens: some module inside is an attention, by class name."""
    return any("attention" in type(module).__name__.lower() for module in block.modules())
