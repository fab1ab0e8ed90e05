"""What validation showed of each finding: how often a probability was right, and where to cut.

Kept in the bundle, as counts alone, so that whoever shows a probability can show beside it what it
rests on. Nothing here is refitted: the same images chose the temperatures, so that the figures are
a little too good, as those of any validation split are.

Operating points, with the threshold on the calibrated probability:

- `screening`: the highest threshold that kept a sensitivity of at least 0.95;
- `balanced`: the one with the largest sum of sensitivity and specificity (Youden 1950);
- `rule-in`: the lowest threshold with a specificity of at least 0.95.

A probability between `screening` and `rule-in` is too uncertain to call.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medqua.core.errors import ConfigError, ShapeError

VERSION = 1
"""Version of what `to_dict` writes."""

POINTS = ("screening", "balanced", "rule-in")
"""Operating points, from the lowest threshold to the highest where findings are hard to tell."""

KEPT = 0.95
"""Sensitivity of `screening`, specificity of `rule-in`."""

FEWEST = 10
"""Positive and negative images that a label needs to have operating points."""

EDGES = (0.0, 0.02, 0.05, *(k / 10 for k in range(1, 10)), 0.95, 0.98, 1.0)
"""Ends of the bands of probabilities, closed below; the last one above too. Of equal width but at
the ends: bands of equal numbers of images would call 0.1 and 0.9 similar where few lie between."""

Z = 1.959963984540054
"""Quantile of the normal distribution for intervals of 95 %."""

Call = Literal["likely", "uncertain", "unlikely", "not judged"]


@dataclass(frozen=True)
class Band:
    """Validation images of similar probability."""

    low: float
    """Least probability, of `EDGES`."""
    high: float
    """End of the band, of `EDGES`."""
    images: int
    """How many images."""
    positives: int
    """For how many of them the label held."""

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval of 95 % for the share of the images for which the label held."""
        return wilson(self.positives, self.images)


@dataclass(frozen=True)
class Point:
    """One operating point: `p >= threshold` is positive."""

    threshold: float
    """Calibrated probability."""
    true_positives: int
    """Validation images with the label at or above the threshold."""
    false_negatives: int
    """Those with the label below it."""
    true_negatives: int
    """Those without the label below it."""
    false_positives: int
    """Those without the label at or above it."""

    @property
    def sensitivity(self) -> float:
        """Share of the images with the label that are at or above the threshold."""
        return self.true_positives / max(self.true_positives + self.false_negatives, 1)

    @property
    def specificity(self) -> float:
        """Share of the images without the label that are below it."""
        return self.true_negatives / max(self.true_negatives + self.false_positives, 1)


@dataclass(frozen=True)
class LabelValidation:
    """What validation showed of one label."""

    positives: int
    """Images with the label."""
    negatives: int
    """Images known to be without it."""
    bands: tuple[Band, ...] = ()
    """By rising probability; those without an image are left out."""
    points: Mapping[str, Point] = field(default_factory=dict)
    """Operating points by name, all of `POINTS` or none."""

    def band(self, probability: float) -> Band | None:
        """Return the band that a probability lies in; None if no validation image did."""
        for band in self.bands:
            if band.low <= probability < band.high or probability == band.high == EDGES[-1]:
                return band
        return None

    def call(self, probability: float) -> Call:
        """Say what a probability is worth at the operating points.

        `likely` at or above both `rule-in` and `screening`, `unlikely` below both, `uncertain`
        between them; `not judged` without points, and where no validation image had a similar
        probability. Where the label is told so well that `rule-in`
        is the lower, `balanced` decides between them.
        """
        if not self.points or (self.bands and self.band(probability) is None):
            return "not judged"
        low, high = sorted(self.points[name].threshold for name in ("screening", "rule-in"))
        if probability >= high:
            return "likely"
        if probability < low:
            return "unlikely"
        if self.points["rule-in"].threshold <= self.points["screening"].threshold:
            above = probability >= self.points["balanced"].threshold
            return "likely" if above else "unlikely"
        return "uncertain"


@dataclass(frozen=True)
class Validation:
    """What validation showed of every label."""

    labels: tuple[LabelValidation, ...]
    """In the order of the model's label set."""

    @classmethod
    def measure(
        cls,
        probabilities: npt.NDArray[np.floating[Any]],
        targets: npt.NDArray[Any],
        mask: npt.NDArray[np.bool_] | None = None,
    ) -> "Validation":
        """Count what calibrated probabilities of validation images were worth.

        Args:
            probabilities: `[N, L]` in [0, 1].
            targets: 0 or 1, `[N, L]`; ignored where `mask` is false.
            mask: True where the target is known, `[N, L]`; all if None.

        Raises:
            ShapeError: Shapes that differ, or probabilities outside [0, 1].
        """
        p, y = np.asarray(probabilities, np.float64), np.asarray(targets)
        known = np.ones(p.shape, np.bool_) if mask is None else np.asarray(mask, np.bool_)
        if p.ndim != 2 or not p.shape == y.shape == known.shape:
            raise ShapeError(
                f"probabilities {p.shape}, targets {y.shape}, mask {known.shape}: needed three "
                "[N, L] arrays"
            )
        if not ((p[known] >= 0) & (p[known] <= 1)).all():
            raise ShapeError("probabilities outside [0, 1]: apply the calibration to logits first")
        columns = range(p.shape[1])
        return cls(tuple(_measure(p[known[:, i], i], y[known[:, i], i] == 1) for i in columns))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` takes them back, bit for bit."""
        return {"version": VERSION, "labels": [asdict(label) for label in self.labels]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Validation":
        """Build it from `to_dict`'s result.

        Raises:
            ConfigError: A newer version, or what `to_dict` does not write.
        """
        if data.get("version") != VERSION:
            raise ConfigError(
                f"validation figures of version {data.get('version')!r}; this MedQua reads "
                f"{VERSION}: use the release that wrote them"
            )
        try:
            labels = []
            for label in data["labels"]:
                points = {name: Point(**label["points"][name]) for name in label["points"]}
                if points and set(points) != set(POINTS):
                    raise TypeError("points")
                bands = tuple(Band(**band) for band in label["bands"])
                labels.append(
                    LabelValidation(label["positives"], label["negatives"], bands, points)
                )
            values = [v for label in labels for part in _parts(label) for v in vars(part).values()]
            if not all(type(v) in (int, float) and math.isfinite(v) for v in values):
                raise TypeError("numbers")
        except (KeyError, TypeError, AttributeError) as error:
            text = json.dumps(dict(data), default=str)[:100]
            raise ConfigError(f"validation figures {text}: not as written ({error})") from error
        return cls(tuple(labels))


def wilson(positives: int, images: int) -> tuple[float, float]:
    """Return Wilson's interval of 95 % for a share (Wilson 1927); (0, 1) of no image."""
    if images == 0:
        return 0.0, 1.0
    share, square = positives / images, Z * Z / images
    centre = (share + square / 2) / (1 + square)
    reach = Z / (1 + square) * math.sqrt(share * (1 - share) / images + square / (4 * images))
    return max(0.0, centre - reach), min(1.0, centre + reach)


def _parts(label: LabelValidation) -> Sequence[Band | Point]:
    return [*label.bands, *label.points.values()]


def _measure(p: npt.NDArray[np.float64], y: npt.NDArray[np.bool_]) -> LabelValidation:
    positives, negatives = int(y.sum()), int((~y).sum())
    place = np.clip(np.searchsorted(EDGES, p, side="right") - 1, 0, len(EDGES) - 2)
    bands = [
        Band(EDGES[k], EDGES[k + 1], int((place == k).sum()), int(y[place == k].sum()))
        for k in np.unique(place)
    ]
    if min(positives, negatives) < FEWEST:
        return LabelValidation(positives, negatives, tuple(bands))
    thresholds = np.unique(p)
    sensitivity = np.array([(p[y] >= t).mean() for t in thresholds])
    specificity = np.array([(p[~y] < t).mean() for t in thresholds])
    screening = thresholds[np.flatnonzero(sensitivity >= KEPT)[-1]]  # the least one always does
    specific = np.flatnonzero(specificity >= KEPT)
    above = np.nextafter(thresholds[-1], 2.0)  # where no validation image reached 0.95
    rule_in = thresholds[specific[0]] if len(specific) else above
    balanced = thresholds[np.argmax(sensitivity + specificity)]
    chosen = {"screening": screening, "balanced": balanced, "rule-in": rule_in}
    points = {}
    for name, threshold in chosen.items():
        at = p >= threshold
        counts = ((at & y).sum(), (~at & y).sum(), (~at & ~y).sum(), (at & ~y).sum())
        points[name] = Point(float(threshold), *(int(count) for count in counts))
    return LabelValidation(positives, negatives, tuple(bands), points)
