"""Whether a recipe would run, and what it would take: everything but the training, nothing written.

Memory is an estimate of what one process holds at its peak on the device: weights, gradients and
both moments of AdamW, and the activations that the backward pass needs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from rich.table import Table
from transformers import PreTrainedModel

from medqua.core.adapter import QuasarLayer
from medqua.core.errors import ConfigError, MedQuaError
from medqua.core.model.classifier import MedQuaClassifier, vision_language_model
from medqua.train.data.dataset import Collator, RadiographDataset
from medqua.train.data.manifest import IGNORED
from medqua.train.inputs import make_splits, open_data_set
from medqua.train.model import count_parameters
from medqua.train.processes import distributed
from medqua.train.recipe import Recipe
from medqua.train.stages.prepare import build_any
from medqua.train.trackers.opened import check_installed
from medqua.train.trainer.arguments import micro_batch_size
from medqua.train.trainer.losses import TaskLoss

SAMPLE = 16
"""Images of each split that are decoded."""

ADAM = 12
"""Bytes of a trained float32 parameter beside itself: gradient and two moments."""

ACTIVATIONS = 34
"""Values of two bytes that a transformer layer keeps for each token and each unit of its width
(Korthikanti et al., Reducing Activation Recomputation, MLSys 2023, Eq. 2, without attention maps,
which fused attention does not keep)."""


@dataclass(frozen=True)
class Split:
    """One split as it would be used."""

    name: str
    """`train`, `validate` or `test`."""
    images: int
    """Images."""
    patients: int
    """Patients; 0 where the data does not say."""
    positives: tuple[int, ...]
    """Positives of each label under the label policy."""
    ignored: tuple[int, ...]
    """Images of which the label is masked."""
    unreadable: tuple[str, ...]
    """Images of the sample that cannot be decoded."""


@dataclass(frozen=True)
class Outlook:
    """What a run of a recipe would be."""

    source: str
    """The data in words."""
    labels: tuple[str, ...]
    """Names of the logits."""
    policy: str
    """How labels become targets."""
    splits: tuple[Split, ...]
    """The three splits."""
    absent: int
    """Images that the tables name and that are not there."""
    layers: tuple[str, ...]
    """Modules of the decoder that get an adapter."""
    trainable: int
    """Parameters that are trained."""
    parameters: int
    """All of them."""
    steps: int
    """Optimiser steps."""
    micro_batch: int
    """Images of one forward in one process."""
    processes: int
    """Processes."""
    tokens: int
    """Tokens of one image with the prompt."""
    memory_mib: float
    """Estimated peak of one process, MiB."""
    problems: tuple[str, ...]
    """Why it would fail or be worth nothing; empty if it would run."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values; images that cannot be read are counted, not named."""
        splits = [
            {
                "name": s.name,
                "images": s.images,
                "patients": s.patients,
                "positives": dict(zip(self.labels, s.positives, strict=True)),
                "ignored": dict(zip(self.labels, s.ignored, strict=True)),
                "unreadable_in_sample": len(s.unreadable),
            }
            for s in self.splits
        ]
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return plain | {"splits": splits, "layers": list(self.layers)}


def look_ahead(recipe: Recipe) -> Outlook:
    """Open the data, decode a sample, build the model, run one batch through it; write nothing.

    Raises:
        MedQuaError: What a run would raise before its first step.
    """
    check_installed(recipe.run.trackers)
    if recipe.data.cache:  # a cache would be written
        recipe = replace(recipe, data=replace(recipe.data, cache=""))
    data = open_data_set(recipe.data, lambda _: None)
    splits = make_splits(recipe, data)
    labels = tuple(data.manifest.labels)
    counts = data.manifest.counts()
    seen = tuple(_split(name, split, counts[name]["patients"]) for name, split in splits.items())
    if recipe.head.kind == "linear":
        TaskLoss.of(recipe.optim, labels, splits["train"].targets)
    classifier, backbone = build_any(recipe, labels)
    trainable, total = count_parameters(classifier)
    micro = micro_batch_size(recipe)
    collator = Collator(backbone.processor, recipe.backbone.prompt)
    tokens = 0
    readable = _first_readable(splits["train"])
    if readable is not None:
        tokens = int(collator([splits["train"][readable]])["input_ids"].shape[1])
    steps_an_epoch = max(1, math.ceil(len(splits["train"]) / recipe.optim.batch_size))
    steps = recipe.optim.max_steps or math.ceil(recipe.optim.epochs * steps_an_epoch)
    trains = isinstance(classifier, MedQuaClassifier)
    memory = _weights(classifier)
    if isinstance(classifier, MedQuaClassifier):
        memory += ADAM * trainable + micro * _activations(classifier, recipe, tokens)
    return Outlook(
        source=data.manifest.source,
        labels=labels,
        policy=(
            f"uncertain {recipe.data.uncertain} in training, "
            f"{recipe.data.uncertain_in_evaluation} in evaluation; blank {recipe.data.blank}"
        ),
        splits=seen,
        absent=len(data.absent),
        layers=tuple(
            name for name, module in classifier.named_modules() if isinstance(module, QuasarLayer)
        ),
        trainable=trainable if trains else 0,
        parameters=total,
        steps=steps if trains else 0,
        micro_batch=micro,
        processes=distributed.world_size(),
        tokens=tokens,
        memory_mib=memory / 2**20,
        problems=tuple(_problems(recipe, seen, labels, memory)),
    )


def tables(outlook: Outlook) -> list[Table]:
    """The outlook for people."""
    counts = Table(title=outlook.source, box=None, padding=(0, 2, 0, 0), pad_edge=False)
    counts.add_column("label")
    for split in outlook.splits:
        counts.add_column(split.name, justify="right")
    for i, label in enumerate(outlook.labels):
        masked = [f" ({s.ignored[i]:,} masked)" if s.ignored[i] else "" for s in outlook.splits]
        cells = [f"{s.positives[i]:,}{m}" for s, m in zip(outlook.splits, masked, strict=True)]
        counts.add_row(label, *cells)
    counts.add_row("images", *(f"{s.images:,}" for s in outlook.splits), style="bold")
    counts.add_row("patients", *(f"{s.patients:,}" if s.patients else "?" for s in outlook.splits))
    counts.add_row(f"unreadable of {SAMPLE}", *(str(len(s.unreadable)) for s in outlook.splits))
    run = Table(show_header=False, box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name, value in (
        ("labels", outlook.policy),
        ("absent images", f"{outlook.absent:,}"),
        ("adapted", f"{len(outlook.layers)} layers: {_numbers(outlook.layers)}"),
        ("trained", f"{outlook.trainable:,} of {outlook.parameters:,} parameters"),
        ("steps", f"{outlook.steps:,}, {outlook.micro_batch} images a forward and process"),
        ("processes", str(outlook.processes)),
        ("tokens an image", str(outlook.tokens)),
        ("memory, about", f"{outlook.memory_mib:,.0f} MiB a process"),
    ):
        run.add_row(name, value)
    return [counts, run]


def check_processes(wanted: int) -> None:
    """Refuse more processes than this machine has GPUs, where it has any.

    Raises:
        ConfigError: It has fewer, or `wanted` is below 1.
    """
    if wanted < 1:
        raise ConfigError(f"--processes {wanted}: needed at least 1")
    if torch.cuda.is_available():
        distributed.check_devices(wanted, torch.cuda.device_count())


def _split(name: str, split: RadiographDataset, patients: int) -> Split:
    targets = split.targets
    places = np.unique(np.linspace(0, len(split) - 1, min(SAMPLE, len(split))).astype(int))
    bad = []
    for place in places:
        try:
            split[int(place)]
        except MedQuaError:
            bad.append(split.images[int(place)])
    bad += [name for name in split.unreadable() if name not in bad]
    return Split(
        name,
        len(split),
        patients,
        tuple(int(n) for n in (targets == 1).sum(0)),
        tuple(int(n) for n in (targets == IGNORED).sum(0)),
        tuple(bad),
    )


def _first_readable(split: RadiographDataset) -> int | None:
    for place in range(min(SAMPLE, len(split))):
        try:
            split[place]
        except MedQuaError:
            continue
        return place
    return None


def _weights(model: torch.nn.Module) -> float:
    """Bytes of parameters and buffers."""
    found = [*model.parameters(), *model.buffers()]
    return float(sum(tensor.numel() * tensor.element_size() for tensor in found))


def _activations(classifier: MedQuaClassifier, recipe: Recipe, tokens: int) -> float:
    """Bytes that the backward pass of one image keeps."""
    model: PreTrainedModel = vision_language_model(classifier.backbone)
    text = model.config.get_text_config()
    size = 2 if recipe.backbone.dtype == "bfloat16" else 4
    layers = int(text.num_hidden_layers)
    if recipe.backbone.gradient_checkpointing:
        return float(tokens * text.hidden_size * size * (layers + ACTIVATIONS / 2))
    return float(tokens * text.hidden_size * layers * ACTIVATIONS / 2 * size)


def _problems(
    recipe: Recipe, splits: Sequence[Split], labels: Sequence[str], memory: float
) -> list[str]:
    """What is wrong, each with what to do."""
    found = []
    for split in splits:
        if split.unreadable and not recipe.data.skip_unreadable:
            found.append(
                f"{len(split.unreadable)} images of a sample of {split.name} cannot be read: mend "
                "them, or set data.skip_unreadable=true"
            )
        without = [name for name, n in zip(labels, split.positives, strict=True) if n == 0]
        if len(without) == len(labels):
            found.append(f"{split.name} has no positive of any label: check the label policy")
    if torch.cuda.is_available():
        free = torch.cuda.get_device_properties(0).total_memory
        if memory > free:
            found.append(
                f"about {memory / 2**30:.0f} GiB are needed and the GPU has {free / 2**30:.0f}: "
                "set optim.micro_batch_size lower, backbone.gradient_checkpointing=true, or "
                "backbone.quantize=nf4"
            )
    return found


def _numbers(layers: Sequence[str]) -> str:
    """The decoder's numbers of adapted modules."""
    found = [part for name in layers for part in name.split(".") if part.isdigit()]
    return ", ".join(dict.fromkeys(found)) or "none"
