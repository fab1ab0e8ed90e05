"""McNemar's test: two arms' thresholded answers to the same images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from scipy.stats import binom, chi2

from medqua.core.errors import ShapeError
from medqua.train.statistics.resampling import membership


@dataclass(frozen=True)
class McNemar:
    """Who is right where the other is wrong."""

    only_first: int
    """Images that the first arm alone answers rightly."""
    only_second: int
    """Images that the second arm alone answers rightly."""
    exact: float
    """Two-sided p value of the exact conditional test; conservative."""
    mid_p: float
    """Two-sided mid-p value (Fagerland, Lydersen and Laake 2013), less conservative."""
    clustered: float
    """Two-sided p value that lets images of one patient depend on each other; large samples."""


def mcnemar(
    first: Bool[np.ndarray, " n"],
    second: Bool[np.ndarray, " n"],
    clusters: Sequence[object] | None = None,
) -> McNemar:
    """Compare which images two arms answer rightly.

    Given `n = b + c` discordant images, b is binomial(n, 1/2) when neither arm is better. The
    mid-p value counts half of the observed outcome's probability. Both take images for
    independent; `clustered` is `(sum_k d_k)^2 / sum_k d_k^2` against chi-squared with one degree
    of freedom, d_k = b_k - c_k of patient k: McNemar's own statistic when each has one image.

    Args:
        first: `[N]`, whether the first arm is right.
        second: `[N]`, whether the second arm is right.
        clusters: N patients; every image its own if None.

    Returns:
        Counts and p values; all p are 1 when no image is discordant.

    Raises:
        ShapeError: Not one patient an image.
    """
    if clusters is not None and len(clusters) != len(first):
        raise ShapeError(f"{len(first)} images of {len(clusters)} patients: needed one an image")
    only_first, only_second = first & ~second, second & ~first
    b, c = int(only_first.sum()), int(only_second.sum())
    fewer, n = min(b, c), b + c
    at, below = float(binom.pmf(fewer, n, 0.5)), float(binom.cdf(fewer - 1, n, 0.5))
    patients = membership(range(len(first)) if clusters is None else clusters)
    margins = np.bincount(patients, weights=only_first.astype(float) - only_second.astype(float))
    spread = float((margins**2).sum())
    clustered = float(chi2.sf(float(margins.sum()) ** 2 / spread, 1)) if spread else 1.0
    return McNemar(
        b,
        c,
        exact=min(1.0, 2 * (below + at)),
        mid_p=min(1.0, 2 * below + at) if n else 1.0,
        clustered=clustered,
    )
