"""What a decoder layer cannot see: which tokens are padding and which are visual.

A decoder layer gets a 4-D causal mask, or none, and no token ids. Hooks on the modules around the
decoder read the masks on their way in and leave them in a context variable, one per thread and
task, from which the adapted layers take them. The hooks stand on **every** enclosing module: the
whole model, the inner multimodal model or the text model may be what is called.
"""

import inspect
from collections.abc import Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from medqua.core.adapter.placement import ancestors, find_decoder_layers
from medqua.core.errors import ShapeError


class TokenMasks(NamedTuple):
    """Masks of the forward in progress; None where the caller told nothing."""

    real: Bool[Tensor, "batch keys"] | None = None
    """True where a token is not padding; may be longer than the current T (KV cache)."""
    visual: Bool[Tensor, "batch keys"] | None = None
    """True where a token stands for a piece of an image or a video."""


class _Frame(NamedTuple):
    """One enclosing module that is running: which hooks saw it, and how deep it stands."""

    masks: TokenMasks
    hooks: "TokenHooks"
    depth: int
    outer: "_Frame | None"


_FRAME: ContextVar[_Frame | None] = ContextVar("medqua_token_masks", default=None)


def current_masks() -> TokenMasks:
    """Masks of the innermost forward in progress in this thread; empty outside of one."""
    frame = _FRAME.get()
    return TokenMasks() if frame is None else frame.masks


def align(mask: Tensor | None, batch: int, tokens: int) -> Bool[Tensor, "batch tokens"] | None:
    """Align a mask to the current tokens `[B, T]` from the right (section 3.2).

    A longer mask (cached steps of `generate`) keeps its last T columns; a shorter one is padded
    with True on the left: tokens that nobody called padding, such as a learned prefix.

    Raises:
        ShapeError: The mask is of another batch.
    """
    if mask is None:
        return None
    if mask.shape[0] != batch:
        raise ShapeError(
            f"attention_mask or input_ids has batch {mask.shape[0]}, the hidden states have "
            f"{batch}; needed the same: pass the mask that belongs to these inputs"
        )
    mask = mask[:, -tokens:].bool()
    return nn.functional.pad(mask, (tokens - mask.shape[1], 0), value=True)


class TokenHooks:
    """Forward hooks on every module that encloses the decoder layers of `model`.

    Args:
        model: The model that holds the decoder layers; its config names the visual tokens.
    """

    def __init__(self, model: nn.Module) -> None:
        self.visual_ids = _visual_token_ids(model)
        self.handles: list[RemovableHandle] = []
        for depth, name in enumerate(ancestors(find_decoder_layers(model)[0])):
            module = model.get_submodule(name)
            enter, leave = partial(self._enter, depth), partial(self._leave, depth)
            self.handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            self.handles.append(module.register_forward_hook(leave, always_call=True))

    def remove(self) -> None:
        """Take the hooks off again."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def _enter(
        self, depth: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        outer = _FRAME.get()
        while outer is not None and outer.hooks is self and outer.depth >= depth:
            outer = outer.outer  # left behind by a forward that was interrupted
        known = outer.masks if outer is not None and outer.hooks is self else TokenMasks()
        told = _arguments(module, args, kwargs)
        real = _padding_mask(told.get("attention_mask"), told.get("past_key_values"), known.real)
        visual = self._visual(told) if known.visual is None else known.visual
        _FRAME.set(_Frame(TokenMasks(real, visual), self, depth, outer))

    def _leave(self, depth: int, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        frame = _FRAME.get()
        if frame is not None and frame.hooks is self and frame.depth == depth:
            _FRAME.set(frame.outer)

    def _visual(self, told: Mapping[str, Any]) -> Tensor | None:
        types = told.get("mm_token_type_ids")
        if isinstance(types, Tensor):
            return types > 0
        ids = told.get("input_ids")
        if not isinstance(ids, Tensor) or ids.dim() != 2:
            return None
        return torch.isin(ids, torch.tensor(self.visual_ids, device=ids.device, dtype=ids.dtype))


def _arguments(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Mapping[str, Any]:
    """Arguments by name, positional ones included."""
    if not args:
        return kwargs
    names = [name for name in inspect.signature(module.forward).parameters if name != "self"]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _padding_mask(mask: object, cache: object, known: Tensor | None) -> Tensor | None:
    """The `[B, keys]` padding mask, from the 2-D form or the diagonal of a 4-D causal mask.

    With compiled caches `generate` hands over the finished 4-D mask, bool or additive, alone or in
    a dict by kind of attention. Query t may attend to itself unless it is padding; its own column
    follows the tokens that are already in the cache.
    """
    if isinstance(mask, Mapping):
        mask = mask.get("full_attention", next(iter(mask.values()), None))
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask.bool()
    if known is not None or not isinstance(mask, Tensor) or mask.dim() != 4:
        return known
    queries, keys = mask.shape[-2:]
    seen: Any = keys - queries
    if cache is not None and hasattr(cache, "get_seq_length"):
        seen = cache.get_seq_length()
    columns = torch.arange(queries, device=mask.device) + seen  # [T]
    index = columns.view(1, -1, 1).expand(mask.shape[0], -1, 1)
    own = mask[:, 0].gather(2, index).squeeze(2)  # [B, T]
    return own if own.dtype == torch.bool else own == 0


def _visual_token_ids(model: nn.Module) -> list[int]:
    config = getattr(model, "config", None)
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    ids = {getattr(config, name, None) for name in names}
    return sorted(value for value in ids if isinstance(value, int))
