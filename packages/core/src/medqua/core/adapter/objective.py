"""The objective around the adapter: quantum proportion, gate entropy, thresholds, diagnostics.

Eq. 10-11 and section 3.5. Every function takes any module that holds `QuasarLayer`s: the
`PeftModel`, a classifier around it, or what a distributed wrapper calls `.module`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float32
from torch import Tensor, nn
from torch.nn import functional

from medqua.core.adapter.config import Proportion, QuasarConfig
from medqua.core.adapter.layer import QuasarBlock, QuasarLayer
from medqua.core.adapter.ranks import sum_over_ranks
from medqua.core.adapter.router import Routed


@dataclass(frozen=True)
class RouterDiagnostics:
    """What one adapted layer did since its diagnostics were reset (section 3.5)."""

    activation_ratio: float | None
    """Routed tokens over active tokens, 0 to 1; None when no active token was seen."""
    threshold: float | None
    """theta in units of the gate, 0 to 1; None before the first training step and for the
    ablations that have no threshold."""
    mean_depth: float | None
    """Mean circuit depth of routed tokens, in layers; None when none was routed."""


def proportion(routed: Routed, mode: Proportion = "ste") -> Float32[Tensor, ""]:
    """lambda_hat of Eq. 10: share of active tokens on the quantum path.

    Args:
        routed: What the router decided.
        mode: `ste`: the value of the hard share, with the gradient of the mean gate (as printed it
            has none); `soft`: the mean gate itself.

    Returns:
        A scalar in [0, 1]; 0 when no token is active.
    """
    routes = routed.straight_through if mode == "ste" else routed.gate
    return routes.sum() / routed.active.sum().clamp(min=1)


def gate_entropy(routed: Routed) -> Float32[Tensor, ""]:
    """H(g), mean binary entropy of the gates of active tokens, in nats (section 3.4).

    Computed from the logits: `H = softplus(l) - l sigmoid(l)`, exact where g saturates.
    """
    logits = routed.logits
    entropy = functional.softplus(logits) - logits * logits.sigmoid()
    return entropy.masked_fill(~routed.active, 0.0).sum() / routed.active.sum().clamp(min=1)


def regularisation(model: nn.Module) -> Float32[Tensor, ""]:
    """What Eq. 11 adds to the task loss: mean over adapted layers of eta L_lambda + xi H(g).

    `L_lambda = (lambda_hat - lambda*)^2` (Eq. 10) is left out for the routings `topk` and
    `random`, whose share is fixed. Call it after the training forward and before its backward.
    After `share_batch`, lambda_hat and H(g) are those of the tokens of all ranks, and the gradient
    is right once it is averaged over ranks, as DDP and FSDP do.

    Returns:
        A scalar with its graph; a plain 0 when no adapter ran with gradients in training mode.
    """
    found = [
        (block, block.routed)
        for layer in _layers(model)
        for block in layer.active_blocks()
        if block.routed is not None
    ]
    if found:
        device = found[0][0].gamma.device
        sums = torch.stack([_sums(block.config, routed).to(device) for block, routed in found])
        if all(block.router.across_ranks for block, _ in found):
            sums = sum_over_ranks(sums)
        losses = [_loss(block.config, own) for (block, _), own in zip(found, sums, strict=True)]
        return torch.stack(losses).mean()
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return torch.zeros((), device=device)


def share_batch(model: nn.Module, shared: bool = True) -> None:
    """Count k, lambda_hat and H(g) over the tokens of all ranks, not of each rank alone.

    With it a step depends on its global batch, and not on how many ranks share it. Every rank has
    to run the same training forwards: they hold small collectives.
    """
    for layer in _layers(model):
        for block in layer.quasar_block.values():
            if isinstance(block, QuasarBlock):
                block.router.across_ranks = shared


@torch.no_grad()
def update_thresholds(model: nn.Module) -> None:
    """Move every threshold by Eq. 6: once after each optimiser step, on every rank.

    The first call also standardises the depth policies (`QuasarBlock.update`).

    The statistics of all forwards since the last call are averaged by their active tokens, over
    micro-batches and over the ranks of the default process group. The reduction takes place
    whether or not this rank saw any token, so that no rank waits for another.
    """
    blocks = [block for layer in _layers(model) for block in layer.active_blocks()]
    if not blocks:
        return
    device = blocks[0].gamma.device
    statistics = torch.stack([block.take_statistics().to(device) for block in blocks])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(statistics)
    for block, statistic in zip(blocks, statistics, strict=True):
        block.update(statistic.to(block.gamma.device))


def diagnostics(model: nn.Module) -> dict[str, RouterDiagnostics]:
    """Read each adapted layer's diagnostics: one synchronisation with the device for each.

    Padding is excluded. Counts are those of this process alone.

    Returns:
        Diagnostics by the decoder layer's qualified name in the backbone, for the active adapter
        (the first, when several are active).
    """
    return {
        layer.layer_name: _read(block)
        for layer in _layers(model)
        for block in layer.active_blocks()[:1]
    }


def reset_diagnostics(model: nn.Module) -> None:
    """Forget the counts of all adapters, before an evaluation for instance."""
    for layer in _layers(model):
        for block in layer.quasar_block.values():
            if isinstance(block, QuasarBlock):
                block.counts = None


def _layers(model: nn.Module) -> Iterator[QuasarLayer]:
    return (module for module in model.modules() if isinstance(module, QuasarLayer))


def _sums(config: QuasarConfig, routed: Routed) -> Float32[Tensor, "3"]:
    """Over this rank's active tokens: routes, entropies of gates, and the tokens themselves."""
    active = routed.active.sum().float()
    count = active.clamp(min=1)
    return torch.stack(
        [proportion(routed, config.proportion) * count, gate_entropy(routed) * count, active]
    )


def _loss(config: QuasarConfig, sums: Float32[Tensor, "3"]) -> Float32[Tensor, ""]:
    """Eta L_lambda + xi H(g) of one block, from the sums of `_sums`."""
    routes, entropy, active = sums.unbind()
    count = active.detach().clamp(min=1)
    loss = config.xi * entropy / count
    if config.routing == "ema":
        loss = loss + config.eta * (routes / count - config.target_ratio).square()
    return loss


def _read(block: QuasarBlock) -> RouterDiagnostics:
    active, routed, depth = (0, 0, 0) if block.counts is None else block.counts.tolist()
    known = block.config.routing == "ema" and bool(block.router.threshold_logit.isfinite())
    return RouterDiagnostics(
        activation_ratio=routed / active if active else None,
        threshold=float(block.router.threshold) if known else None,
        mean_depth=depth / routed if routed else None,
    )
