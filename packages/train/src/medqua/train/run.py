"""One run, from a recipe to its folder: data, model, training, calibration, evaluation, bundle."""

import copy
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter
from transformers import set_seed

from medqua.core.errors import ConfigError
from medqua.core.findings.calibration import Calibration
from medqua.core.model.backbone import Backbone
from medqua.core.model.bundle import Bundle
from medqua.core.model.classifier import MedQuaClassifier
from medqua.train import distributed
from medqua.train.checkpoint import put_trained_state, trained_state
from medqua.train.data.dataset import Collator, RadiographDataset
from medqua.train.data.manifest import IGNORED, Manifest
from medqua.train.display import log_line, progress
from medqua.train.figures import draw_learning, draw_roc
from medqua.train.inputs import DataSet, make_splits, open_data_set
from medqua.train.metrics import Figures, evaluate
from medqua.train.model import build_model, count_parameters, open_backbone
from medqua.train.pooling import pool_studies
from medqua.train.predict import Predictions, predict, reset_routers, router_report
from medqua.train.prefix.cut import skipping
from medqua.train.prefix.prepare import prepare
from medqua.train.recipe import Recipe
from medqua.train.record import (
    RunState,
    check_same_data,
    check_same_recipe,
    describe_run,
    peak_memory_mib,
    prepare_folder,
    read_json,
    write_json,
)
from medqua.train.sharding import is_sharded, shard
from medqua.train.statistics.bootstrap import bootstrap_auroc
from medqua.train.trainer import MedQuaTrainer
from medqua.train.typed import as_plain
from medqua.train.zero_shot import UNTAUGHT, ZeroShotClassifier

LICENCES = {
    "mimic": "PhysioNet Credentialed Health Data License 1.5.0: do not pass on these weights.",
    "chestmnist": "CC BY 4.0 (MedMNIST; NIH ChestX-ray14)",
    "nih": "NIH Clinical Center asks for attribution: Wang et al., ChestX-ray8, CVPR 2017.",
    "chexpert": "Stanford University Dataset Research Use Agreement: no commercial use.",
    "vindr": "PhysioNet Credentialed Health Data License 1.5.0: do not pass on these weights.",
}
"""Terms that the training data puts on weights, by kind of data."""


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


def train(recipe: Recipe, folder: Path, console: Console, *, resume: bool = False) -> Figures:
    """Do a run.

    Every process of a run calls this with the same arguments; rank 0 writes.

    Args:
        recipe: What to do.
        folder: The run folder.
        console: Where to speak.
        resume: Go on from the last checkpoint in the folder; so does a run that a launcher
            started again.

    Returns:
        What `metrics.json` holds.

    Raises:
        MedQuaError: The data, the recipe or the folder do not do; see the message.
        KeyboardInterrupt: Stopped by Ctrl-C or SIGTERM, after a checkpoint was written.
    """
    distributed.start(recipe.run.threads, recipe.run.timeout)
    if not distributed.is_main():
        console = Console(quiet=True)
    set_seed(recipe.run.seed)
    resume = resume or (distributed.restarted() and (folder / "run.json").is_file())
    if resume:
        check_same_recipe(folder, recipe)
    with distributed.main_first() as main:
        if main:
            prepare_folder(folder, resume=resume)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    record = read_json(folder / "run.json") if resume else describe_run(recipe, device)
    if resume:
        record.setdefault("resumed", []).append(describe_run(recipe, device)["started"])
    state = RunState(folder, record)
    state.write("running")
    try:
        metrics = _train(recipe, folder, console, state, resume=resume)
    except KeyboardInterrupt:
        state.write("interrupted")
        raise
    except BaseException as error:
        state.failed(error)
        lost = distributed.lost_peer(error)
        if lost is not None:
            raise lost from error
        raise
    state.write("complete")
    return metrics


def _train(
    recipe: Recipe, folder: Path, console: Console, state: RunState, *, resume: bool
) -> Figures:
    """The stages, one after the other."""
    say = partial(console.print, highlight=False)
    data = open_data_set(recipe.data, say)
    splits = make_splits(recipe, data, partial(progress, console))
    if resume:
        check_same_data(state.record, data.manifest.fingerprint)
    state.add(data=_describe(data.manifest, data), data_hash=data.manifest.fingerprint)
    say(f"{data.manifest.source}: " + ", ".join(f"{k} {len(v):,}" for k, v in splits.items()))
    classifier, backbone = _model(recipe, data.manifest.labels)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if recipe.run.parallel == "fsdp" and isinstance(classifier, MedQuaClassifier):
        shard(classifier, device)
    else:
        classifier.to(device)
    collator = Collator(backbone.processor, recipe.backbone.prompt)
    run = Run(recipe, folder, console, data, splits, classifier, backbone, collator)
    trainable, total = count_parameters(classifier)
    say(_what_is_trained(recipe, trainable, total))
    if isinstance(classifier, ZeroShotClassifier):
        say(_what_is_asked(classifier, backbone))
        state.add(questions=list(classifier.questions))
    if distributed.is_main():
        data.manifest.write(folder / "manifest.parquet")
    whole, undo = run, ExitStack()
    run = _from_prefix(run, undo)
    if recipe.data.keep_in_memory and run is whole:
        _preload(splits, console)
    untrained = None
    if recipe.evaluation.untrained and not run.zero_shot:
        untrained = _untrained(run)
        say(f"untrained: test macro AUROC {_shown(untrained['macro_auroc'])}")
    history, seconds, skipped = _fit(run, state, resume=resume)
    validated = run.predict("validate", "Validation")
    reset_routers(classifier)
    tested = run.predict("test", "Test")
    routers = router_report(classifier)
    undo.close()
    seconds_per_image = tested.seconds_per_image if run is whole else _seconds(whole)
    skipped += [splits["validate"].images[index] for index in validated.unreadable]
    skipped += [splits["test"].images[index] for index in tested.unreadable]
    calibration = _calibration(run, validated)
    metrics: Figures = {
        "test": _figures(run, "test", tested, calibration, intervals=True),
        "validate": _figures(run, "validate", validated, calibration, intervals=False),
        "untrained": untrained,
        "router": routers,
        "seconds_per_image": seconds_per_image,
        "trainable_parameters": trainable,
        "parameters": total,
        "training_seconds": seconds,
        "peak_memory_mib": peak_memory_mib(),
        "steps": max((int(line["step"]) for line in history), default=0),
        "data": {**_describe(data.manifest, data), "skipped": len(data.absent) + len(skipped)},
    }
    served = _gathered(run)
    if distributed.is_main():
        write_json(folder / "metrics.json", metrics)
        _write_predictions(run, {"validate": validated, "test": tested}, calibration)
        _write_skipped(folder, [*data.absent, *skipped])
        if recipe.evaluation.plots:
            _draw(run, tested, history)
        if run.zero_shot:
            say(f"Nothing was trained, so there is no bundle; everything of the run is in {folder}")
        else:
            bundle = make_bundle(served, calibration).save(folder / "bundle", overwrite=True)
            say(f"The model is in {bundle}, everything of the run in {folder}")
    distributed.gather(None)
    return metrics


def make_bundle(run: Run, calibration: Calibration) -> Bundle:
    """The trained model with all that decides its predictions.

    Raises:
        ConfigError: Nothing was trained.
    """
    if isinstance(run.classifier, ZeroShotClassifier):
        raise ConfigError("head.kind = 'answers' trains nothing: there is no model to bundle")
    data = run.data
    licence = "Synthetic training data (phantoms); no patient data." if data.synthetic else ""
    return Bundle(
        classifier=run.classifier,
        backbone=run.backbone,
        image=run.recipe.image,
        labels=data.manifest.labels,
        prompt=run.recipe.backbone.prompt,
        calibration=calibration,
        training_data={"name": data.manifest.source, "fingerprint": data.manifest.fingerprint},
        license=licence
        or LICENCES.get(
            getattr(run.recipe.data, "kind", ""),
            "Not stated: treat the weights as bound by the terms of the training data.",
        ),
    )


def _preload(splits: Mapping[str, RadiographDataset], console: Console) -> None:
    """Read all images into memory, with this process's threads."""
    with progress(console, "Reading images", sum(map(len, splits.values()))) as advance:
        for split in splits.values():
            split.preload(torch.get_num_threads(), advance)


def _from_prefix(run: Run, undo: ExitStack) -> Run:
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
        run.console.print(f"Running the whole model every time: {found}", highlight=False)
        return run
    prefix, splits, collator = found
    undo.enter_context(skipping(classifier, prefix))
    run.console.print(
        f"Starting from kept hidden states, {prefix.layers} decoder layers up", highlight=False
    )
    return replace(run, splits=splits, collator=collator)


def _seconds(run: Run) -> float:
    """Seconds of the whole model for one of the first 64 test images, as they are served."""
    some = copy.copy(run.splits["test"])
    some.images, some.targets = some.images[:64], some.targets[:64]
    return replace(run, splits={"test": some}).predict("test", "Timing").seconds_per_image


def _untrained(run: Run) -> Figures:
    """The test figures of the model as it is before training, uncalibrated."""
    found = run.predict("test", "Untrained model")
    identity = Calibration.identity(len(run.data.manifest.labels))
    return _figures(run, "test", found, identity, intervals=False)


def _fit(
    run: Run, state: RunState, *, resume: bool
) -> tuple[list[dict[str, Any]], float, list[str]]:
    """Train; the log, seconds, and names of training images that could not be read."""
    recipe, folder = run.recipe, run.folder
    if isinstance(run.classifier, ZeroShotClassifier):
        return [], 0.0, []
    writer = None
    if recipe.run.tensorboard and distributed.is_main():
        writer = SummaryWriter(str(folder / "tensorboard"))

    def log(line: dict[str, float]) -> None:
        log_line(run.console, trainer.state.max_steps, line)
        if writer is not None:
            _to_tensorboard(writer, line)

    trainer = MedQuaTrainer(
        run.classifier,
        recipe,
        run.splits["train"],
        run.splits["validate"],
        run.collator,
        folder / "trainer_state",
        log,
        partial(run.console.print, highlight=False),
        lambda: state.failed(TimeoutError("stopped while waiting for another process")),
    )
    checkpoint = trainer.checkpoints.last() if resume else None
    if checkpoint is not None:
        run.console.print(f"Resuming from {checkpoint.name}", highlight=False)
    started = time.perf_counter()
    with trainer.stop.on_signals():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if writer is not None:
        writer.close()
    if trainer.stop.wanted:
        run.console.print(f"Stopped. Go on with: --output {folder} --resume")
        raise KeyboardInterrupt
    if distributed.is_main():
        trainer.state.save_to_json(str(folder / "trainer_state" / "trainer_state.json"))
    skipped = set(run.splits["train"].unreadable())
    for part in distributed.gather(sorted(trainer.unreadable)):
        skipped |= {run.splits["train"].images[index] for index in part}
    return trainer.state.log_history, time.perf_counter() - started, sorted(skipped)


def _gathered(run: Run) -> Run:
    """The run with its model whole on rank 0, where it was sharded."""
    if not isinstance(run.classifier, MedQuaClassifier) or not is_sharded(run.classifier):
        return run
    state = trained_state(run.classifier)
    if not distributed.is_main():
        return run
    classifier, backbone = build_model(run.recipe, len(run.data.manifest.labels))
    put_trained_state(classifier, state, "the sharded model")
    return replace(run, classifier=classifier, backbone=backbone)


def _to_tensorboard(writer: SummaryWriter, line: Mapping[str, float]) -> None:
    for name, value in line.items():
        if name not in ("step", "epoch"):
            writer.add_scalar(name, value, int(line["step"]))


def _calibration(run: Run, validated: Predictions) -> Calibration:
    """Temperatures from the validation split, or none."""
    targets = _targets(run, "validate", validated)
    if not run.recipe.evaluation.calibrate:
        return Calibration.identity(targets.shape[1])
    known = targets != IGNORED
    return Calibration.fit(validated.logits, np.where(known, targets, 0), known)


def _targets(run: Run, split: str, found: Predictions) -> npt.NDArray[np.int8]:
    """Targets of a split, all ignored where the image could not be read."""
    targets = run.splits[split].targets.copy()
    targets[list(found.unreadable)] = IGNORED
    return targets


def _figures(
    run: Run, split: str, found: Predictions, calibration: Calibration, *, intervals: bool
) -> Figures:
    """Metrics of a split, with intervals where they are asked for."""
    evaluation = run.recipe.evaluation
    logits, targets = found.logits, _targets(run, split, found)
    clusters = _clusters(run.data.manifest.split(split))
    counted: Figures = {"unit": evaluation.unit}
    if evaluation.unit == "study":
        studies = _studies(run.data.manifest.split(split))
        pooled = pool_studies(logits, targets, studies, evaluation.study_pool, found.unreadable)
        logits, targets = pooled.logits, pooled.targets
        clusters = [clusters[position] for position in pooled.first]
    bounds = None
    if intervals and evaluation.bootstrap:
        bounds = bootstrap_auroc(
            logits,
            targets,
            clusters,
            resamples=evaluation.bootstrap,
            confidence=evaluation.confidence,
            seed=run.recipe.run.seed,
        )
    labels = run.data.manifest.labels
    figures = evaluate(logits, calibration(logits), targets, labels, bounds)
    if evaluation.unit == "study":
        counted |= {"images": len(found.logits), "studies": len(logits)}
    return figures | counted


def _clusters(rows: pl.DataFrame) -> list[str]:
    """Whose each image is; images without a patient stand for themselves."""
    return [str(patient or image) for patient, image in rows.select("patient_id", "image").rows()]


def _studies(rows: pl.DataFrame) -> list[str]:
    """The examination of each image; images without one stand for themselves."""
    return [
        f"{patient}/{study}" if study else image
        for patient, study, image in rows.select("patient_id", "study_id", "image").rows()
    ]


def _describe(manifest: Manifest, data: DataSet) -> dict[str, Any]:
    return {
        "source": manifest.source,
        "fingerprint": manifest.fingerprint,
        "synthetic": data.synthetic,
        "splits": manifest.counts(),
        "labels": list(manifest.labels),
        "absent": len(data.absent),
    }


def _model(
    recipe: Recipe, labels: Sequence[str]
) -> tuple[MedQuaClassifier | ZeroShotClassifier, Backbone]:
    """What is trained and evaluated, or only evaluated."""
    if recipe.head.kind == "linear":
        return build_model(recipe, len(labels))
    backbone = open_backbone(recipe)
    size = recipe.image.size
    if size is None:
        raise ConfigError("image.size is not given: batches need images of one size")
    return ZeroShotClassifier(backbone, labels, size, recipe.head.question), backbone


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


def _write_predictions(
    run: Run, found: Mapping[str, Predictions], calibration: Calibration
) -> None:
    """Logits and probabilities beside the manifest's keys."""
    tables = []
    for split, predictions in found.items():
        keys = run.data.manifest.split(split).select("image", "patient_id", "study_id", "split")
        probabilities = calibration(predictions.logits)
        readable = np.ones(len(predictions.logits), dtype=bool)
        readable[list(predictions.unreadable)] = False
        columns = [pl.Series("readable", readable)]
        for i, label in enumerate(run.data.manifest.labels):
            columns.append(pl.Series(f"{label} logit", predictions.logits[:, i]))
            columns.append(pl.Series(f"{label} probability", probabilities[:, i]))
        tables.append(keys.with_columns(columns))
    pl.concat(tables).write_parquet(run.folder / "predictions.parquet")


def _write_skipped(folder: Path, skipped: list[str]) -> None:
    if skipped:
        (folder / "unreadable.txt").write_text("\n".join(sorted(set(skipped))) + "\n", "utf-8")


def _draw(run: Run, tested: Predictions, history: list[dict[str, Any]]) -> None:
    labels = run.data.manifest.labels
    title = run.data.manifest.source.split(" (")[0]
    targets = _targets(run, "test", tested)
    draw_roc(run.folder / "plots" / "roc.png", tested.logits, targets, labels, f"{title}, test")
    draw_learning(run.folder / "plots" / "learning.png", history, title)


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
