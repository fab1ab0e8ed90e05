import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medqua.core.errors import ConfigError
from medqua.train.data.manifest import IGNORED
from medqua.train.metrics import macro_auroc
from medqua.train.statistics import bootstrap_auroc, weighted_auroc


def sample(n: int = 200, images: int = 1, seed: int = 0):
    """`images` copies of each patient's image."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 2, (n, 2)).astype(np.int8)
    scores = rng.normal(size=(n, 2)) + targets
    return (
        np.repeat(scores, images, 0),
        np.repeat(targets, images, 0),
        np.repeat(np.arange(n), images).tolist(),
    )


def test_weights_are_repetitions():
    rng = np.random.default_rng(1)
    targets = rng.integers(0, 2, 60).astype(np.int8)
    scores = np.round(rng.normal(size=60), 1)
    weights = rng.integers(0, 4, (5, 60))
    found = weighted_auroc(scores, targets, weights.astype(np.float64))
    for row, area in zip(weights, found, strict=True):
        expected = roc_auc_score(np.repeat(targets, row), np.repeat(scores, row))
        assert area == pytest.approx(expected, abs=1e-12)


def test_weights_that_leave_no_positive_give_nan():
    found = weighted_auroc(np.array([0.0, 1.0]), np.array([0, 1], np.int8), np.array([[1.0, 0.0]]))
    assert np.isnan(found).all()


def test_interval_agrees_with_the_standard_error_of_hanley_and_mcneil():
    scores, targets, patients = sample(400)
    area = roc_auc_score(targets[:, 0], scores[:, 0])
    positives = int(targets[:, 0].sum())
    negatives = len(targets) - positives
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (
        area * (1 - area) + (positives - 1) * (q1 - area**2) + (negatives - 1) * (q2 - area**2)
    )
    error = np.sqrt(variance / (positives * negatives))
    bounds = bootstrap_auroc(scores, targets, patients, resamples=2000).per_label[0].bounds
    assert bounds is not None
    assert bounds[0] < area < bounds[1]
    assert (bounds[1] - bounds[0]) / (2 * 1.96 * error) == pytest.approx(1, abs=0.12)


def test_copies_of_an_image_make_no_interval_narrower():
    one = bootstrap_auroc(*sample(150), resamples=400, seed=3)
    many = bootstrap_auroc(*sample(150, images=5), resamples=400, seed=3)
    assert one.macro.bounds == pytest.approx(many.macro.bounds)
    scores, targets, patients = sample(150, images=5)
    naive = bootstrap_auroc(scores, targets, range(len(patients)), resamples=400, seed=3)
    assert naive.macro.bounds is not None
    assert many.macro.bounds is not None
    width = np.diff(many.macro.bounds)[0] / np.diff(naive.macro.bounds)[0]
    assert width == pytest.approx(np.sqrt(5), rel=0.25)


def test_equal_seeds_equal_intervals():
    assert bootstrap_auroc(*sample(), seed=1) == bootstrap_auroc(*sample(), seed=1)
    assert bootstrap_auroc(*sample(), seed=1) != bootstrap_auroc(*sample(), seed=2)


def test_labels_that_resampling_cannot_judge_say_why():
    scores = np.zeros((6, 4))
    targets = np.zeros((6, 4), np.int8)
    targets[:2, 0] = 1  # both images of one patient
    targets[:, 1] = IGNORED
    targets[:, 3] = 1
    found = bootstrap_auroc(scores, targets, ["p", "p", "q", "r", "s", "t"], resamples=50)
    assert [interval.reason for interval in found.per_label] == [
        "all positive images are of one patient",
        "no positive image",
        "no positive image",
        "no negative image",
    ]
    assert found.macro.bounds is None


def test_small_chunks_change_nothing(monkeypatch):
    whole = bootstrap_auroc(*sample(50), resamples=100)
    monkeypatch.setattr("medqua.train.statistics.ROWS_AT_ONCE", 350)
    assert bootstrap_auroc(*sample(50), resamples=100) == whole


@pytest.mark.parametrize(("resamples", "confidence"), [(0, 0.95), (10, 1.0), (10, 0.0)])
def test_wrong_arguments_are_refused(resamples, confidence):
    with pytest.raises(ConfigError, match="bootstrap"):
        bootstrap_auroc(*sample(), resamples=resamples, confidence=confidence)


def test_macro_interval_is_of_the_labels_of_the_macro_figure():
    """A label whose one positive is ranked last pulls figure and interval down alike."""
    rng = np.random.default_rng(4)
    targets = np.zeros((80, 2), np.int8)
    targets[::2, 0], targets[7, 1] = 1, 1
    scores = rng.standard_normal((80, 2)) + 3 * targets * np.array([1, -2])
    point = macro_auroc(scores, targets)
    found = bootstrap_auroc(scores, targets, range(80), resamples=400, seed=1)
    assert found.per_label[1].bounds is None
    low, high = found.macro.bounds
    assert low <= point <= high
