"""Where a classifier stops being frozen, and how it starts from there."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from medqua.core.adapter import QuasarLayer, find_decoder_layers
from medqua.core.model.classifier import MedQuaClassifier, vision_language_model
from medqua.train.data.dataset import Collator, Sample

ROW_INPUTS = ("input_ids", "attention_mask", "mm_token_type_ids")
"""Model inputs that are the same in every row of every batch: one prompt, one image size."""


@dataclass(frozen=True)
class Prefix:
    """What of a classifier never changes: everything below a decoder layer."""

    layers: int
    """Decoder layers that are skipped, from the first; 0 still skips the vision tower."""

    row: Mapping[str, Tensor]
    """The inputs of `ROW_INPUTS`, one row `[1, T]` each."""

    positions: Tensor
    """Position ids as the decoder gets them, `[A, 1, T]` for its A axes."""


def frozen_layers(classifier: MedQuaClassifier) -> int | str:
    """How many decoder layers never change, from the first; or why there is no prefix.

    The own computation of a layer that carries a Quasar block belongs to the prefix: the block
    reads its output.
    """
    model = vision_language_model(classifier.backbone)
    _, layers = find_decoder_layers(model)
    inside = {id(p) for layer in layers for p in layer.parameters()}
    if any(p.requires_grad and id(p) not in inside for p in model.parameters()):
        return "the backbone is trained"
    if any(isinstance(p, DTensor) for p in model.parameters()):
        return "the model is sharded"
    for name, module in model.named_modules():
        rate = getattr(module, "p", 0.0) if isinstance(module, nn.Dropout) else 0.0
        if "quasar_" not in name and "lora_" not in name and rate:
            return f"{name} drops out"
    config = model.config.get_text_config(decoder=True)
    if getattr(config, "attention_dropout", 0.0):
        return "the backbone's attention drops out"
    for index, layer in enumerate(layers):
        adapted = isinstance(layer, QuasarLayer)
        own = layer.base_layer if isinstance(layer, QuasarLayer) else layer
        if any(p.requires_grad for p in own.parameters()) or _holds_adapter(own):
            return index
        if adapted:
            return index + 1
    return len(layers)


@contextmanager
def skipping(classifier: MedQuaClassifier, prefix: Prefix) -> Iterator[None]:
    """Meanwhile the classifier takes hidden states as `pixel_values` and starts from them."""
    model = vision_language_model(classifier.backbone)

    def enter(_: nn.Module, args: tuple[Any, ...], told: dict[str, Any]) -> Any:
        states = told["pixel_values"]
        axes, _one, tokens = prefix.positions.shape
        kept = {k: v for k, v in told.items() if k not in ("input_ids", "pixel_values")}
        positions = prefix.positions.to(states.device).expand(axes, len(states), tokens)
        return args, {**kept, "inputs_embeds": states, "position_ids": positions}

    skipped = own_layers(model)[: prefix.layers]
    handle = model.base_model.register_forward_pre_hook(enter, with_kwargs=True)
    for layer in skipped:
        setattr(layer, "forward", _same)  # noqa: B010  # on this instance alone
    try:
        yield
    finally:
        handle.remove()
        for layer in skipped:
            del layer.forward


class _CapturedError(Exception):
    """Ends a forward as soon as the hidden states are known."""


@torch.no_grad()
def states_of(
    classifier: MedQuaClassifier, inputs: Mapping[str, Tensor], layers: int
) -> tuple[Tensor, dict[str, Any]]:
    """Hidden states below the first layer that changes, and what the decoder was called with."""
    model = vision_language_model(classifier.backbone)
    own = own_layers(model)
    found: list[Tensor] = []
    told: dict[str, Any] = {}
    decoder = model.get_submodule(find_decoder_layers(model)[0].rpartition(".")[0])

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(args[0] if args else kwargs["hidden_states"])
        raise _CapturedError

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)
        raise _CapturedError

    handles = [
        decoder.register_forward_pre_hook(lambda _, __, k: told.update(k), with_kwargs=True),
        own[layers - 1].register_forward_hook(after)
        if layers
        else own[0].register_forward_pre_hook(before, with_kwargs=True),
    ]
    was_training = classifier.training
    classifier.eval()
    try:
        classifier(**inputs)
    except _CapturedError:
        pass
    finally:
        classifier.train(was_training)
        for handle in handles:
            handle.remove()
    return found[0], told


def template(
    classifier: MedQuaClassifier, collator: Collator, size: int
) -> tuple[dict[str, Tensor], Tensor] | str:
    """What all rows share, from two blanks; or why they share it not."""
    blank = np.zeros((size, size), np.float32)
    labels = np.zeros(classifier.head.out_features, np.int8)
    batch = collator([Sample(image=blank, labels=labels, index=0, readable=True)] * 2)
    inputs = model_inputs(batch, classifier)
    if any(name not in inputs for name in ROW_INPUTS):
        return "the backbone's processor makes other inputs than Qwen's"
    positions = states_of(classifier, inputs, 0)[1].get("position_ids")
    if not isinstance(positions, Tensor) or positions.dim() != 3:
        return "the backbone's decoder is given no positions on several axes"
    return {name: batch[name][:1] for name in ROW_INPUTS}, positions[:, :1].cpu()


def own_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder's own layers, without what adapts them."""
    _, layers = find_decoder_layers(model)
    return [layer.base_layer if isinstance(layer, QuasarLayer) else layer for layer in layers]


def _holds_adapter(module: nn.Module) -> bool:
    """Whether PEFT changed anything inside."""
    return any("lora_" in name for name, _ in module.named_modules())


def model_inputs(batch: Mapping[str, Tensor], classifier: MedQuaClassifier) -> dict[str, Tensor]:
    """The model's own inputs among a batch, on its device."""
    device = next(classifier.parameters()).device
    beside = ("labels", "index", "readable")
    return {name: value.to(device) for name, value in batch.items() if name not in beside}


def _same(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    """A decoder layer whose answer is known already."""
    return hidden_states
