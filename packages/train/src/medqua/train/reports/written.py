"""Texts for the images of a split: what the model writes, and those of the nearest images."""

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from jaxtyping import Float64
from peft import PeftModel
from torch.utils.data import DataLoader, Subset

from medqua.core.model.classifier import MedQuaClassifier
from medqua.train.data.augmentation import Augmentation
from medqua.train.data.dataset import Collator, RadiographDataset, Sample
from medqua.train.processes import distributed
from medqua.train.reports.writer import write_reports

NEIGHBOURS = 5000
"""Training images, evenly spaced, that are looked at for the nearest."""


def write_split(
    classifier: MedQuaClassifier,
    dataset: RadiographDataset,
    collator: Collator,
    *,
    max_tokens: int,
    batch_size: int,
    advance: Callable[[int], None] = lambda _: None,
) -> list[str | None]:
    """Write a report for each image of a split, over all processes.

    Returns:
        A text for each image; None where it could not be read. The same on every process.
    """
    processes = distributed.world_size()
    mine = range(distributed.rank(), len(dataset), processes)
    own: list[str | None] = []
    for start in range(0, len(mine), batch_size):
        images = [dataset.read(i) for i in mine[start : start + batch_size]]
        seen = [image for image in images if image is not None]
        written = iter(
            write_reports(
                classifier.backbone,
                collator.processor,
                seen,
                collator.prompt,
                max_tokens=max_tokens,
            )
            if seen
            else []
        )
        own += [None if image is None else next(written) for image in images]
        advance(len(images) * processes)
    result: list[str | None] = [None] * len(dataset)
    for number, part in enumerate(distributed.gather(own)):
        result[number::processes] = part
    return result


def nearest_reports(
    classifier: MedQuaClassifier,
    train: RadiographDataset,
    reports: Sequence[str],
    test: RadiographDataset,
    collator: Collator,
    *,
    batch_size: int,
    advance: Callable[[int], None] = lambda _: None,
) -> list[str]:
    """The report of the training image that is nearest by what the bare backbone sees.

    Nearest is by the cosine of the pooled hidden states, the training mean taken off. Adapters
    are switched off.

    Args:
        classifier: Before training, if training changes the backbone.
        train: Training split, of which at most `NEIGHBOURS` images are looked at.
        reports: Of its images.
        test: The split that wants texts.
        collator: Of batches without reports.
        batch_size: Images of one forward.
        advance: Called with the number of images done.
    """
    places = np.unique(np.linspace(0, len(train) - 1, min(NEIGHBOURS, len(train))).astype(int))
    whole = range(len(test))
    known = _seen(classifier, train, places.tolist(), collator, batch_size, advance)
    asked = _seen(classifier, test, whole, collator, batch_size, advance)
    centre = known.mean(axis=0)
    known, asked = (_unit(values - centre) for values in (known, asked))
    return [reports[places[i]] for i in (asked @ known.T).argmax(axis=1)]


@torch.no_grad()
def _seen(
    classifier: MedQuaClassifier,
    dataset: RadiographDataset,
    places: Sequence[int],
    collator: Collator,
    batch_size: int,
    advance: Callable[[int], None],
) -> Float64[np.ndarray, "n d"]:
    """Pooled hidden states of some images without adapters, the same on every process."""
    processes = distributed.world_size()
    mine = list(places)[distributed.rank() :: processes]
    still = copy.copy(dataset)
    still.augmentation = Augmentation()
    loader: DataLoader[Sample] = DataLoader(
        Subset(still, mine), batch_size=batch_size, collate_fn=collator
    )
    device = next(classifier.parameters()).device
    backbone = classifier.backbone
    bare = backbone.disable_adapter() if isinstance(backbone, PeftModel) else nullcontext()
    pooled: list[np.ndarray] = []

    def keep(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
        pooled.append(inputs[0].double().cpu().numpy())

    was_training = classifier.training
    hook = classifier.head.register_forward_pre_hook(keep)
    classifier.eval()
    try:
        with bare:
            for batch in loader:
                for name in ("labels", "index", "readable"):
                    batch.pop(name)
                classifier(**{name: value.to(device) for name, value in batch.items()})
                advance(len(batch["input_ids"]) * processes)
    finally:
        hook.remove()
        classifier.train(was_training)
    width = classifier.head.in_features
    result = np.zeros((len(places), width))
    for number, part in enumerate(
        distributed.gather(np.concatenate(pooled) if pooled else np.zeros((0, width)))
    ):
        result[number::processes] = part
    return result


def _unit(values: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, "n d"]:
    result: Float64[np.ndarray, "n d"] = values / np.maximum(
        np.linalg.norm(values, axis=1, keepdims=True), 1e-12
    )
    return result
