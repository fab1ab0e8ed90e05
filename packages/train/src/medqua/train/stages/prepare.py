"""What a run prepares: data, splits, model; and hidden states of frozen layers, where it may."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from medqua.core.errors import ConfigError
from medqua.core.model.backbone import Backbone
from medqua.core.model.classifier import MedQuaClassifier
from medqua.train.data.dataset import Collator, RadiographDataset
from medqua.train.display import progress
from medqua.train.evaluation.predict import Predictions, predict
from medqua.train.evaluation.zero_shot import UNTAUGHT, ZeroShotClassifier
from medqua.train.inputs import DataSet, make_splits, open_data_set
from medqua.train.model import build_model, count_parameters, open_backbone
from medqua.train.prefix.cut import skipping
from medqua.train.prefix.prepare import prepare
from medqua.train.processes import distributed
from medqua.train.processes.sharding import shard
from medqua.train.recipe import Recipe
from medqua.train.record import RunState, check_same_data
from medqua.train.typed import as_plain


@dataclass(frozen=True)
class Run:
    """Everything of one run that its stages share."""

    recipe: Recipe
    """What to do."""
    folder: Path
    """Where to leave it."""
    console: Console
    """Where to speak; quiet on all ranks but the first."""
    data: DataSet
    """The data set."""
    splits: Mapping[str, RadiographDataset]
    """Its three splits."""
    classifier: MedQuaClassifier | ZeroShotClassifier
    """The model."""
    backbone: Backbone
    """What it was built on."""
    collator: Collator
    """Samples to batches."""

    @property
    def zero_shot(self) -> bool:
        """Whether the backbone is asked and nothing is trained."""
        return isinstance(self.classifier, ZeroShotClassifier)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the logits, in their order."""
        return tuple(self.data.manifest.labels)

    def say(self, what: str) -> None:
        """Tell a person."""
        self.console.print(what, highlight=False)

    def predict(self, split: str, what: str) -> Predictions:
        """Logits of a split."""
        evaluation = self.recipe.evaluation
        with progress(self.console, what, len(self.splits[split])) as advance:
            return predict(
                self.classifier,
                self.splits[split],
                self.collator,
                batch_size=evaluation.batch_size,
                workers=self.recipe.data.workers,
                advance=advance,
            )


def prepare_run(
    recipe: Recipe,
    folder: Path,
    console: Console,
    state: RunState,
    *,
    resume: bool,
    model: type[MedQuaClassifier] = MedQuaClassifier,
) -> Run:
    """Open the data, build the model, put it where it runs, and say what will be trained.

    Raises:
        MedQuaError: The data or the recipe do not do, or the data changed since the run began.
    """
    say = partial(console.print, highlight=False)
    data = open_data_set(recipe.data, say)
    splits = make_splits(recipe, data, partial(progress, console))
    if resume:
        check_same_data(state.record, data.manifest.fingerprint)
    state.add(data=describe_data(data), data_hash=data.manifest.fingerprint)
    say(f"{data.manifest.source}: " + ", ".join(f"{k} {len(v):,}" for k, v in splits.items()))
    classifier, backbone = build_any(recipe, data.manifest.labels, model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if recipe.run.parallel == "fsdp" and isinstance(classifier, MedQuaClassifier):
        shard(classifier, device)
    else:
        classifier.to(device)
    say(_what_is_trained(recipe, *count_parameters(classifier)))
    if isinstance(classifier, ZeroShotClassifier):
        say(_what_is_asked(classifier, backbone))
        state.add(questions=list(classifier.questions))
    if distributed.is_main():
        data.manifest.write(folder / "manifest.parquet")
    collator = Collator(backbone.processor, recipe.backbone.prompt)
    return Run(recipe, folder, console, data, splits, classifier, backbone, collator)


def build_any(
    recipe: Recipe, labels: Sequence[str], model: type[MedQuaClassifier] = MedQuaClassifier
) -> tuple[MedQuaClassifier | ZeroShotClassifier, Backbone]:
    """What is trained and evaluated, or only evaluated.

    Raises:
        ConfigError: The adapter does not fit the backbone.
        BackboneError: The backbone cannot be loaded or adapted.
    """
    if recipe.head.kind == "linear":
        return build_model(recipe, len(labels), model)
    backbone = open_backbone(recipe)
    size = recipe.image.size
    if size is None:
        raise ConfigError("image.size is not given: batches need images of one size")
    return ZeroShotClassifier(backbone, labels, size, recipe.head.question), backbone


def from_prefix(run: Run, undo: ExitStack) -> Run:
    """The run on hidden states kept in `run.prefix`, until `undo` is closed; itself without them.

    Where the whole model is needed in every epoch, it says why and goes on with it.
    """
    recipe, classifier = run.recipe, run.classifier
    if not recipe.run.prefix or isinstance(classifier, ZeroShotClassifier):
        return run
    made_from = {
        "data": as_plain(recipe.data),
        "image": as_plain(recipe.image),
        "manifest": run.data.manifest.fingerprint,
    }
    count = sum(map(len, run.splits.values()))
    with progress(run.console, "Frozen layers", count) as advance:
        found = prepare(
            classifier,
            run.splits,
            run.collator,
            Path(recipe.run.prefix).expanduser(),
            made_from,
            batch_size=recipe.evaluation.batch_size,
            advance=advance,
        )
    if isinstance(found, str):
        run.say(f"Running the whole model every time: {found}")
        return run
    prefix, splits, collator = found
    undo.enter_context(skipping(classifier, prefix))
    run.say(f"Starting from kept hidden states, {prefix.layers} decoder layers up")
    return replace(run, splits=splits, collator=collator)


def preload(run: Run) -> None:
    """Read all images into memory, with this process's threads."""
    with progress(run.console, "Reading images", sum(map(len, run.splits.values()))) as advance:
        for split in run.splits.values():
            split.preload(torch.get_num_threads(), advance)


def describe_data(data: DataSet) -> dict[str, Any]:
    """What `run.json` and `metrics.json` say of the data; no names of images."""
    manifest = data.manifest
    return {
        "source": manifest.source,
        "fingerprint": manifest.fingerprint,
        "synthetic": data.synthetic,
        "splits": manifest.counts(),
        "labels": list(manifest.labels),
        "absent": len(data.absent),
    }


def _what_is_trained(recipe: Recipe, trainable: int, total: int) -> str:
    if recipe.head.kind == "answers":
        return f"Training nothing: 0 of {total:,} parameters"
    attached = {"quasar": "the adapter and ", "lora": "LoRA and ", "none": ""}
    if recipe.adapter.lora is not None:
        attached["quasar"] = "the adapter, LoRA and "
    what = {
        "full": f"the whole backbone, {attached[recipe.backbone.adapter]}the head",
        "adapter": f"{attached[recipe.backbone.adapter]}the head; the backbone is frozen",
        "head": "the head alone",
    }[recipe.backbone.tuned]
    why = ""
    if recipe.backbone.source == "tiny" and recipe.backbone.tuned == "full":
        why = " (the tiny backbone is random, so all of it is trained)"
    return f"Training {what}{why}: {trainable:,} of {total:,} parameters"


def _what_is_asked(classifier: ZeroShotClassifier, backbone: Backbone) -> str:
    asked = f"Asking {len(classifier.questions)} questions an image: {classifier.questions[0]} ..."
    if backbone.source in UNTAUGHT:
        asked += f"\n{backbone.source} never learned to answer questions: its answers are chance"
    return asked
