"""Logits of a split, each image once, over all processes; and what the routers did meanwhile."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Subset

from medqua.core.adapter import QuasarLayer, diagnostics, reset_diagnostics
from medqua.train.data.dataset import Collator, RadiographDataset, Sample
from medqua.train.processes import distributed
from medqua.train.processes.sharding import is_sharded


@dataclass(frozen=True)
class Predictions:
    """A model's answer to every image of a split."""

    logits: npt.NDArray[np.float64]
    """`[N, L]`, row i of image i of the split."""

    unreadable: tuple[int, ...]
    """Positions of images that could not be read; their rows mean nothing."""

    seconds_per_image: float
    """Wall seconds of one process for one image: reading (from memory, if kept there), batching
    and the forward pass."""


@torch.no_grad()  # inference mode would leave tensors that FSDP cannot use in training
def predict(
    model: nn.Module,
    dataset: RadiographDataset,
    collator: Collator,
    *,
    batch_size: int,
    workers: int = 0,
    advance: Callable[[int], None] = lambda _: None,
) -> Predictions:
    """Run a model over a split without augmentation.

    Every process takes every W-th image, W processes in all: no sampler pads, so no image counts
    twice. The result is the same on every process.

    Args:
        model: A classifier, not wrapped; left in the mode that it was in.
        dataset: The split.
        collator: Batches as in training.
        batch_size: Images of one forward.
        workers: Processes that read images.
        advance: Called with the number of images done.

    Returns:
        Logits of all images.
    """
    device = next(model.parameters()).device
    mine = range(distributed.rank(), len(dataset), distributed.world_size())
    loader: DataLoader[Sample] = DataLoader(
        Subset(dataset, mine), batch_size=batch_size, collate_fn=collator, num_workers=workers
    )
    # a sharded model gathers its parts in each forward: all processes need as many of them
    fewest = -(-len(dataset) // distributed.world_size())
    spare = -(-fewest // batch_size) - len(loader) if is_sharded(model) else 0
    was_training = model.training
    model.eval()
    found: list[npt.NDArray[np.float64]] = []
    bad: list[int] = []
    started = time.perf_counter()
    try:
        for batch in loader:
            index, readable = batch.pop("index"), batch.pop("readable")
            batch.pop("labels")
            logits = model(**{name: value.to(device) for name, value in batch.items()})
            found.append(logits.double().cpu().numpy())
            bad += index[~readable].tolist()
            advance(len(index) * distributed.world_size())
        for _ in range(spare):
            batch = collator([dataset[0]])
            for name in ("index", "readable", "labels"):
                batch.pop(name)
            model(**{name: value.to(device) for name, value in batch.items()})
    finally:
        model.train(was_training)
    elapsed = time.perf_counter() - started
    n_labels = dataset.targets.shape[1]
    own = np.concatenate(found) if found else np.zeros((0, n_labels))
    result = np.zeros((len(dataset), n_labels))
    unreadable: list[int] = []
    seconds: list[float] = []
    for number, (part, theirs, taken) in enumerate(distributed.gather((own, bad, elapsed))):
        result[number :: distributed.world_size()] = part
        unreadable += theirs
        seconds += [taken / len(part)] if len(part) else []
    return Predictions(result, tuple(sorted(unreadable)), float(np.mean(seconds or [0.0])))


def router_report(model: nn.Module) -> dict[str, dict[str, float | None]]:
    """Activation ratio, threshold and mean depth of each adapted layer, over all processes.

    Counts run since the last call of `reset_routers`; all processes must call it together.
    """
    for module in model.modules():
        if isinstance(module, QuasarLayer):
            for block in module.active_blocks():
                if distributed.world_size() > 1:
                    zeros = torch.zeros(3, dtype=torch.int64, device=block.router.steps.device)
                    block.counts = zeros if block.counts is None else block.counts.clone()
                    dist.all_reduce(block.counts)
    return {
        _short(name): {
            "activation_ratio": layer.activation_ratio,
            "threshold": layer.threshold,
            "mean_depth": layer.mean_depth,
        }
        for name, layer in diagnostics(model).items()
    }


def reset_routers(model: nn.Module) -> None:
    """Count anew from here."""
    reset_diagnostics(model)


def _short(name: str) -> str:
    """Qualified name of a decoder layer in its backbone, without what wraps it."""
    parts: Sequence[str] = name.split("base_model.model.")
    return parts[-1].removeprefix("backbone.")
