"""Probabilities that mean what they say: temperature scaling and how far off they are.

`p = sigmoid(z / T)` with one temperature T > 0 a label, or one for all (Guo et al. 2017). It is
monotone, so it moves no AUROC. T is fitted on validation data by the masked negative
log-likelihood, which is convex in 1 / T: the fit is a bounded scalar search with one optimum.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medqua.core.errors import ConfigError, ShapeError

MIN_TEMPERATURE = 0.05
"""Lower bound of the fit: logits are sharpened 20-fold at most."""

MAX_TEMPERATURE = 20.0
"""Upper bound of the fit: logits are flattened 20-fold at most."""


@dataclass(frozen=True)
class Calibration:
    """Temperature of every label.

    Raises:
        ConfigError: No temperature, or one that is not finite and positive.
    """

    temperatures: tuple[float, ...]
    """T of each label, in label order; 1 changes nothing."""

    def __post_init__(self) -> None:
        if not self.temperatures:
            raise ConfigError("no temperature: needed one for each label")
        for value in self.temperatures:
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"temperature {value}: needed a finite number above 0")

    @classmethod
    def identity(cls, n_labels: int) -> "Calibration":
        """Return the calibration that changes nothing."""
        return cls((1.0,) * n_labels)

    @classmethod
    def fit(
        cls,
        logits: npt.NDArray[np.floating[Any]],
        targets: npt.NDArray[Any],
        mask: npt.NDArray[np.bool_] | None = None,
        *,
        per_label: bool = True,
    ) -> "Calibration":
        """Fit temperatures on validation data that the model was not trained on.

        A label with fewer than one positive and one negative known target has no optimum and
        keeps T = 1.

        Args:
            logits: Scores `[N, L]`.
            targets: 0 or 1, `[N, L]`; ignored where `mask` is false.
            mask: True where the target is known, `[N, L]`; all if None.
            per_label: One temperature a label; otherwise one for all.

        Raises:
            ShapeError: Shapes that differ, logits that are not finite, or targets besides 0 and 1.
        """
        z, y, known = _checked(logits, targets, mask)
        n_labels = z.shape[1]
        if per_label:
            columns = [(z[known[:, i], i], y[known[:, i], i]) for i in range(n_labels)]
            return cls(tuple(_temperature(scores, truth) for scores, truth in columns))
        return cls((_temperature(z[known], y[known]),) * n_labels)

    def __call__(self, logits: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
        """Turn logits `[..., L]` into calibrated probabilities `[..., L]` in [0, 1].

        Raises:
            ShapeError: The last dimension is not the number of labels.
        """
        if logits.ndim == 0 or logits.shape[-1] != len(self.temperatures):
            raise ShapeError(
                f"logits of shape {logits.shape} for {len(self.temperatures)} temperatures: "
                "needed one logit a label in the last dimension"
            )
        return sigmoid(logits.astype(np.float64) / np.asarray(self.temperatures))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` takes them back, bit for bit."""
        return {"method": "temperature", "temperatures": list(self.temperatures)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Calibration":
        """Build a calibration from `to_dict`'s result.

        Raises:
            ConfigError: An unknown key or method, or temperatures that are no positive numbers.
        """
        if set(data) != {"method", "temperatures"} or data["method"] != "temperature":
            raise ConfigError(
                f"calibration {json.dumps(dict(data), default=str)[:100]}: needed the keys "
                "'method' ('temperature') and 'temperatures'"
            )
        values = data["temperatures"]
        if not isinstance(values, list) or not all(type(v) in (int, float) for v in values):
            raise ConfigError("calibration temperatures: needed a list of numbers")
        return cls(tuple(float(value) for value in values))


def sigmoid(z: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Logistic function, without overflow at either end."""
    small = np.exp(-np.abs(z))
    return np.where(z >= 0, 1.0, small) / (1.0 + small)


def expected_calibration_error(
    probabilities: npt.NDArray[np.floating[Any]],
    targets: npt.NDArray[Any],
    *,
    bins: int = 15,
    equal_mass: bool = False,
) -> float:
    """Mean gap between what a label's probabilities say and how often it is true.

    `ECE = sum_b n_b / N * |mean(y in b) - mean(p in b)|` (Naeini et al. 2015) for one binary label:
    p is the probability of the label itself, not the confidence of the likelier class.

    Args:
        probabilities: `[N]` in [0, 1].
        targets: 0 or 1, `[N]`.
        bins: Number of bins.
        equal_mass: Bins with equally many samples (ties are not split from their rank); otherwise
            bins of equal width, closed on the right, 0 in the first.

    Returns:
        ECE in [0, 1]; NaN without a sample.

    Raises:
        ShapeError: Shapes that differ, fewer than one bin, or probabilities outside [0, 1].
    """
    p = np.asarray(probabilities, np.float64)
    y = np.asarray(targets, np.float64)
    if p.ndim != 1 or p.shape != y.shape or bins < 1:
        raise ShapeError(
            f"probabilities {p.shape}, targets {y.shape}, {bins} bins: needed two [N] arrays and "
            "at least one bin"
        )
    if len(p) == 0:
        return math.nan
    if not (p.min() >= 0 and p.max() <= 1):
        raise ShapeError("probabilities outside [0, 1]: apply the calibration to logits first")
    if equal_mass:
        index = np.empty(len(p), np.int64)
        index[np.argsort(p, kind="stable")] = np.arange(len(p)) * bins // len(p)
    else:
        index = np.clip(np.ceil(p * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.abs(np.bincount(index, weights=y - p, minlength=bins))
    return float(gaps.sum() / len(p))


def mean_calibration_error(
    probabilities: npt.NDArray[np.floating[Any]],
    targets: npt.NDArray[Any],
    mask: npt.NDArray[np.bool_] | None = None,
    *,
    bins: int = 15,
    equal_mass: bool = False,
) -> float:
    """Mean of `expected_calibration_error` over the labels that have a known target.

    Args:
        probabilities: `[N, L]` in [0, 1].
        targets: 0 or 1, `[N, L]`; ignored where `mask` is false.
        mask: True where the target is known; all if None.
        bins: As in `expected_calibration_error`.
        equal_mass: As in `expected_calibration_error`.

    Returns:
        Mean ECE; NaN if no label has a known target.
    """
    p, y, known = _checked(probabilities, targets, mask)
    errors = [
        expected_calibration_error(
            p[known[:, i], i], y[known[:, i], i], bins=bins, equal_mass=equal_mass
        )
        for i in range(p.shape[1])
        if known[:, i].any()
    ]
    return float(np.mean(errors)) if errors else math.nan


def negative_log_likelihood(
    logits: npt.NDArray[np.float64], targets: npt.NDArray[np.float64], temperature: float
) -> float:
    """Mean of `-log p(y)` in nats under `sigmoid(logits / temperature)`, for arrays `[N]`."""
    z = logits / temperature
    return float(np.mean(np.logaddexp(0.0, z) - targets * z))


def _temperature(logits: npt.NDArray[np.float64], targets: npt.NDArray[np.float64]) -> float:
    """Minimise the NLL over beta = 1 / T by bisection on its derivative, which is increasing."""
    if not (np.any(targets == 0) and np.any(targets == 1)):
        return 1.0

    def slope(beta: float) -> float:
        return float(np.mean(logits * (sigmoid(beta * logits) - targets)))

    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    if not np.any(logits) or math.isclose(slope(low), slope(high), abs_tol=1e-15):
        return 1.0
    if slope(low) >= 0:
        return MAX_TEMPERATURE
    if slope(high) <= 0:
        return MIN_TEMPERATURE
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 2 / (low + high)


def _checked(
    scores: npt.NDArray[np.floating[Any]],
    targets: npt.NDArray[Any],
    mask: npt.NDArray[np.bool_] | None,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    known = np.ones(scores.shape, np.bool_) if mask is None else np.asarray(mask, np.bool_)
    shapes: Sequence[tuple[int, ...]] = (scores.shape, targets.shape, known.shape)
    if scores.ndim != 2 or len(set(shapes)) != 1:
        raise ShapeError(
            f"scores {shapes[0]}, targets {shapes[1]}, mask {shapes[2]}: needed three [N, L] arrays"
        )
    z = np.asarray(scores, np.float64)
    y = np.where(known, np.asarray(targets, np.float64), 0.0)
    if not np.isfinite(z[known]).all() or not np.isin(y, (0.0, 1.0)).all():
        raise ShapeError("scores must be finite and known targets 0 or 1; mask uncertain targets")
    return z, y, known
