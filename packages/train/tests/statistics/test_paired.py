import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from medqua.core.errors import ShapeError
from medqua.train.data.manifest import IGNORED
from medqua.train.evaluation.metrics import macro_auroc
from medqua.train.statistics.delong import delong
from medqua.train.statistics.paired import difference, draw_macro
from medqua.train.statistics.resampling import Resampling

PLAN = Resampling(300)


def sample(patients=60, images=2, labels=3, seeds=2, gain=1.0, seed=0):
    """Scores of one arm, of which `gain` says how good they are, on patients of several images."""
    rng = np.random.default_rng(seed)
    n = patients * images
    targets = rng.integers(0, 2, (n, labels)).astype(np.int8)
    scores = rng.normal(size=(seeds, n, labels)) + gain * targets
    return scores, targets, np.repeat(np.arange(patients), images).tolist()


def compared(first, second, targets, clusters, plan=PLAN):
    return difference(
        draw_macro(first, targets, clusters, plan), draw_macro(second, targets, clusters, plan)
    )


def test_the_figure_is_the_mean_of_the_seeds():
    scores, targets, clusters = sample(seeds=3)
    targets[::7, 1] = IGNORED
    other = scores[:, ::-1].copy()
    found = compared(scores, other, targets, clusters)
    expected = np.mean([macro_auroc(own, targets) for own in scores])
    expected -= np.mean([macro_auroc(own, targets) for own in other])
    assert found.estimate == pytest.approx(expected, abs=1e-14)


def test_one_label_and_one_seed_agree_with_delong():
    rng = np.random.default_rng(1)
    targets = rng.integers(0, 2, (600, 1)).astype(np.int8)
    base = rng.normal(size=(600, 1)) + targets
    first, second = (base + 0.8 * rng.normal(size=(600, 1)) for _ in range(2))
    clusters = np.repeat(np.arange(300), 2).tolist()
    found = compared(first[None], second[None], targets, clusters, Resampling(3000))
    expected = delong(np.stack([first[:, 0], second[:, 0]]), targets[:, 0], clusters=clusters)
    assert found.estimate == pytest.approx(expected.estimate, abs=1e-13)
    np.testing.assert_allclose(
        found.interval.bounds, expected.interval.bounds, atol=0.1 * 4 * expected.standard_error
    )
    assert found.p == pytest.approx(expected.p, abs=0.06)


def test_pairing_narrows_the_interval():
    scores, targets, clusters = sample(gain=0.7, seeds=1, patients=150)
    other = scores + 0.1 * np.random.default_rng(2).normal(size=scores.shape)
    paired = compared(scores, other, targets, clusters)
    alone = draw_macro(scores, targets, clusters, PLAN).draws[:, 0]
    assert np.diff(paired.interval.bounds)[0] < 0.5 * 2 * 1.96 * alone.std()


def test_seeds_that_differ_widen_the_interval_over_seeds():
    scores, targets, clusters = sample(seeds=5, patients=200, labels=1)
    uneven = scores + np.array([-2.0, -1.0, 0.0, 1.0, 2.0])[:, None, None] * targets
    steady = np.broadcast_to(scores[:1], scores.shape).copy()
    found = compared(uneven, steady, targets, clusters)
    assert np.diff(found.seeds_interval.bounds)[0] > 2 * np.diff(found.interval.bounds)[0]
    still = compared(steady, steady[:, ::-1].copy(), targets, clusters)
    assert still.seeds_interval.bounds == pytest.approx(still.interval.bounds, abs=1e-12)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_antisymmetric(seed):
    first, targets, clusters = sample(patients=20, seed=seed)
    second = first[:, :, ::-1].copy()
    there = compared(first, second, targets, clusters, Resampling(60))
    back = compared(second, first, targets, clusters, Resampling(60))
    assert there.estimate == pytest.approx(-back.estimate, abs=1e-14)
    for name in ("interval", "seeds_interval"):
        one, other = getattr(there, name), getattr(back, name)
        assert one.bounds == pytest.approx((-other.bounds[1], -other.bounds[0]), abs=1e-12)
    assert there.p == back.p


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_monotone_transforms_change_nothing(seed):
    first, targets, clusters = sample(patients=20, seed=seed)
    second = np.round(first + 0.3, 1)
    plan = Resampling(60)
    one = compared(first, second, targets, clusters, plan)
    assert compared(np.exp(first), 5 * second - 3, targets, clusters, plan) == one


def test_equal_predictions_differ_by_nothing():
    scores, targets, clusters = sample()
    found = compared(scores, scores.copy(), targets, clusters)
    assert (found.estimate, found.p) == (0.0, 1.0)
    assert found.interval.bounds == (0.0, 0.0)


def test_arms_of_one_and_of_many_seeds_compare():
    scores, targets, clusters = sample(seeds=5)
    found = compared(scores, scores[:1], targets, clusters)
    assert found.p is not None
    assert found.seeds_interval.bounds is not None


def test_a_rare_label_gives_no_nan():
    scores, targets, clusters = sample(patients=30)
    targets[:, 2] = 0
    targets[3, 2] = 1
    found = compared(scores, -scores, targets, clusters)
    assert np.isfinite([found.estimate, found.p, *found.interval.bounds]).all()


def test_without_any_label_it_says_why():
    scores, targets, clusters = sample()
    found = compared(scores, scores, np.zeros_like(targets), clusters)
    assert found.estimate is None
    assert found.p is None
    assert found.interval.reason == "no label has both a positive and a negative image"


def test_what_is_not_paired_is_refused():
    scores, targets, clusters = sample()
    first = draw_macro(scores, targets, clusters, PLAN)
    with pytest.raises(ShapeError, match="same plan"):
        difference(first, draw_macro(scores, targets, clusters, Resampling(300, seed=1)))
    with pytest.raises(ShapeError, match="119 patients"):
        draw_macro(scores, targets, clusters[1:], PLAN)
    with pytest.raises(ShapeError, match="at least one seed"):
        draw_macro(scores[:0], targets, clusters, PLAN)


@pytest.mark.slow
def test_coverage_on_simulated_patients():
    """Binormal scores of gain d have AUROC Phi(d / sqrt 2): 95 % intervals hold the truth.

    Images of a patient share half of the noise. 300 samples: three standard errors of the
    coverage are 3.8 points; the percentile interval may be narrow by as much again.
    """
    rng = np.random.default_rng(0)
    truth = norm.cdf(1.2 / np.sqrt(2)) - norm.cdf(0.8 / np.sqrt(2))
    inside = 0
    for _ in range(300):
        targets = rng.integers(0, 2, (200, 2)).astype(np.int8)
        clusters = np.repeat(np.arange(100), 2)
        shared = rng.normal(size=(100, 2))[clusters]
        first, second = (
            (gain * targets + np.sqrt(0.5) * (shared + rng.normal(size=(200, 2))))[None]
            for gain in (1.2, 0.8)
        )
        found = compared(first, second, targets, clusters.tolist(), Resampling(400))
        low, high = found.interval.bounds
        inside += low <= truth <= high
    assert 0.89 <= inside / 300 <= 0.99
