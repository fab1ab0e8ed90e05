import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from medqua.core.errors import ShapeError
from medqua.train.data.manifest import IGNORED
from medqua.train.statistics.bootstrap import drawn_auroc
from medqua.train.statistics.delong import delong, delong_covariance
from medqua.train.statistics.resampling import Resampling


def sample(n=80, k=2, seed=0, ties=True):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 2, n).astype(np.int8)
    targets[:4] = [0, 1, 0, 1]
    scores = rng.normal(size=(k, n)) + targets * np.linspace(0.5, 1.5, k)[:, None]
    return (np.round(scores, 1) if ties else scores), targets


def by_pairs(scores, targets):
    """DeLong, DeLong and Clarke-Pearson 1988, equations 2 to 6, all O(m n) pairs."""
    positive, negative = scores[:, targets == 1], scores[:, targets == 0]
    wins = (positive[:, :, None] > negative[:, None, :]) + 0.5 * (
        positive[:, :, None] == negative[:, None, :]
    )
    v10, v01 = wins.mean(axis=2), wins.mean(axis=1)
    return v10.mean(axis=1), np.cov(v10) / v10.shape[1] + np.cov(v01) / v01.shape[1]


@pytest.mark.parametrize("ties", [True, False])
def test_midranks_equal_all_pairs(ties):
    scores, targets = sample(k=3, ties=ties)
    areas, covariance = delong_covariance(scores, targets)
    expected_areas, expected = by_pairs(scores, targets)
    np.testing.assert_allclose(areas, expected_areas, atol=1e-14)
    np.testing.assert_allclose(covariance, expected, atol=1e-15)
    np.testing.assert_allclose(areas, [roc_auc_score(targets, row) for row in scores], atol=1e-14)


def test_two_against_two_by_hand():
    """Positives 3, 1 against negatives 2, 0: placements 1, 1/2 and 1/2, 1; AUROC 3/4.

    Each class has sample variance 1/8 over 2 images: variance 1/16 + 1/16 = 1/8.
    """
    scores, targets = np.array([[3.0, 1.0, 2.0, 0.0]]), np.array([1, 1, 0, 0], np.int8)
    areas, covariance = delong_covariance(scores, targets)
    assert areas[0] == 0.75
    assert covariance[0, 0] == pytest.approx(1 / 8, abs=1e-15)
    found = delong(scores, targets, (1.0,))
    assert found.standard_error == pytest.approx(np.sqrt(1 / 8), abs=1e-15)


def clustered_by_pairs(scores, targets, patients):
    """Obuchowski 1997, section 3, for one score, written with loops."""
    positive, negative = np.flatnonzero(targets == 1), np.flatnonzero(targets == 0)
    m, n = len(positive), len(negative)

    def kernel(i, j):
        return float(scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j])

    area = sum(kernel(i, j) for i in positive for j in negative) / (m * n)
    x, y = {}, {}
    for i in positive:
        value = sum(kernel(i, j) for j in negative) / n - area
        x[patients[i]] = x.get(patients[i], 0.0) + value
    for j in negative:
        value = sum(kernel(i, j) for i in positive) / m - area
        y[patients[j]] = y.get(patients[j], 0.0) + value
    everyone = set(x) | set(y)
    s10 = len(x) / ((len(x) - 1) * m) * sum(v**2 for v in x.values())
    s01 = len(y) / ((len(y) - 1) * n) * sum(v**2 for v in y.values())
    s11 = len(everyone) / (len(everyone) - 1) * sum(x.get(k, 0) * y.get(k, 0) for k in everyone)
    return s10 / m + s01 / n + 2 * s11 / (m * n)


def test_clusters_as_obuchowski_has_them():
    scores, targets = sample(60, 1)
    patients = np.random.default_rng(3).integers(0, 20, 60).tolist()
    _, covariance = delong_covariance(scores, targets, patients)
    expected = clustered_by_pairs(scores[0], targets, patients)
    assert covariance[0, 0] == pytest.approx(expected, rel=1e-12)


def test_clusters_of_copies_widen_the_interval_to_that_of_the_patients():
    scores, targets = sample(100, ties=False)
    one = delong(scores, targets)
    patients = np.repeat(np.arange(100), 4).tolist()
    many = delong(np.repeat(scores, 4, 1), np.repeat(targets, 4), clusters=patients)
    assert many.standard_error == pytest.approx(one.standard_error, rel=1e-12)
    naive = delong(np.repeat(scores, 4, 1), np.repeat(targets, 4))
    assert naive.standard_error == pytest.approx(one.standard_error / 2, rel=0.02)


def test_agrees_with_the_bootstrap_of_patients():
    rng = np.random.default_rng(5)
    targets = rng.integers(0, 2, 400).astype(np.int8)
    patients = np.repeat(np.arange(200), 2).tolist()
    shared = np.repeat(rng.normal(size=200), 2)
    scores = shared + targets * np.array([[0.8], [1.2]]) + rng.normal(size=(2, 400))
    drawn = drawn_auroc(scores[:, :, None], targets[:, None], patients, Resampling(1500))[:, :, 0]
    found = delong(scores, targets, clusters=patients)
    assert found.standard_error == pytest.approx(np.std(drawn[:, 0] - drawn[:, 1]), rel=0.08)


def test_seeds_are_one_contrast():
    scores, targets = sample(k=4, ties=False)
    areas, covariance = delong_covariance(scores, targets)
    weights = np.array([0.5, 0.5, -0.5, -0.5])
    found = delong(scores, targets, tuple(weights))
    assert found.estimate == pytest.approx(weights @ areas, abs=1e-14)
    assert found.standard_error == pytest.approx(np.sqrt(weights @ covariance @ weights))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(8, 60))
def test_antisymmetric_and_blind_to_monotone_transforms(seed, n):
    scores, targets = sample(n, seed=seed)
    there, back = delong(scores, targets), delong(scores[::-1].copy(), targets)
    assert there.estimate == pytest.approx(-back.estimate, abs=1e-14)
    assert there.p == pytest.approx(back.p, abs=1e-12)
    low, high = there.interval.bounds
    assert back.interval.bounds == pytest.approx((-high, -low), abs=1e-12)
    bent = delong(np.exp(3 * scores) + 1, targets)
    assert bent == there
    assert 0 <= there.p <= 1


@given(st.integers(0, 1000))
def test_equal_predictions_differ_by_nothing(seed):
    scores, targets = sample(seed=seed, k=1)
    found = delong(np.repeat(scores, 10, 0), targets, (0.2,) * 5 + (-0.2,) * 5)
    assert (found.estimate, found.p, found.interval.bounds) == (0.0, 1.0, (0.0, 0.0))


@pytest.mark.parametrize(
    ("targets", "patients", "reason"),
    [
        ([0, 0, 0, 0], "abcd", "no positive image"),
        ([1, 1, IGNORED, 1], "abcd", "no negative image"),
        ([IGNORED] * 4, "abcd", "no positive image"),
        ([1, 1, 0, 0], "aabc", "one patient"),
        ([1, 0, 0, 0], "abcd", "one patient"),
    ],
)
def test_what_has_no_test_says_why(targets, patients, reason):
    scores = np.arange(8.0).reshape(2, 4) % 3
    found = delong(scores, np.array(targets, np.int8), clusters=patients)
    assert found.p is None
    assert found.interval.bounds is None
    assert reason in found.reason


def test_without_spread_there_is_no_p():
    scores = np.array([[2.0, 2.0, 1.0, 1.0], [1.0, 1.0, 2.0, 2.0]])
    found = delong(scores, np.array([1, 1, 0, 0], np.int8))
    assert found.estimate == 1.0
    assert found.p is None
    assert "no spread" in found.reason


def test_unknown_labels_do_not_count():
    scores, targets = sample()
    hidden = targets.copy()
    hidden[10:20] = IGNORED
    keep = hidden != IGNORED
    assert delong(scores, hidden) == delong(scores[:, keep], targets[keep])


def test_shapes_that_do_not_fit_are_refused():
    scores, targets = sample()
    with pytest.raises(ShapeError, match="3 weights for 2 scores"):
        delong(scores, targets, (1.0, 0.0, -1.0))
    with pytest.raises(ShapeError, match="79 patients"):
        delong(scores, targets, clusters=range(79))
    with pytest.raises(ShapeError, match="one class alone"):
        delong_covariance(scores, np.ones_like(targets))


@pytest.mark.slow
def test_level_on_simulated_patients():
    """Two equally good scores: p below 0.05 in about 5 % of 600 samples (binomial, 4 sigma)."""
    rng = np.random.default_rng(0)
    small = 0
    for _ in range(600):
        patients = np.repeat(np.arange(100), 2)
        targets = rng.integers(0, 2, 200).astype(np.int8)
        shared = np.repeat(rng.normal(size=(2, 100)), 2, axis=1)
        scores = shared + targets + rng.normal(size=(2, 200))
        small += delong(scores, targets, clusters=patients.tolist()).p < 0.05
    assert 600 * 0.05 - 4 * np.sqrt(600 * 0.05 * 0.95) < small
    assert small < 600 * 0.05 + 4 * np.sqrt(600 * 0.05 * 0.95)
