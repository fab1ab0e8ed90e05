"""Patients drawn with replacement; equal arguments draw the same patients, for every arm."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from medqua.core.errors import ConfigError

ROWS_AT_ONCE = 4_000_000
"""Weights held in memory together, in elements of 8 bytes."""


@dataclass(frozen=True)
class Interval:
    """A confidence interval, or why there is none."""

    bounds: tuple[float, float] | None
    """Lower and upper bound; None where it cannot be computed."""

    reason: str | None = None
    """Why `bounds` is None."""


@dataclass(frozen=True)
class Resampling:
    """How a bootstrap over patients draws (Efron and Tibshirani 1993, chapter 13).

    Raises:
        ConfigError: `resamples` below 1 or `confidence` outside (0, 1).
    """

    resamples: int = 2000
    """Bootstrap samples."""

    confidence: float = 0.95
    """Coverage of intervals, within (0, 1)."""

    seed: int = 0
    """Equal seeds draw equal patients."""

    def __post_init__(self) -> None:
        if self.resamples < 1 or not 0.0 < self.confidence < 1.0:
            raise ConfigError(
                f"bootstrap with resamples = {self.resamples}, confidence = {self.confidence}: "
                "needed at least 1 resample and a confidence between 0 and 1"
            )

    def weights(
        self, clusters: Sequence[object]
    ) -> Iterator[tuple[slice, Float64[np.ndarray, "b n"]]]:
        """How often each image is in each resample, a block of resamples at a time.

        Args:
            clusters: N patients; equal entries are drawn together.

        Yields:
            Which resamples, and their weights `[B, N]`; nothing when N is 0.
        """
        members = membership(clusters)
        n_patients = int(members.max()) + 1 if len(members) else 0
        rng = np.random.default_rng(self.seed)
        step = max(1, ROWS_AT_ONCE // max(len(members), 1))
        for start in range(0, self.resamples if n_patients else 0, step):
            count = min(step, self.resamples - start)
            draws = rng.multinomial(n_patients, np.full(n_patients, 1 / n_patients), size=count)
            yield slice(start, start + count), draws[:, members].astype(np.float64)

    def percentiles(self, values: Float64[np.ndarray, " b"]) -> Interval:
        """The percentile interval of resampled values, NaN left out."""
        defined = values[~np.isnan(values)]
        if defined.size == 0:
            return Interval(None, "no resample holds both positive and negative images")
        tail = 50.0 * (1.0 - self.confidence)
        low, high = np.percentile(defined, [tail, 100.0 - tail])
        return Interval((float(low), float(high)))


def membership(clusters: Sequence[object]) -> Int64[np.ndarray, " n"]:
    """Number of each image's patient, from 0."""
    names = np.asarray([str(cluster) for cluster in clusters])
    return np.unique(names, return_inverse=True)[1].astype(np.int64)
