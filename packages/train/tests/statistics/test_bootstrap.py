import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score

from medqua.core.errors import ConfigError
from medqua.core.findings.calibration import expected_calibration_error
from medqua.train.data.manifest import IGNORED
from medqua.train.evaluation.metrics import macro_auroc
from medqua.train.statistics.auroc import weighted_auroc
from medqua.train.statistics.bootstrap import bootstrap_auroc, bootstrap_calibration
from medqua.train.statistics.resampling import Resampling


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
    monkeypatch.setattr("medqua.train.statistics.resampling.ROWS_AT_ONCE", 350)
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


def calibrated(n: int = 300, seed: int = 0, bias: float = 0.0):
    """Probabilities that are right on average, or too high by `bias`."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.1, 0.7, (n, 1))
    targets = (rng.uniform(size=(n, 1)) < truth).astype(np.int8)
    return (truth + bias)[None], targets


def test_calibration_figures_are_those_of_their_definitions():
    probabilities, targets = calibrated()
    targets[::5] = IGNORED
    known = targets[:, 0] != IGNORED
    p, y = probabilities[0, known, 0], targets[known, 0]
    found = bootstrap_calibration(probabilities, targets, range(300), Resampling(50))
    assert found.ece == pytest.approx(expected_calibration_error(p, y), abs=1e-14)
    assert found.brier == pytest.approx(brier_score_loss(y, p), abs=1e-14)


def test_brier_interval_has_the_width_of_a_mean():
    probabilities, targets = calibrated(500)
    found = bootstrap_calibration(probabilities, targets, range(500), Resampling(2000))
    error = ((probabilities[0] - targets) ** 2).std() / np.sqrt(500)
    low, high = found.brier_interval.bounds
    assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.08)


def test_ece_interval_is_low_for_the_calibrated_and_holds_a_bias():
    right = bootstrap_calibration(*calibrated(1500), range(1500), Resampling(500))
    assert right.ece_interval.bounds[0] < 0.02
    probabilities, targets = calibrated(1500, bias=0.2)
    wrong = bootstrap_calibration(probabilities, targets, range(1500), Resampling(500))
    gap = (probabilities[0] - targets).mean()  # every bin errs on the same side
    assert wrong.ece == pytest.approx(gap, abs=1e-12)
    low, high = wrong.ece_interval.bounds
    error = (probabilities[0] - targets).std() / np.sqrt(1500)
    assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.12)
    assert low < gap < high


def test_seeds_are_averaged():
    probabilities, targets = calibrated()
    other = np.clip(probabilities + 0.1, 0, 1)
    both = np.concatenate([probabilities, other])
    plan = Resampling(30)
    one, two, mean = (
        bootstrap_calibration(p, targets, range(300), plan) for p in (probabilities, other, both)
    )
    assert mean.ece == pytest.approx((one.ece + two.ece) / 2)
    assert mean.brier == pytest.approx((one.brier + two.brier) / 2)


def test_calibration_of_nothing_says_so():
    probabilities, targets = calibrated()
    found = bootstrap_calibration(
        probabilities, np.full_like(targets, IGNORED), range(300), Resampling(5)
    )
    assert found.ece is None
    assert found.brier_interval.reason == "no label is known of any image"
