"""What a decoder layer cannot see: which tokens are padding and which are visual.

A decoder layer gets a 4-D causal mask, or none, and no token ids. Hooks on the modules around the
decoder read the masks on their way in and leave them in a context variable, one per thread and
task, from which the adapted layers take them. The hooks stand on **every** enclosing module: the
whole model, the inner multimodal model or the text model may be what is called.

Padding is known from the 2-D `attention_mask`. For compiled caches `generate` turns that into a
finished 4-D mask before it calls the model; the hooks then look at what it was made from. Who calls
the model with a 4-D mask of one's own has it read at each token's own column, which the KV cache
tells. The cache is recognised by its type, since transformers has renamed its argument. A mask
that tells no padding is an error: see `current_masks`.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from functools import partial, update_wrapper
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin
from transformers.generation.continuous_batching.cache import PagedAttentionCache

from medqua.core.adapter.placement import ancestors, find_decoder_layers
from medqua.core.errors import BackboneError, ShapeError


class TokenMasks(NamedTuple):
    """Masks of the forward in progress; None where the caller told nothing."""

    real: Bool[Tensor, "batch keys"] | None = None
    """True where a token is not padding; may be longer than the current T (KV cache)."""
    visual: Bool[Tensor, "batch keys"] | None = None
    """True where a token stands for a piece of an image or a video."""


class _Frame(NamedTuple):
    """One enclosing module that is running: which hooks saw it, and how deep it stands."""

    masks: TokenMasks
    unread: ShapeError | None
    """Why the mask does not tell padding; raised when an adapted layer asks."""
    hooks: "TokenHooks"
    depth: int
    outer: "_Frame | None"


_FRAME: ContextVar[_Frame | None] = ContextVar("medqua_token_masks", default=None)
_PREPARED: ContextVar[tuple[object, Tensor] | None] = ContextVar("medqua_prepared", default=None)
"""The finished mask that `generate` made last in this thread, and the 2-D mask it made it from."""


def current_masks() -> TokenMasks:
    """Masks of the innermost forward in progress in this thread; empty outside of one.

    Raises:
        ShapeError: The model was called with a mask that does not tell which tokens are padding.
    """
    frame = _FRAME.get()
    if frame is None:
        return TokenMasks()
    if frame.unread is not None:
        raise frame.unread
    return frame.masks


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

    Raises:
        BackboneError: No module around the decoder layers takes an `attention_mask`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.visual_ids = _visual_token_ids(model)
        self.handles: list[RemovableHandle] = []
        names = list(ancestors(find_decoder_layers(model)[0]))
        modules = [model.get_submodule(name) for name in names]
        if not any("attention_mask" in _parameters(module.forward) for module in modules):
            raise BackboneError(
                f"no forward of {type(model).__name__} takes an attention_mask, by which padding "
                "is told; needed a release of transformers that names it so (5.22 to 5.24 do)"
            )
        for depth, module in enumerate(modules):
            enter, leave = partial(self._enter, depth), partial(self._leave, depth)
            self.handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            self.handles.append(module.register_forward_hook(leave, always_call=True))
        self._model: Any = model
        self._prepare: Any = None
        prepare = getattr(model, "prepare_inputs_for_generation", None)  # a text model has none
        if prepare is not None:
            self._prepare = update_wrapper(partial(_note_finished_mask, prepare), prepare)
            self._model.prepare_inputs_for_generation = self._prepare

    def remove(self) -> None:
        """Take the hooks off again."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        if self._model.__dict__.get("prepare_inputs_for_generation") is self._prepare is not None:
            del self._model.prepare_inputs_for_generation

    def _enter(
        self, depth: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        outer = _FRAME.get()
        while outer is not None and outer.hooks is self and outer.depth >= depth:
            outer = outer.outer  # left behind by a forward that was interrupted
        told = _arguments(module.forward, args, kwargs)
        mask, unread = told.get("attention_mask"), None
        if outer is not None and outer.hooks is self:
            (real, visual), unread = outer.masks, outer.unread
            if isinstance(mask, Tensor) and mask.dim() == 2:
                real, unread = mask.bool(), None
        else:
            real, visual = None, None
            try:
                real = _padding_mask(mask, told.values())
            except ShapeError as error:
                unread = error
        visual = self._visual(told) if visual is None else visual
        _FRAME.set(_Frame(TokenMasks(real, visual), unread, self, depth, outer))

    def _leave(self, depth: int, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        frame = _FRAME.get()
        if frame is not None and frame.hooks is self and frame.depth == depth:
            _FRAME.set(frame.outer)

    def _visual(self, told: Mapping[str, Any]) -> Tensor | None:
        types = told.get("mm_token_type_ids")
        if isinstance(types, Tensor):
            return types > 0
        ids = told.get("input_ids")
        if not self.visual_ids or not isinstance(ids, Tensor) or ids.dim() != 2:
            return None
        return torch.isin(ids, torch.tensor(self.visual_ids, device=ids.device, dtype=ids.dtype))


def _note_finished_mask(prepare: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Let `generate` prepare a forward; remember the 2-D mask if it makes another one of it."""
    told = _arguments(prepare, args, kwargs).get("attention_mask")
    inputs = prepare(*args, **kwargs)
    made = inputs.get("attention_mask")
    _PREPARED.set((made, told) if isinstance(told, Tensor) and told.dim() == 2 else None)
    return inputs


def _parameters(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def _arguments(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Mapping[str, Any]:
    """Arguments by name, positional ones included."""
    return {**dict(zip(_parameters(function), args, strict=False)), **kwargs} if args else kwargs


def _padding_mask(mask: object, told: Iterable[object]) -> Tensor | None:
    """The `[B, keys]` padding mask behind an `attention_mask`; None where there is none.

    Args:
        mask: 2-D; or finished, `[B, heads, T, keys]`, bool or additive, alone or in a dict by kind
            of attention, in which None stands for a plain causal one.
        told: Everything that the model was called with, the KV cache among it.

    Raises:
        ShapeError: A finished mask that `generate` did not make here, and whose columns are not
            those of the cache.
    """
    prepared = _PREPARED.get()
    _PREPARED.set(None)
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask.bool()
    if prepared is not None and prepared[0] is mask:
        return prepared[1].bool()
    masks = [m for m in (mask.values() if isinstance(mask, Mapping) else [mask]) if m is not None]
    cache = next((value for value in told if isinstance(value, Cache | PagedAttentionCache)), None)
    for finished in masks:
        if not isinstance(finished, Tensor) or finished.dim() != 4:
            continue
        admits = (finished if finished.dtype == torch.bool else finished == 0)[:, 0]  # [B, T, keys]
        if isinstance(cache, PagedAttentionCache):  # requests in one row, padding after the last
            return admits.any(-1)
        first = _own_column(finished.shape[-2], finished.shape[-1], cache)
        if first is not None:
            return admits.diagonal(first, -2, -1)  # may a token attend to itself?
    if not masks:
        return None
    got = [tuple(m.shape) if isinstance(m, Tensor) else type(m).__name__ for m in masks]
    raise ShapeError(
        f"attention_mask {got} with {'no KV cache' if cache is None else type(cache).__name__} "
        "does not tell which tokens are padding; needed a mask [batch, tokens], or one [batch, "
        "heads, queries, keys] with a column for every key of the cache. Pass the 2-D mask, or use "
        "generate"
    )


def _own_column(queries: int, keys: int, cache: Cache | None) -> int | None:
    """Column of the first query itself in a mask `[queries, keys]`; None if the sizes do not fit.

    A static layer has a column for every key that it may come to hold, a sliding one for its window
    alone: each says how many there are and which key is the first.
    """
    layers = [] if cache is None else [x for x in cache.layers if isinstance(x, CacheLayerMixin)]
    for layer in layers:
        length, offset = layer.get_mask_sizes(queries)
        if length == keys:
            return int(layer.get_seq_length()) - int(offset)
    return 0 if not layers and queries == keys else None


def _visual_token_ids(model: nn.Module) -> list[int]:
    config = getattr(model, "config", None)
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    ids = {getattr(config, name, None) for name in names}
    return sorted(value for value in ids if isinstance(value, int))
