"""What a run writes: predictions, the list of skipped images, pictures, the bundle."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from medqua.core.errors import ConfigError
from medqua.core.findings.calibration import Calibration
from medqua.core.findings.validation import Validation
from medqua.core.model.bundle import Bundle
from medqua.train.evaluation.predict import Predictions
from medqua.train.evaluation.zero_shot import ZeroShotClassifier
from medqua.train.figures import draw_learning, draw_reliability, draw_roc
from medqua.train.publish.licences import licence_of
from medqua.train.stages.measure import Measured, targets_of
from medqua.train.stages.prepare import Run
from medqua.train.trainer.early import best_step


def make_bundle(
    run: Run, calibration: Calibration, card: str = "", validation: Validation | None = None
) -> Bundle:
    """The trained model with all that decides its predictions, and its card.

    Raises:
        ConfigError: Nothing was trained.
    """
    if isinstance(run.classifier, ZeroShotClassifier):
        raise ConfigError("head.kind = 'answers' trains nothing: there is no model to bundle")
    manifest = run.data.manifest
    kind = getattr(run.recipe.data, "kind", "")
    return Bundle(
        classifier=run.classifier,
        backbone=run.backbone,
        image=run.recipe.image,
        labels=run.labels,
        prompt=run.recipe.backbone.prompt,
        calibration=calibration,
        training_data={"name": manifest.source, "fingerprint": manifest.fingerprint},
        license=licence_of(kind, synthetic=run.data.synthetic),
        card=card,
        validation=validation,
    )


def write_predictions(run: Run, measured: Measured) -> None:
    """Logits and probabilities beside the manifest's keys."""
    tables = []
    found: Mapping[str, Predictions] = {"validate": measured.validated, "test": measured.tested}
    for split, predictions in found.items():
        keys = run.data.manifest.split(split).select("image", "patient_id", "study_id", "split")
        probabilities = measured.calibration(predictions.logits)
        readable = np.ones(len(predictions.logits), dtype=bool)
        readable[list(predictions.unreadable)] = False
        columns = [pl.Series("readable", readable)]
        for i, label in enumerate(run.labels):
            columns.append(pl.Series(f"{label} logit", predictions.logits[:, i]))
            columns.append(pl.Series(f"{label} probability", probabilities[:, i]))
        tables.append(keys.with_columns(columns))
    pl.concat(tables).write_parquet(run.folder / "predictions.parquet")


def write_skipped(folder: Path, skipped: Sequence[str]) -> None:
    """Names of images that were skipped, if any."""
    if skipped:
        (folder / "unreadable.txt").write_text("\n".join(sorted(set(skipped))) + "\n", "utf-8")


def draw(run: Run, measured: Measured, history: Sequence[Mapping[str, Any]]) -> None:
    """The pictures of the run, into `plots/`."""
    title = run.data.manifest.source.split(" (")[0]
    targets = targets_of(run, "test", measured.tested)
    plots, logits = run.folder / "plots", measured.tested.logits
    draw_roc(plots / "roc.png", logits, targets, run.labels, f"{title}, test")
    before = 1 / (1 + np.exp(-logits.astype(np.float64)))
    calibrated = measured.calibration(logits).astype(np.float64)
    told = (("calibrated", calibrated[None]), ("as the model says", before[None]))
    draw_reliability(plots / "reliability.png", told, targets)
    if history:
        kept = best_step(history) if run.recipe.evaluation.choose_best else None
        draw_learning(plots / "learning.png", history, title, kept)
