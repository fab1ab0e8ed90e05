"""How well the labels of texts agree with the labels of their studies: F1, beside baselines.

Every text is read by the same rules (`medqua.train.reports.labeller`). A finding counts as said
where the text states it; uncertain, denied and unmentioned count as not said. Labels that are
uncertain in the truth take no part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int8

from medqua.core.errors import ShapeError
from medqua.train.data.manifest import IGNORED
from medqua.train.reports.labeller import label_texts
from medqua.train.statistics.resampling import Interval, Resampling


@dataclass(frozen=True)
class Agreement:
    """Agreement of N texts with the labels of their studies."""

    micro: float
    """F1 over all labels together, 0 to 1; 0 where nothing is said and something is there."""
    micro_interval: Interval
    """Of `micro`, over patients."""
    macro: float
    """Mean F1 over the labels that are true of at least one study."""
    macro_interval: Interval
    """Of `macro`, over patients."""
    per_label: tuple[float | None, ...]
    """F1 of each label; None where it is true of no study."""
    per_label_intervals: tuple[Interval, ...]
    """Of `per_label`, over patients; resamples without the label are left out."""


def agreement(
    said: Int8[np.ndarray, "n l"],
    truth: Int8[np.ndarray, "studies labels"],
    patients: Sequence[object],
    plan: Resampling,
) -> Agreement:
    """F1 of what is said against what is there, with intervals over patients.

    F1 = 2 TP / (2 TP + FP + FN).

    Args:
        said: `[N, L]`; 1 is stated, every other code is not.
        truth: `[N, L]` of 1, 0 and `IGNORED`.
        patients: N of them; equal entries are drawn together.
        plan: How patients are drawn: equal plans draw the same patients for other texts.

    Raises:
        ShapeError: `said`, `truth` and `patients` are not of the same studies and labels.
    """
    if said.shape != truth.shape or len(patients) != len(truth):
        raise ShapeError(
            f"texts {said.shape}, labels {truth.shape}, {len(patients)} patients: needed a row for "
            "each study in all three"
        )
    known = truth != IGNORED
    stated, there = (said == 1) & known, (truth == 1) & known
    counts = np.stack([stated & there, stated & ~there, ~stated & there])  # [3, N, L]
    exists = there.any(axis=0)
    totals = counts.sum(axis=1)[:, None].astype(np.float64)
    micro, macro = (float(value[0]) for value in _scores(totals, exists))
    drawn = np.full((2, plan.resamples), np.nan)
    labels = np.full((plan.resamples, truth.shape[1]), np.nan)
    for rows, weights in plan.weights(patients):
        sums = np.stack([weights @ part for part in counts])  # [3, B, L]
        drawn[:, rows] = _scores(sums, exists)
        labels[rows] = np.where(sums[0] + sums[2] > 0, _f1(sums), np.nan)
    each = _f1(totals[:, 0])
    return Agreement(
        micro,
        plan.percentiles(drawn[0]),
        macro,
        plan.percentiles(drawn[1]),
        tuple(float(f) if some else None for f, some in zip(each, exists, strict=True)),
        tuple(plan.percentiles(column) for column in labels.T),
    )


def gain(
    said: Int8[np.ndarray, "n l"],
    other: Int8[np.ndarray, "n l"],
    truth: Int8[np.ndarray, "n l"],
    patients: Sequence[object],
    plan: Resampling,
) -> tuple[float, Interval]:
    """Macro F1 of what is said minus that of what another says, on the same studies.

    Args:
        said: `[N, L]`; 1 is stated, every other code is not.
        other: The same of the other.
        truth: `[N, L]` of 1, 0 and `IGNORED`.
        patients: N of them; equal entries are drawn together.
        plan: How patients are drawn, for both at once.

    Returns:
        The difference, and its interval over patients.
    """
    known, exists = truth != IGNORED, (truth == 1).any(axis=0)
    there = (truth == 1) & known
    both = [
        np.stack([stated & there, stated & ~there, ~stated & there])
        for stated in ((said == 1) & known, (other == 1) & known)
    ]
    ones = np.ones((1, len(truth)))

    def difference(weights: np.ndarray) -> np.ndarray:
        first, second = (_scores(np.stack([weights @ part for part in c]), exists) for c in both)
        return np.asarray(first[1] - second[1])

    drawn = np.full(plan.resamples, np.nan)
    for rows, weights in plan.weights(patients):
        drawn[rows] = difference(weights)
    return float(difference(ones)[0]), plan.percentiles(drawn)


def baselines(train: Sequence[str], count: int, seed: int = 0) -> Mapping[str, tuple[str, ...]]:
    """What a writer that never looks at the image would write for `count` studies.

    Args:
        train: Reports of the training split.
        count: Number of texts wanted.
        seed: Of the random ones.

    Returns:
        `most_frequent` (the first of those that are most frequent), `best_constant` (the one whose
        labels have the best micro F1 against all training reports, the first of equals), `random`
        (one of the training split, drawn with replacement) and `all_negative` (the empty text:
        nothing is stated).
    """
    stated = label_texts(train) == 1
    positives, size = stated.sum(axis=0), len(train)
    hits = stated @ positives
    said = stated.sum(axis=1)
    scores = 2 * hits / np.maximum(said * size + positives.sum(), 1)
    best = train[int(scores.argmax())]
    names, first, numbers = np.unique(list(train), return_index=True, return_counts=True)
    most = names[np.lexsort((first, -numbers))[0]]
    drawn = np.random.default_rng(seed).integers(len(train), size=count)
    return {
        "most_frequent": (str(most),) * count,
        "best_constant": (best,) * count,
        "random": tuple(train[int(i)] for i in drawn),
        "all_negative": ("",) * count,
    }


def agreement_of_texts(
    texts: Sequence[str],
    truth: Int8[np.ndarray, "n l"],
    patients: Sequence[object],
    plan: Resampling,
) -> Agreement:
    """`agreement` of texts, truth in the order of `CHEXPERT_NAMES`."""
    return agreement(label_texts(texts), truth, patients, plan)


def _f1(counts: Float64[np.ndarray, "3 *any"]) -> Float64[np.ndarray, "*any"]:
    """F1 of true positives, false positives, false negatives; 0 where there are none of them."""
    both = 2 * counts[0]
    whole = both + counts[1] + counts[2]
    result: Float64[np.ndarray, "*any"] = np.where(whole > 0, both / np.maximum(whole, 1e-12), 0.0)
    return result


def _scores(counts: Float64[np.ndarray, "3 b l"], exists: np.ndarray) -> Float64[np.ndarray, "2 b"]:
    """Micro and macro F1 of B samples; macro over the labels that are true of one in the sample."""
    there = (counts[0] + counts[2] > 0) & exists
    number = there.sum(axis=-1)
    macro = np.where(there, _f1(counts), 0.0).sum(axis=-1) / np.maximum(number, 1)
    return np.stack([_f1(counts.sum(axis=-1)), np.where(number > 0, macro, np.nan)])
