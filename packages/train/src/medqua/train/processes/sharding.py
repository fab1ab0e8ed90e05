"""FSDP2: a backbone too large for one device, its parameters in parts on all of them.

Each decoder layer and each vision block is a unit of its own in the backbone's dtype. Adapters,
LoRA and the head are trained in float32 whatever the backbone is, so each is a float32 unit. The
frozen parameters are sharded too: that is where the memory goes. FSDP2 takes no scalars and
nothing empty: each process holds what there is of it (gamma and tau_r of each adapter), and its
gradients are averaged.
DDP suffices for a frozen 3B backbone on 24 GB.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from medqua.core.adapter import QuasarBlock, QuasarLayer, find_decoder_layers
from medqua.core.errors import ConfigError, ShapeError
from medqua.core.model.classifier import MedQuaClassifier, vision_language_model
from medqua.train.processes import distributed

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
"""All of every tensor, on the CPU of rank 0."""


def shard(model: MedQuaClassifier, device: torch.device) -> None:
    """Shard a classifier in place over all processes of the run.

    Args:
        model: The classifier, on any device: its parts are moved.
        device: Of this process.

    Raises:
        ConfigError: There is one process only.
        ShapeError: A parameter was left whole, or an adapter is not float32.
    """
    if distributed.world_size() < 2:
        raise ConfigError(
            "run.parallel = 'fsdp' with one process: launch several (NPROC=2, or torchrun "
            "--nproc-per-node=2), or choose 'ddp'"
        )
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    kept = {parameter for parameter in model.parameters() if not _splits(parameter)}
    for parameter in kept:
        parameter.data = parameter.data.to(device)
        if parameter.requires_grad and parameter.numel():
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                _average
            )
    for unit in list(_units(model)):
        fully_shard(unit, mesh=mesh, ignored_params=kept)
    fully_shard(model, mesh=mesh, ignored_params=kept)
    check_sharded(model)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` was applied."""
    return isinstance(model, FSDPModule)


def check_sharded(model: nn.Module) -> None:
    """Assert what `shard` is to have done.

    Raises:
        ShapeError: A parameter was left whole, an adapter is no unit of its own, or one is not
            float32.
    """
    for name, parameter in model.named_parameters():
        if _splits(parameter) and not isinstance(parameter, DTensor):
            raise ShapeError(f"{name} was left whole: it would be trained apart on each process")
    for name, module in model.named_modules():
        if isinstance(module, QuasarBlock):
            if not isinstance(module, FSDPModule):
                raise ShapeError(f"{name} is no unit of FSDP of its own")
            wrong = [n for n, p in module.named_parameters() if p.dtype != torch.float32]
            if wrong:
                raise ShapeError(f"{name}.{wrong[0]} is not float32: routes would change")


def whole_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """State of an optimiser of a sharded model, whole on rank 0 and empty elsewhere."""
    state: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=WHOLE)
    return state


def load_optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> None:
    """Give each process its part of what `whole_optimizer_state` gave; every one has it whole."""
    set_optimizer_state_dict(
        model,
        optimizer,
        dict(state),
        options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=False),
    )


@contextmanager
def without_reduction(model: nn.Module) -> Iterator[None]:
    """Add gradients of a micro-batch up where they are; the last one reduces them."""
    if not isinstance(model, FSDPModule):
        yield
        return
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def _splits(parameter: torch.Tensor) -> bool:
    """Whether FSDP2 can give each process a part."""
    return bool(parameter.dim() and parameter.numel())


def _average(parameter: torch.Tensor) -> None:
    """Average a gradient over processes; what an earlier micro-batch averaged stays as it is."""
    if parameter.grad is not None:
        dist.all_reduce(parameter.grad)
        parameter.grad /= distributed.world_size()


def _units(model: MedQuaClassifier) -> Iterator[nn.Module]:
    """What is sharded by itself, inner units first."""
    for module in model.modules():
        if isinstance(module, QuasarBlock):
            yield module
        elif isinstance(module, BaseTunerLayer) and not isinstance(module, QuasarLayer):
            own = {id(p) for p in module.get_base_layer().parameters()}
            for part in module.modules():  # LoRA's A and B: float32 beside a bfloat16 weight
                mine = list(part.parameters(recurse=False))
                if mine and not any(id(p) in own for p in mine):
                    yield part
    vlm = vision_language_model(model.backbone)
    for layer in find_decoder_layers(vlm)[1]:
        yield layer.base_layer if isinstance(layer, QuasarLayer) else layer
    for module in vlm.modules():
        blocks = getattr(module, "blocks", None)
        if isinstance(blocks, nn.ModuleList):
            yield from blocks
    yield model.head
