"""Counts, operating points and intervals of validation, from closed forms and by enumeration."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from medqua.core.errors import ConfigError, ShapeError
from medqua.core.findings.validation import (
    FEWEST,
    KEPT,
    Band,
    LabelValidation,
    Point,
    Validation,
    wilson,
)


@pytest.mark.parametrize(("k", "n"), [(0, 9), (3, 20), (20, 20), (57, 400)])
def test_wilson_is_scipys(k: int, n: int):
    expected = binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_no_image_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


def drawn(seed: int, n: int, apart: float) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    y = random.random(n) < 0.3
    z = random.normal(size=n) + apart * (y - 0.5)
    return np.round(1 / (1 + np.exp(-z)), 2), y  # rounded: ties


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(40, 200), st.sampled_from([0.0, 1.0, 3.0, 9.0]))
def test_operating_points_keep_what_they_promise(seed: int, n: int, apart: float):
    p, y = drawn(seed, n, apart)
    (label,) = Validation.measure(p[:, None], y[:, None]).labels
    assert (label.positives, label.negatives) == (y.sum(), n - y.sum())
    assert sum(band.images for band in label.bands) == n
    assert sum(band.positives for band in label.bands) == y.sum()
    if min(label.positives, label.negatives) < FEWEST:
        assert not label.points
        assert label.call(0.5) == "not judged"
        return
    for name, point in label.points.items():
        at = p >= point.threshold
        assert point.sensitivity == pytest.approx(at[y].mean()), name
        assert point.specificity == pytest.approx((~at[~y]).mean()), name
    screening, balanced, rule_in = label.points.values()
    assert screening.sensitivity >= KEPT
    higher = p[p > screening.threshold]
    assert not len(higher) or (p[y] >= higher.min()).mean() < KEPT
    assert rule_in.specificity >= KEPT
    lower = p[p < rule_in.threshold]
    assert not len(lower) or (p[~y] < lower.max()).mean() < KEPT
    best = max((p[y] >= t).mean() + (p[~y] < t).mean() for t in np.unique(p))
    assert balanced.sensitivity + balanced.specificity == pytest.approx(best)


def points(screening: float, balanced: float, rule_in: float) -> LabelValidation:
    named = {"screening": screening, "balanced": balanced, "rule-in": rule_in}
    return LabelValidation(20, 20, (), {n: Point(t, 1, 1, 1, 1) for n, t in named.items()})


@pytest.mark.parametrize(
    ("thresholds", "calls"),
    [
        ((0.2, 0.4, 0.7), ["unlikely", "uncertain", "uncertain", "likely"]),
        ((0.7, 0.4, 0.2), ["unlikely", "unlikely", "likely", "likely"]),
    ],
)
def test_calls(thresholds: tuple[float, float, float], calls: list[str]):
    label = points(*thresholds)
    assert [label.call(p) for p in (0.1, 0.3, 0.5, 0.7)] == calls


def test_a_band_is_that_of_similar_images():
    p = np.repeat([0.11, 0.5, 1.0], 20)[:, None]
    y = np.concatenate([np.zeros(20), np.arange(20) < 7, np.ones(20)])[:, None]
    (label,) = Validation.measure(p, y).labels
    assert [(b.low, b.high, b.images, b.positives) for b in label.bands] == [
        (0.1, 0.2, 20, 0), (0.5, 0.6, 20, 7), (0.98, 1.0, 20, 20),
    ]  # fmt: skip
    for probability, k in ((0.1, 0), (0.59, 7), (1.0, 20)):
        band = label.band(probability)
        assert band is not None
        assert band.positives == k
        assert band.interval == wilson(k, 20)
    assert label.band(0.6) is label.band(0.05) is None  # no validation image was there


def test_unknown_targets_count_for_nothing():
    p, y = drawn(1, 100, 1.0)
    mask = np.arange(100) < 60
    some = Validation.measure(p[:, None], np.where(mask, y, 9)[:, None], mask[:, None])
    assert some == Validation.measure(p[:60, None], y[:60, None])


def test_plain_values_come_back_and_wrong_ones_are_refused():
    p, y = drawn(2, 100, 1.0)
    told = Validation.measure(p[:, None], y[:, None])
    assert Validation.from_dict(told.to_dict()) == told
    wrong = told.to_dict()
    wrong["labels"][0]["bands"][0]["low"] = "0"
    for data in ({"version": 2}, {"version": 1}, {"version": 1, "labels": [{}]}, wrong):
        with pytest.raises(ConfigError, match="validation figures"):
            Validation.from_dict(data)
    with pytest.raises(ShapeError, match="three"):
        Validation.measure(p, y)
    with pytest.raises(ShapeError, match="outside"):
        Validation.measure(2 + p[:, None], y[:, None])


def test_where_no_validation_image_was_near_nothing_is_judged():
    known = points(0.3, 0.3, 0.3).points
    label = LabelValidation(20, 80, (Band(0.2, 0.4, 60, 3),), known)
    assert label.call(0.35) == "likely"
    assert label.call(0.9) == label.call(0.05) == "not judged"
