import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize_scalar
from torchmetrics.functional.classification import binary_calibration_error

from medqua.core.errors import ConfigError, ShapeError
from medqua.core.findings.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    Calibration,
    expected_calibration_error,
    mean_calibration_error,
    negative_log_likelihood,
)


def drawn(n: int, temperature: float, seed: int = 0):
    """Logits that are `temperature` times too large for the targets drawn from them."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 2, n)
    targets = (rng.random(n) < 1 / (1 + np.exp(-true))).astype(float)
    return (true * temperature)[:, None], targets[:, None]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_spoiled_the_logits_is_found(temperature):
    logits, targets = drawn(40_000, temperature)
    fitted = Calibration.fit(logits, targets)
    assert fitted.temperatures[0] == pytest.approx(temperature, rel=0.03)
    before = expected_calibration_error(Calibration.identity(1)(logits)[:, 0], targets[:, 0])
    after = expected_calibration_error(fitted(logits)[:, 0], targets[:, 0])
    assert after < max(0.01, before / 2)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.2, 5))
def test_no_other_temperature_is_likelier(seed, temperature):
    logits, targets = drawn(200, temperature, seed)
    fitted = Calibration.fit(logits, targets).temperatures[0]
    best = minimize_scalar(
        lambda log_t: negative_log_likelihood(logits[:, 0], targets[:, 0], math.exp(log_t)),
        bounds=(math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)),
        method="bounded",
    )
    ours = negative_log_likelihood(logits[:, 0], targets[:, 0], fitted)
    assert ours <= best.fun + 1e-12


def test_masked_targets_have_no_say():
    logits, targets = drawn(500, 2.0)
    mask = np.ones_like(targets, bool)
    mask[::3] = False
    spoiled_logits, spoiled_targets = logits.copy(), targets.copy()
    spoiled_targets[~mask] = -1
    spoiled_logits[~mask] = 99
    assert Calibration.fit(spoiled_logits, spoiled_targets, mask) == Calibration.fit(
        logits[1:][(np.arange(499) % 3) != 2], targets[1:][(np.arange(499) % 3) != 2]
    )


def test_per_label_or_one_for_all():
    first, second = drawn(20_000, 0.5, 1), drawn(20_000, 2.0, 2)
    logits, targets = (np.hstack(pair) for pair in zip(first, second, strict=True))
    each = Calibration.fit(logits, targets).temperatures
    assert each == pytest.approx((0.5, 2.0), rel=0.05)
    one = Calibration.fit(logits, targets, per_label=False).temperatures
    assert one[0] == one[1]
    assert 0.5 < one[0] < 2


def test_a_label_without_both_classes_is_left_alone():
    logits = np.random.default_rng(0).normal(size=(50, 3))
    targets = np.zeros((50, 3))
    targets[:, 1] = 1
    mask = np.ones((50, 3), bool)
    mask[:, 2] = False
    assert Calibration.fit(logits, targets, mask).temperatures == (1.0, 1.0, 1.0)
    assert Calibration.fit(np.zeros((50, 1)), np.eye(50)[:, :1]).temperatures == (1.0,)


def test_bounds_hold_when_the_data_are_separable_or_reversed():
    logits = np.array([[-3.0], [-1.0], [2.0], [4.0]])
    assert Calibration.fit(logits, (logits > 0).astype(float)).temperatures == (MIN_TEMPERATURE,)
    assert Calibration.fit(logits, (logits < 0).astype(float)).temperatures == (MAX_TEMPERATURE,)


@given(
    st.lists(st.floats(0.05, 20), min_size=1, max_size=4),
    arrays(np.float32, (12,), elements=st.floats(-1e4, 1e4, width=32)),
)
def test_calibration_is_monotone_and_bounded(temperatures, column):
    calibration = Calibration(tuple(temperatures))
    logits = np.sort(column)[:, None].repeat(len(temperatures), axis=1)
    probabilities = calibration(logits)
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    assert (np.diff(probabilities, axis=0) >= 0).all()
    np.testing.assert_allclose(calibration(-logits), 1 - probabilities, atol=1e-15)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=14))
def test_json_round_trip_is_exact(temperatures):
    calibration = Calibration(tuple(temperatures))
    assert Calibration.from_dict(json.loads(json.dumps(calibration.to_dict()))) == calibration


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 20))
def test_equal_width_error_is_that_of_torchmetrics(seed, bins):
    rng = np.random.default_rng(seed)
    p, y = rng.random(300), rng.integers(0, 2, 300)
    theirs = binary_calibration_error(
        torch.from_numpy(p), torch.from_numpy(y), n_bins=bins, norm="l1"
    )
    assert expected_calibration_error(p, y, bins=bins) == pytest.approx(float(theirs), abs=1e-6)


def test_error_by_hand():
    p = np.array([0.1, 0.1, 0.9, 0.9])
    y = np.array([0, 0, 1, 0])
    assert expected_calibration_error(p, y, bins=2) == pytest.approx((2 * 0.1 + 2 * 0.4) / 4)
    assert expected_calibration_error(p, y, bins=2, equal_mass=True) == pytest.approx(0.25)
    assert expected_calibration_error(np.array([0.0, 1.0]), np.array([0, 1])) == 0
    assert expected_calibration_error(p, y, bins=4, equal_mass=True) == pytest.approx(0.3)
    assert math.isnan(expected_calibration_error(np.array([]), np.array([])))


def test_mean_error_skips_labels_without_targets():
    p, y = np.array([[0.1, 0.5], [0.9, 0.5]]), np.array([[0, -1], [0, -1]])
    mask = np.array([[True, False], [True, False]])
    assert mean_calibration_error(p, y, mask, bins=1) == pytest.approx(0.5)
    assert math.isnan(mean_calibration_error(p, y, np.zeros((2, 2), bool)))


def test_bad_input_is_refused():
    with pytest.raises(ConfigError, match="above 0"):
        Calibration((1.0, -1.0))
    with pytest.raises(ConfigError, match="above 0"):
        Calibration((math.nan,))
    with pytest.raises(ConfigError, match="no temperature"):
        Calibration(())
    for data in ({}, {"method": "isotonic", "temperatures": [1.0]}, {"temperatures": [1]}):
        with pytest.raises(ConfigError, match="needed the keys"):
            Calibration.from_dict(data)
    with pytest.raises(ConfigError, match="list of numbers"):
        Calibration.from_dict({"method": "temperature", "temperatures": ["1"]})
    with pytest.raises(ShapeError, match="2 temperatures"):
        Calibration((1.0, 1.0))(np.zeros((4, 3)))
    with pytest.raises(ShapeError, match="N, L"):
        Calibration.fit(np.zeros((4, 3)), np.zeros((4, 2)))
    with pytest.raises(ShapeError, match="mask uncertain"):
        Calibration.fit(np.zeros((2, 1)), np.array([[0.0], [-1.0]]))
    with pytest.raises(ShapeError, match=r"outside \[0, 1\]"):
        expected_calibration_error(np.array([2.0]), np.array([1]))
