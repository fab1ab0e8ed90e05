"""How good a multi-label model is: figures per label, and their means over labels.

A figure that cannot be computed is None and says why; it never becomes 0 or 0.5.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int8
from torchmetrics.functional.classification import binary_average_precision

from medqua.core.findings.calibration import expected_calibration_error
from medqua.train.data.manifest import IGNORED
from medqua.train.statistics.auroc import weighted_auroc
from medqua.train.statistics.bootstrap import AurocIntervals

Figures = dict[str, Any]
"""Names to numbers, None, or further figures: what goes into `metrics.json`."""


def evaluate(
    logits: Float64[np.ndarray, "n l"],
    probabilities: Float64[np.ndarray, "n l"],
    targets: Int8[np.ndarray, "n l"],
    labels: Sequence[str],
    intervals: AurocIntervals | None = None,
) -> Figures:
    """All figures of one evaluation.

    Args:
        logits: `[N, L]`; ranks are taken from them, where a saturated probability would tie.
        probabilities: `[N, L]` in [0, 1], calibrated.
        targets: `[N, L]` of 1, 0 and `IGNORED`.
        labels: L names.
        intervals: Bootstrap intervals of AUROC.

    Returns:
        `macro_auroc`, `macro_auprc`, `accuracy` (mean over labels of the accuracy at 0.5, as
        MedMNIST defines it), `all_negative_accuracy` (the same of a model that always says no),
        `ece`, `brier` (means over labels), `labels` (how many the macro AUROC is a mean of),
        `images`, and `per_label`.
    """
    per_label: Figures = {}
    for i, name in enumerate(labels):
        known = targets[:, i] != IGNORED
        figures = _label(logits[known, i], probabilities[known, i], targets[known, i])
        if intervals is not None:
            interval = intervals.per_label[i]
            figures["auroc_ci95"] = None if interval.bounds is None else list(interval.bounds)
            if interval.reason is not None and figures["reason"] is None:
                figures["reason"] = interval.reason
        per_label[name] = figures
    rows = list(per_label.values())
    result: Figures = {
        "macro_auroc": _mean(rows, "auroc"),
        "macro_auroc_ci95": None,
        "macro_auprc": _mean(rows, "auprc"),
        "accuracy": _mean(rows, "accuracy"),
        "all_negative_accuracy": _mean(rows, "all_negative_accuracy"),
        "ece": _mean(rows, "ece"),
        "brier": _mean(rows, "brier"),
        "labels": sum(row["auroc"] is not None for row in rows),
        "images": len(targets),
        "per_label": per_label,
    }
    if intervals is not None and intervals.macro.bounds is not None:
        result["macro_auroc_ci95"] = list(intervals.macro.bounds)
    if result["macro_auroc"] is None:
        result["reason"] = "no label has both a positive and a negative image"
    return result


def macro_auroc(
    logits: Float64[np.ndarray, "n l"], targets: Int8[np.ndarray, "n l"]
) -> float | None:
    """Mean AUROC over the labels that have one; None if none has."""
    found = [auroc(logits[:, i], targets[:, i]) for i in range(targets.shape[1])]
    defined = [value for value in found if value is not None]
    return float(np.mean(defined)) if defined else None


def auroc(scores: Float64[np.ndarray, " n"], targets: Int8[np.ndarray, " n"]) -> float | None:
    """Area under the ROC curve of one label, ties counted half; None where it has no meaning.

    Args:
        scores: `[N]`, larger means present.
        targets: `[N]` of 1, 0 and `IGNORED`.
    """
    known = targets != IGNORED
    value = weighted_auroc(scores[known], targets[known], np.ones((1, int(known.sum()))))[0]
    return None if np.isnan(value) else float(value)


def _label(
    logits: Float64[np.ndarray, " n"],
    probabilities: Float64[np.ndarray, " n"],
    targets: Int8[np.ndarray, " n"],
) -> Figures:
    """Figures of one label, over the images of which it is known."""
    present: Bool[np.ndarray, " n"] = targets == 1
    positives, known = int(present.sum()), len(targets)
    area = auroc(logits, targets)
    precision = None
    if positives:
        precision = float(
            binary_average_precision(
                torch.from_numpy(_ranks(logits)), torch.from_numpy(present).int()
            )
        )
    figures: Figures = {
        "auroc": area,
        "auroc_ci95": None,
        "auprc": precision,
        "accuracy": None,
        "all_negative_accuracy": None,
        "ece": None,
        "brier": None,
        "positives": positives,
        "negatives": known - positives,
        "reason": None,
    }
    if known:
        figures["accuracy"] = float(np.mean((probabilities > 0.5) == present))
        figures["all_negative_accuracy"] = float(np.mean(~present))
        figures["ece"] = expected_calibration_error(probabilities, targets)
        figures["brier"] = float(np.mean((probabilities - present) ** 2))
    if not known:
        figures["reason"] = "no image with this label known"
    elif area is None:
        figures["reason"] = "no positive image" if positives == 0 else "no negative image"
    return figures


def _ranks(logits: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Scores in (0, 1) of the same order and ties: torchmetrics squashes others in float32."""
    order = np.unique(logits, return_inverse=True)[1]
    ranks: Float64[np.ndarray, " n"] = (order + 1) / (order.max(initial=0) + 2)
    return ranks


def _mean(rows: Sequence[Figures], name: str) -> float | None:
    values = [row[name] for row in rows if row[name] is not None]
    return float(np.mean(values)) if values else None
