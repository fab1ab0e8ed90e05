"""AUROC of one label under many sets of weights at once: the statistic that is resampled."""

import numpy as np
from jaxtyping import Float64, Int8


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
