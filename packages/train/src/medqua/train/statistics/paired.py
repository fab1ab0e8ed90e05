"""Two arms on the same patients: the difference of their macro AUROC, over patients and seeds.

Every resample draws patients once and shows the same ones to both arms, so that what makes a
patient easy or hard for everybody cancels. The figure of an arm is the mean over its seeds. Two
intervals answer two questions: with the seeds as they are, how much do the patients of the test
split decide; and, with seeds drawn again too (the pigeonhole bootstrap, Owen 2007), how much would
a repetition of the whole experiment move.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int8, Int64

from medqua.core.errors import ShapeError
from medqua.train.data.manifest import IGNORED
from medqua.train.statistics.auroc import weighted_auroc
from medqua.train.statistics.bootstrap import drawn_auroc, macro_mean
from medqua.train.statistics.resampling import Interval, Resampling


@dataclass(frozen=True, eq=False)
class Drawn:
    """Macro AUROC of one arm, whole and in every resample."""

    values: Float64[np.ndarray, " s"]
    """Of each seed, on the whole sample; NaN when no label has an AUROC."""
    draws: Float64[np.ndarray, "b s"]
    """Of each seed in each resample; NaN where a resample holds no label's both classes."""
    plan: Resampling
    """What was drawn."""

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(self.values.mean())


@dataclass(frozen=True)
class Difference:
    """One arm minus another."""

    estimate: float | None
    """Difference of the means over seeds; None when no label has an AUROC."""
    interval: Interval
    """Percentile interval over patients, seeds as they are."""
    seeds_interval: Interval
    """Percentile interval over patients and seeds."""
    p: float | None
    """Two-sided, from the resamples over patients: twice the smaller share of differences at or
    beyond 0, each counted with one more; 1 for equal predictions."""


def draw_macro(
    scores: Float64[np.ndarray, "s n l"],
    targets: Int8[np.ndarray, "n l"],
    clusters: Sequence[object],
    plan: Resampling,
) -> Drawn:
    """Resample the macro AUROC of one arm.

    Args:
        scores: `[S, N, L]` of S seeds, larger means present.
        targets: `[N, L]` of 1, 0 and `IGNORED`.
        clusters: N patients; equal entries belong together.
        plan: What is drawn. Arms to be compared need equal plans, images and patients.

    Returns:
        The arm's figures, for `difference`.

    Raises:
        ShapeError: No seed, or scores, targets and patients that do not fit each other.
    """
    if not len(scores) or scores.shape[1:] != targets.shape or len(clusters) != len(targets):
        raise ShapeError(
            f"scores {scores.shape}, targets {targets.shape}, {len(clusters)} patients: needed "
            "[seeds, images, labels] with at least one seed, [images, labels] and one patient an "
            "image"
        )
    ones = np.ones((1, len(targets)))
    values = np.full((len(scores), targets.shape[1]), np.nan)
    for i, column in enumerate(targets.T):
        known = column != IGNORED
        for seed, own in enumerate(scores):
            values[seed, i] = weighted_auroc(own[known, i], column[known], ones[:, known])[0]
    drawn = drawn_auroc(scores, targets, clusters, plan)
    return Drawn(macro_mean(values), macro_mean(drawn), plan)


def difference(first: Drawn, second: Drawn) -> Difference:
    """First arm minus second.

    Seeds are paired by position where both arms have equally many (the same seed draws the same
    order of images), and drawn apart otherwise.

    Raises:
        ShapeError: The arms were resampled by different plans.
    """
    if first.plan != second.plan:
        raise ShapeError(
            f"arms resampled by {first.plan} and {second.plan}: needed the same plan, or the "
            "difference is not paired"
        )
    plan = first.plan
    estimate = first.mean - second.mean
    if np.isnan(estimate):
        none = Interval(None, "no label has both a positive and a negative image")
        return Difference(None, none, none, None)
    drawn = first.draws.mean(axis=1) - second.draws.mean(axis=1)
    rng = np.random.default_rng([plan.seed, 1])
    mine = rng.integers(0, len(first.values), (plan.resamples, len(first.values)))
    theirs = mine
    if len(first.values) != len(second.values):
        theirs = rng.integers(0, len(second.values), (plan.resamples, len(second.values)))
    again = _over(first.draws, mine) - _over(second.draws, theirs)
    return Difference(estimate, plan.percentiles(drawn), plan.percentiles(again), _p(drawn))


def _over(
    draws: Float64[np.ndarray, "b s"], seeds: Int64[np.ndarray, "b s"]
) -> Float64[np.ndarray, " b"]:
    """Mean of each resample over seeds drawn for it."""
    mean: Float64[np.ndarray, " b"] = np.take_along_axis(draws, seeds, axis=1).mean(axis=1)
    return mean


def _p(drawn: Float64[np.ndarray, " b"]) -> float:
    """Two-sided p value of no difference; differences within rounding count as none."""
    defined = drawn[~np.isnan(drawn)]
    below, above = (defined <= 1e-12).sum(), (defined >= -1e-12).sum()
    return float(min(1.0, 2 * (min(below, above) + 1) / (len(defined) + 1)))
