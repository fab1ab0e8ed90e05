"""What a run measures: predictions, temperatures, figures with intervals, routers, seconds."""

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from medqua.core.findings.calibration import Calibration
from medqua.core.findings.validation import Validation
from medqua.train.data.manifest import IGNORED
from medqua.train.evaluation.influence import influence, without_path
from medqua.train.evaluation.metrics import Figures, evaluate
from medqua.train.evaluation.pooling import pool_studies
from medqua.train.evaluation.predict import Predictions, reset_routers, router_report
from medqua.train.stages.prepare import Run
from medqua.train.statistics.bootstrap import bootstrap_auroc


@dataclass(frozen=True)
class Measured:
    """What the trained model answers, and how it was taken."""

    validated: Predictions
    """Of the validation split."""
    tested: Predictions
    """Of the test split."""
    calibration: Calibration
    """Temperatures from the validation split, or none."""
    routers: dict[str, Any]
    """State of each adapted layer on the test split."""
    classical: Predictions | None
    """Of the test split as if no token had been routed; None without a Quasar adapter."""

    def unreadable(self, run: Run) -> list[str]:
        """Names of validation and test images that could not be read."""
        splits = run.splits
        return [splits["validate"].images[index] for index in self.validated.unreadable] + [
            splits["test"].images[index] for index in self.tested.unreadable
        ]


def measure(run: Run) -> Measured:
    """Predict the validation and the test split, and fit the temperatures."""
    validated = run.predict("validate", "Validation")
    reset_routers(run.classifier)
    tested = run.predict("test", "Test")
    routers = router_report(run.classifier)
    classical = without_path(run.classifier, lambda: run.predict("test", "Test, classical only"))
    return Measured(validated, tested, _calibration(run, validated), routers, classical)


def validation_of(run: Run, measured: Measured) -> Validation:
    """What the validation split shows of each finding: the bundle keeps it."""
    targets = targets_of(run, "validate", measured.validated)
    known = targets != IGNORED
    probabilities = measured.calibration(measured.validated.logits)
    return Validation.measure(probabilities, np.where(known, targets, 0), known)


def path_figures(run: Run, measured: Measured) -> Figures | None:
    """What the quantum path does to the test split; None without one."""
    classical, calibration = measured.classical, measured.calibration
    if classical is None:
        return None
    without = figures(run, "test", classical, calibration, intervals=False)
    return influence(measured.tested, classical, without, calibration)


def seconds_per_image(run: Run) -> float:
    """Seconds of the whole model for one of the first 64 test images, as they are served."""
    some = copy.copy(run.splits["test"])
    some.images, some.targets = some.images[:64], some.targets[:64]
    return replace(run, splits={"test": some}).predict("test", "Timing").seconds_per_image


def untrained_figures(run: Run) -> Figures:
    """The test figures of the model as it is before training, uncalibrated."""
    found = run.predict("test", "Untrained model")
    return figures(run, "test", found, Calibration.identity(len(run.labels)), intervals=False)


def targets_of(run: Run, split: str, found: Predictions) -> npt.NDArray[np.int8]:
    """Targets of a split, all ignored where the image could not be read."""
    targets = run.splits[split].targets.copy()
    targets[list(found.unreadable)] = IGNORED
    return targets


def figures(
    run: Run, split: str, found: Predictions, calibration: Calibration, *, intervals: bool
) -> Figures:
    """Metrics of a split, with intervals where they are asked for."""
    evaluation = run.recipe.evaluation
    logits, targets = found.logits, targets_of(run, split, found)
    clusters = _clusters(run.data.manifest.split(split))
    counted: Figures = {"unit": evaluation.unit}
    if evaluation.unit == "study":
        studies = _studies(run.data.manifest.split(split))
        pooled = pool_studies(logits, targets, studies, evaluation.study_pool, found.unreadable)
        logits, targets = pooled.logits, pooled.targets
        clusters = [clusters[position] for position in pooled.first]
        counted |= {"images": len(found.logits), "studies": len(logits)}
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
    return evaluate(logits, calibration(logits), targets, run.labels, bounds) | counted


def _calibration(run: Run, validated: Predictions) -> Calibration:
    targets = targets_of(run, "validate", validated)
    if not run.recipe.evaluation.calibrate:
        return Calibration.identity(targets.shape[1])
    known = targets != IGNORED
    return Calibration.fit(validated.logits, np.where(known, targets, 0), known)


def _clusters(rows: pl.DataFrame) -> list[str]:
    """Whose each image is; images without a patient stand for themselves."""
    return [str(patient or image) for patient, image in rows.select("patient_id", "image").rows()]


def _studies(rows: pl.DataFrame) -> list[str]:
    """The examination of each image; images without one stand for themselves."""
    return [
        f"{patient}/{study}" if study else image
        for patient, study, image in rows.select("patient_id", "study_id", "image").rows()
    ]
