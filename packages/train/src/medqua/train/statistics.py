"""Confidence intervals of AUROC that know that images of one patient are not independent."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int8, Shaped

from medqua.core.errors import ConfigError
from medqua.train.data.manifest import IGNORED

ROWS_AT_ONCE = 4_000_000
"""Weights held in memory together, in elements of 8 bytes."""


@dataclass(frozen=True)
class Interval:
    """A percentile interval, or why there is none."""

    bounds: tuple[float, float] | None
    """Lower and upper bound; None where it cannot be computed."""

    reason: str | None = None
    """Why `bounds` is None."""


@dataclass(frozen=True)
class AurocIntervals:
    """Intervals of one evaluation."""

    per_label: tuple[Interval, ...]
    """In the order of labels."""

    macro: Interval
    """Of the mean over the labels that have an AUROC in the whole sample."""


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
    if resamples < 1 or not 0.0 < confidence < 1.0:
        raise ConfigError(
            f"bootstrap with resamples = {resamples}, confidence = {confidence}: needed at least "
            "1 resample and a confidence between 0 and 1"
        )
    members = np.unique(np.asarray([str(cluster) for cluster in clusters]), return_inverse=True)[1]
    n_patients = int(members.max()) + 1 if len(members) else 0
    reasons = [_why_not(targets[:, i], members) for i in range(targets.shape[1])]
    defined = [bool((column == 1).any() and (column == 0).any()) for column in targets.T]
    drawn = np.full((resamples, targets.shape[1]), np.nan)
    rng = np.random.default_rng(seed)
    step = max(1, ROWS_AT_ONCE // max(len(members), 1))
    for start in range(0, resamples if n_patients else 0, step):
        count = min(step, resamples - start)
        draws = rng.multinomial(n_patients, np.full(n_patients, 1 / n_patients), size=count)
        weights = draws[:, members].astype(np.float64)  # [count, N]
        for i, has_auroc in enumerate(defined):
            if has_auroc:
                known = targets[:, i] != IGNORED
                drawn[start : start + count, i] = weighted_auroc(
                    scores[known, i], targets[known, i], weights[:, known]
                )
    per_label = tuple(
        Interval(None, reason) if reason else _percentiles(drawn[:, i], confidence)
        for i, reason in enumerate(reasons)
    )
    if not any(reason is None for reason in reasons):
        return AurocIntervals(per_label, Interval(None, "no label has an interval"))
    columns = drawn[:, defined]  # the labels of the macro figure, those of one patient too
    some = ~np.isnan(columns).all(axis=1)
    return AurocIntervals(per_label, _percentiles(np.nanmean(columns[some], axis=1), confidence))


def weighted_auroc(
    scores: Float64[np.ndarray, " n"],
    targets: Int8[np.ndarray, " n"],
    weights: Float64[np.ndarray, "b n"],
) -> Float64[np.ndarray, " b"]:
    """AUROC of one label under B sets of weights; ties count half.

    It is the weighted Mann-Whitney statistic: the chance that a positive image scores above a
    negative one.

    Args:
        scores: `[N]`.
        targets: `[N]` of 1 and 0.
        weights: `[B, N]`, at least 0.

    Returns:
        `[B]`; NaN where positives or negatives weigh nothing.
    """
    if scores.size == 0:
        return np.full(len(weights), np.nan)
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    first = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])  # start of each group of ties
    ordered = weights[:, order]
    positive = np.add.reduceat(ordered * (targets[order] == 1), first, axis=1)
    negative = np.add.reduceat(ordered * (targets[order] == 0), first, axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, (positive * below).sum(axis=1) / pairs, np.nan)


def _why_not(targets: Int8[np.ndarray, " n"], members: Shaped[np.ndarray, " n"]) -> str | None:
    """Why a label has no interval; None if it has one."""
    for value, word in ((1, "positive"), (0, "negative")):
        patients = len(np.unique(members[targets == value]))
        if patients == 0:
            return f"no {word} image"
        if patients == 1:
            return f"all {word} images are of one patient"
    return None


def _percentiles(values: Float64[np.ndarray, " b"], confidence: float) -> Interval:
    defined = values[~np.isnan(values)]
    if defined.size == 0:
        return Interval(None, "no resample holds both positive and negative images")
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(defined, [tail, 100.0 - tail])
    return Interval((float(low), float(high)))
