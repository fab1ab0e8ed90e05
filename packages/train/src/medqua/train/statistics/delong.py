"""Correlated AUROCs compared by their placements, images clustered by patient.

DeLong, DeLong and Clarke-Pearson (1988): the AUROC is a U-statistic, and the variances of its
placements give the covariance of several AUROCs on the same images. The placements come from
midranks in O(n log n) (Sun and Xu 2014). Obuchowski (1997) adds them up within each patient; with
one image a patient that is DeLong's estimate exactly.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int8, Int64
from scipy.stats import norm, rankdata

from medqua.core.errors import ShapeError
from medqua.train.data.manifest import IGNORED
from medqua.train.statistics.resampling import Interval, membership

ROUNDING = 1e-12
"""AUROC differences below this are rounding."""


@dataclass(frozen=True)
class Comparison:
    """A linear contrast of AUROCs, tested against 0."""

    estimate: float | None
    """The contrast; None where a class is missing."""
    standard_error: float | None
    """Of the contrast; None where it cannot be computed."""
    interval: Interval
    """Normal interval."""
    p: float | None
    """Two-sided p value; 1 for equal predictions, None where there is no standard error."""
    reason: str | None = None
    """Why a figure is None."""


def delong(
    scores: Float64[np.ndarray, "k n"],
    targets: Int8[np.ndarray, " n"],
    contrast: Sequence[float] = (1.0, -1.0),
    clusters: Sequence[object] | None = None,
    *,
    confidence: float = 0.95,
) -> Comparison:
    """Test a contrast of AUROCs of K scores of the same images.

    `contrast=(1, -1)` is DeLong's test of two models. Several seeds of two arms are
    `(1/S, ..., 1/S, -1/S, ..., -1/S)`: the difference of mean AUROCs, on these patients.

    Args:
        scores: `[K, N]`, larger means present.
        targets: `[N]` of 1, 0 and `IGNORED`.
        contrast: K weights.
        clusters: N patients; every image its own if None.
        confidence: Coverage of the interval.

    Raises:
        ShapeError: `contrast` or `clusters` of another length.
    """
    if len(contrast) != len(scores):
        raise ShapeError(f"{len(contrast)} weights for {len(scores)} scores: needed as many")
    weights = np.asarray(contrast, dtype=np.float64)
    placed = _placements(scores, targets, clusters)
    for values, word in ((placed.present, "positive"), (placed.absent, "negative")):
        if values.shape[1] == 0:
            why = f"no {word} image"
            return Comparison(None, None, Interval(None, why), None, why)
    present, absent = weights[None] @ placed.present, weights[None] @ placed.absent
    estimate = float(present.mean())
    variance = _covariance(present, absent, placed.of_present, placed.of_absent)
    if variance is None:
        why = "all positive or all negative images are of one patient"
        return Comparison(estimate, None, Interval(None, why), None, why)
    error = math.sqrt(max(float(variance[0, 0]), 0.0))
    if error < ROUNDING:
        if abs(estimate) < ROUNDING:
            return Comparison(0.0, 0.0, Interval((0.0, 0.0)), 1.0)
        why = "no spread: every pair of images is ranked alike"
        return Comparison(estimate, None, Interval(None, why), None, why)
    half = float(norm.isf((1 - confidence) / 2)) * error
    p = float(2 * norm.sf(abs(estimate) / error))
    return Comparison(estimate, error, Interval((estimate - half, estimate + half)), p)


def delong_covariance(
    scores: Float64[np.ndarray, "k n"],
    targets: Int8[np.ndarray, " n"],
    clusters: Sequence[object] | None = None,
) -> tuple[Float64[np.ndarray, " k"], Float64[np.ndarray, "k k"] | None]:
    """AUROCs of K scores of the same images, and their covariance.

    Args:
        scores: `[K, N]`, larger means present.
        targets: `[N]` of 1, 0 and `IGNORED`, with at least one 1 and one 0.
        clusters: N patients; every image its own if None.

    Returns:
        AUROCs `[K]` and covariance `[K, K]`; None where a class has fewer than two patients.

    Raises:
        ShapeError: `clusters` of another length, or a class without an image.
    """
    placed = _placements(scores, targets, clusters)
    if not (placed.present.shape[1] and placed.absent.shape[1]):
        raise ShapeError("an AUROC of one class alone: needed a positive and a negative image")
    covariance = _covariance(placed.present, placed.absent, placed.of_present, placed.of_absent)
    return placed.present.mean(axis=1), covariance


@dataclass(frozen=True, eq=False)
class _Placed:
    """Placements of the images of both classes."""

    present: Float64[np.ndarray, "k m"]
    """For each positive image the share of negatives that score below it; ties count half."""
    absent: Float64[np.ndarray, "k n"]
    """For each negative image the share of positives that score above it."""
    of_present: Int64[np.ndarray, " m"]
    """Patient of each positive image."""
    of_absent: Int64[np.ndarray, " n"]
    """Patient of each negative image."""


def _placements(
    scores: Float64[np.ndarray, "k all"],
    targets: Int8[np.ndarray, " all"],
    clusters: Sequence[object] | None,
) -> _Placed:
    members = membership(range(len(targets)) if clusters is None else clusters)
    if len(members) != len(targets) or scores.shape[1] != len(targets):
        raise ShapeError(
            f"scores {scores.shape}, {len(targets)} targets, {len(members)} patients: needed one "
            "score, target and patient an image"
        )
    known = targets != IGNORED
    own, is_present = scores[:, known], targets[known] == 1
    whose = np.unique(members[known], return_inverse=True)[1].astype(np.int64)
    m, n = int(is_present.sum()), int((~is_present).sum())
    if not m or not n:
        empty = np.zeros((len(scores), 0))
        return _Placed(
            own[:, is_present] if m else empty,
            own[:, ~is_present] if n else empty,
            whose[is_present],
            whose[~is_present],
        )
    everywhere = rankdata(own, axis=1)
    below = everywhere[:, is_present] - rankdata(own[:, is_present], axis=1)
    fewer = everywhere[:, ~is_present] - rankdata(own[:, ~is_present], axis=1)
    return _Placed(below / n, 1.0 - fewer / m, whose[is_present], whose[~is_present])


def _covariance(
    present: Float64[np.ndarray, "k m"],
    absent: Float64[np.ndarray, "k n"],
    of_present: Int64[np.ndarray, " m"],
    of_absent: Int64[np.ndarray, " n"],
) -> Float64[np.ndarray, "k k"] | None:
    """Obuchowski's covariance of mean placements; None with fewer than two patients a class."""
    with_present, with_absent = len(np.unique(of_present)), len(np.unique(of_absent))
    if with_present < 2 or with_absent < 2:
        return None
    patients = int(max(of_present.max(), of_absent.max())) + 1
    area = present.mean(axis=1, keepdims=True)
    positive, negative = (
        np.stack([np.bincount(own, row, patients) for row in values - area])  # [K, patients]
        for values, own in ((present, of_present), (absent, of_absent))
    )
    m, n = present.shape[1], absent.shape[1]
    s10 = with_present / ((with_present - 1) * m) * positive @ positive.T
    s01 = with_absent / ((with_absent - 1) * n) * negative @ negative.T
    s11 = patients / (patients - 1) * positive @ negative.T
    result: Float64[np.ndarray, "k k"] = s10 / m + s01 / n + (s11 + s11.T) / (m * n)
    return result
