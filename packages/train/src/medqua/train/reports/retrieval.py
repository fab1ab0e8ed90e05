"""Reports found again by their image: ranks of the right one, beside what chance would do.

A gallery has M different texts. For each of N images all of them are scored; a hit is a text that
is equal to the image's own report, or one that has the same labels. The rank is that of the best
hit; where scores are equal, every other text counts as ahead, so that a score that tells nothing
gains nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from medqua.core.errors import ShapeError
from medqua.train.statistics.resampling import Interval, Resampling

CUTS = (1, 5, 10)
"""Ranks up to which a hit counts for recall."""


@dataclass(frozen=True)
class Found:
    """How well images find their reports, one way of scoring."""

    recall: tuple[float, ...]
    """Share of images with a hit at ranks up to each of `CUTS`."""
    recall_intervals: tuple[Interval, ...]
    """Of `recall`, over patients."""
    reciprocal: float
    """Mean of 1 / rank."""
    reciprocal_interval: Interval
    """Of `reciprocal`, over patients."""
    median: float
    """Median rank."""
    median_interval: Interval
    """Of `median`, over patients."""


@dataclass(frozen=True)
class Chance:
    """What texts in random order would reach, exactly."""

    recall: tuple[float, ...]
    """As in `Found`, in expectation."""
    reciprocal: float
    """The same."""
    median: float
    """Smallest rank that half of all images have reached, in expectation."""


def ranks(
    scores: Float64[np.ndarray, "n m"], hits: Bool[np.ndarray, "images texts"]
) -> Int64[np.ndarray, " n"]:
    """Rank of each image's best hit, from 1; texts of equal score count as ahead of it.

    Args:
        scores: `[N, M]`, the higher the better.
        hits: `[N, M]`, at least one in each row.

    Raises:
        ShapeError: Shapes differ, or an image has no hit.
    """
    if scores.shape != hits.shape or not hits.any(axis=1).all():
        raise ShapeError(
            f"scores {scores.shape} with hits {hits.shape}: needed equal shapes, and a hit for "
            "each image"
        )
    best = np.where(hits, scores, -np.inf).max(axis=1, keepdims=True)
    ahead: Int64[np.ndarray, " n"] = ((scores >= best) & ~hits).sum(axis=1)
    return ahead + 1


def found(
    scores: Float64[np.ndarray, "n m"],
    hits: Bool[np.ndarray, "images texts"],
    patients: Sequence[object],
    plan: Resampling,
) -> Found:
    """Recall, reciprocal and median rank with intervals over patients.

    Args:
        scores: `[N, M]`, the higher the better.
        hits: `[N, M]`, at least one in each row.
        patients: N of them; equal entries are drawn together.
        plan: How patients are drawn.

    Raises:
        ShapeError: As `ranks`.
    """
    place = ranks(scores, hits)
    values = np.stack([*(place <= cut for cut in CUTS), 1 / place], axis=1).astype(np.float64)
    drawn = np.full((plan.resamples, values.shape[1] + 1), np.nan)
    order = np.argsort(place, kind="stable")
    for rows, weights in plan.weights(patients):
        total = weights.sum(axis=1, keepdims=True)
        drawn[rows, :-1] = weights @ values / total
        reached = np.cumsum(weights[:, order], axis=1) >= total / 2
        drawn[rows, -1] = place[order][reached.argmax(axis=1)]
    intervals = [plan.percentiles(column) for column in drawn.T]
    mean = values.mean(axis=0)
    return Found(
        tuple(float(value) for value in mean[:-1]),
        tuple(intervals[: len(CUTS)]),
        float(mean[-1]),
        intervals[len(CUTS)],
        float(np.sort(place)[(len(place) - 1) // 2]),
        intervals[-1],
    )


def chance(hits: Bool[np.ndarray, "n m"]) -> Chance:
    """What a random order of the texts reaches, from the numbers of hits alone.

    P(rank > r) = C(M - h, r) / C(M, r) for an image with h hits among M texts.
    """
    texts = hits.shape[1]
    later = np.ones((len(hits), texts + 1))  # P(rank > r), r from 0
    count = hits.sum(axis=1)
    for r in range(texts):
        later[:, r + 1] = later[:, r] * np.maximum(texts - count - r, 0) / (texts - r)
    mean = later.mean(axis=0)
    exactly = mean[:-1] - mean[1:]
    return Chance(
        tuple(float(1 - mean[min(cut, texts)]) for cut in CUTS),
        float((exactly / np.arange(1, texts + 1)).sum()),
        float(np.argmax(1 - mean >= 0.5 - 1e-12)),
    )


def beyond_the_text(
    nats: Float64[np.ndarray, "n m"], references: Float64[np.ndarray, "k m"]
) -> Float64[np.ndarray, "n m"]:
    """Log p(text | image) - log p(text), p(text) the mean over K reference images.

    Without the second term short and common texts would be first for every image.

    Args:
        nats: `[N, M]`, -log p of each text given each image.
        references: `[K, M]`, the same given the references.
    """
    low = references.min(axis=0)
    alone = np.log(np.exp(low - references).mean(axis=0)) - low  # log p(text)
    beyond: Float64[np.ndarray, "n m"] = -nats - alone
    return beyond


def by_findings(
    probabilities: Float64[np.ndarray, "n l"],
    prior: Float64[np.ndarray, " l"],
    labels: np.ndarray,
) -> Float64[np.ndarray, "n m"]:
    """Score texts by their labels alone, from a classifier's probabilities.

    The sum, over the findings that a text states or denies, of the log of the classifier's
    probability over the finding's share in training.

    Args:
        probabilities: `[N, L]` of the classifier.
        prior: `[L]`, shares of positives in training.
        labels: `[M, L]` int8 codes of the texts, as `label_texts`.
    """
    p, base = (np.clip(values, 1e-6, 1 - 1e-6) for values in (probabilities, prior))
    stated, denied = (labels == 1).astype(float), (labels == 0).astype(float)
    scores: Float64[np.ndarray, "n m"] = (
        np.log(p / base) @ stated.T + np.log((1 - p) / (1 - base)) @ denied.T
    )
    return scores
