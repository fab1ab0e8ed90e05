"""Confidence intervals of AUROC and of calibration that know whose images are whose."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int8, Shaped

from medqua.train.data.manifest import IGNORED
from medqua.train.statistics.auroc import weighted_auroc
from medqua.train.statistics.resampling import Interval, Resampling, membership

BINS = 15
"""Bins of equal width of the calibration error, as `expected_calibration_error` has them."""


@dataclass(frozen=True)
class AurocIntervals:
    """Intervals of one evaluation."""

    per_label: tuple[Interval, ...]
    """In the order of labels."""

    macro: Interval
    """Of the mean over the labels that have an AUROC in the whole sample."""


@dataclass(frozen=True)
class Calibrated:
    """How well probabilities say how often a label is true, the mean over labels and seeds."""

    ece: float | None
    """Expected calibration error, 0 to 1; None when no label is known of any image."""
    ece_interval: Interval
    """Basic bootstrap interval, cut at 0: resampling inflates ECE, which this takes back."""
    brier: float | None
    """Mean squared error of the probabilities, 0 to 1."""
    brier_interval: Interval
    """Percentile interval."""


def bootstrap_auroc(
    scores: Float64[np.ndarray, "n l"],
    targets: Int8[np.ndarray, "n l"],
    clusters: Sequence[object],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> AurocIntervals:
    """Percentile bootstrap over patients (Efron and Tibshirani 1993, chapter 13).

    Patients are drawn with replacement and bring all of their images. A resample in which a label
    has no positive or no negative image says nothing about that label and is left out for it.

    Args:
        scores: `[N, L]`, larger means present.
        targets: `[N, L]` of 1, 0 and `IGNORED`.
        clusters: N patients; equal entries belong together.
        resamples: Bootstrap samples.
        confidence: Coverage, within (0, 1).
        seed: Equal seeds give equal intervals.

    Returns:
        Intervals per label and of the macro mean. A label whose positives (or negatives) come
        from fewer than two patients has none: resampling cannot show how it varies.

    Raises:
        ConfigError: `resamples` below 1 or `confidence` outside (0, 1).
    """
    plan = Resampling(resamples, confidence, seed)
    members = membership(clusters)
    reasons = [_why_not(targets[:, i], members) for i in range(targets.shape[1])]
    drawn = drawn_auroc(scores[None], targets, clusters, plan)[:, 0]  # [B, L]
    per_label = tuple(
        Interval(None, reason) if reason else plan.percentiles(drawn[:, i])
        for i, reason in enumerate(reasons)
    )
    if not any(reason is None for reason in reasons):
        return AurocIntervals(per_label, Interval(None, "no label has an interval"))
    return AurocIntervals(per_label, plan.percentiles(macro_mean(drawn)))


def drawn_auroc(
    scores: Float64[np.ndarray, "s n l"],
    targets: Int8[np.ndarray, "n l"],
    clusters: Sequence[object],
    plan: Resampling,
) -> Float64[np.ndarray, "b s l"]:
    """AUROC of S models and L labels in each of B resamples of the patients.

    Args:
        scores: `[S, N, L]`, the same images for each of the S models (seeds, say).
        targets: `[N, L]` of 1, 0 and `IGNORED`.
        clusters: N patients.
        plan: What is drawn: the same plan draws the same patients for other scores.

    Returns:
        `[B, S, L]`; NaN where a resample lacks positives or negatives of a label.
    """
    drawn = np.full((plan.resamples, len(scores), targets.shape[1]), np.nan)
    for rows, weights in plan.weights(clusters):
        for i, column in enumerate(targets.T):
            if not ((column == 1).any() and (column == 0).any()):
                continue
            known = column != IGNORED
            given, present = weights[:, known], column[known]
            for model, own in enumerate(scores):
                drawn[rows, model, i] = weighted_auroc(own[known, i], present, given)
    return drawn


def macro_mean(values: Float64[np.ndarray, "*any l"]) -> Float64[np.ndarray, "*any"]:
    """Mean over the labels (last axis) that are not NaN; NaN where all are."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=-1)
    total = np.where(defined, values, 0.0).sum(axis=-1)
    result: Float64[np.ndarray, "*any"] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return result


def bootstrap_calibration(
    probabilities: Float64[np.ndarray, "s n l"],
    targets: Int8[np.ndarray, "n l"],
    clusters: Sequence[object],
    plan: Resampling,
) -> Calibrated:
    """ECE and Brier score with intervals, by resampling patients.

    Args:
        probabilities: `[S, N, L]` in [0, 1], the same images for each of the S models.
        targets: `[N, L]` of 1, 0 and `IGNORED`.
        clusters: N patients.
        plan: What is drawn.

    Returns:
        Means over labels (those known of at least one image) and models.
    """
    known = targets != IGNORED
    weighed = np.ones((1, len(targets)))
    ece, brier = _calibration(probabilities, targets, known, weighed)
    if np.isnan(ece[0]):
        nothing = Interval(None, "no label is known of any image")
        return Calibrated(None, nothing, None, nothing)
    drawn = np.full((2, plan.resamples), np.nan)
    for rows, weights in plan.weights(clusters):
        drawn[:, rows] = _calibration(probabilities, targets, known, weights)
    basic = plan.percentiles(2 * ece[0] - drawn[0])
    if basic.bounds is not None:
        basic = Interval((max(basic.bounds[0], 0.0), max(basic.bounds[1], 0.0)))
    return Calibrated(float(ece[0]), basic, float(brier[0]), plan.percentiles(drawn[1]))


def _calibration(
    probabilities: Float64[np.ndarray, "s n l"],
    targets: Int8[np.ndarray, "n l"],
    known: Shaped[np.ndarray, "n l"],
    weights: Float64[np.ndarray, "b n"],
) -> tuple[Float64[np.ndarray, " b"], Float64[np.ndarray, " b"]]:
    """Weighted ECE and Brier score, the means over labels and models, `[B]` each."""
    models, _, labels = probabilities.shape
    ece = np.full((len(weights), models, labels), np.nan)
    brier = np.full((len(weights), models, labels), np.nan)
    for i in range(labels):
        rows = known[:, i]
        own = weights[:, rows]
        total = own.sum(axis=1)
        some = total > 0
        for model in range(models):
            p, y = probabilities[model, rows, i], targets[rows, i].astype(np.float64)
            bins = np.clip(np.ceil(p * BINS).astype(np.int64) - 1, 0, BINS - 1)
            gaps = own @ (np.eye(BINS)[bins] * (y - p)[:, None])  # [B, bins]
            ece[some, model, i] = np.abs(gaps[some]).sum(axis=1) / total[some]
            brier[some, model, i] = (own[some] @ (p - y) ** 2) / total[some]
    return macro_mean(ece).mean(axis=1), macro_mean(brier).mean(axis=1)


def _why_not(targets: Int8[np.ndarray, " n"], members: Shaped[np.ndarray, " n"]) -> str | None:
    """Why a label has no interval; None if it has one."""
    for value, word in ((1, "positive"), (0, "negative")):
        patients = len(np.unique(members[targets == value]))
        if patients == 0:
            return f"no {word} image"
        if patients == 1:
            return f"all {word} images are of one patient"
    return None
