import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medqua.core import NoiseModel
from medqua.core.errors import ConfigError, QuantumError
from medqua.core.quantum.ansatz import Ansatz
from medqua.core.quantum.runtime import report
from medqua.core.quantum.runtime.mitigation import (
    Readout,
    calibrate,
    extrapolate,
    folded,
    mitigate,
    on_simulator,
)
from medqua.core.quantum.runtime.queue import JobQueue
from medqua.core.quantum.runtime.reference import exact_values, probabilities


def misreading(up, down, shots, seed):
    """Measure by drawing from the exact distribution, each bit then misread by itself."""
    random = np.random.default_rng(seed)

    def measure(circuits):
        answers = []
        for circuit in circuits:
            n = circuit.ansatz.n_qubits
            states = random.choice(2**n, shots, p=probabilities(circuit))
            bits = states[:, None] >> np.arange(n - 1, -1, -1) & 1
            wrong = random.random(bits.shape) < np.where(bits == 1, down, up)
            strings, counts = np.unique(bits ^ wrong, axis=0, return_counts=True)
            texts = ["".join(map(str, row)) for row in strings]
            answers.append(dict(zip(texts, counts.tolist(), strict=True)))
        return answers

    return measure


def test_corrected_readout_is_unbiased_and_its_errors_are_true():
    (circuit,) = report.batch(tokens=1, n_qubits=3, seed=4)
    exact = exact_values(circuit)
    up, down = np.array([0.02, 0.1, 0.05]), np.array([0.08, 0.03, 0.2])
    pulls, raw = [], []
    for seed in range(150):
        measure = misreading(up, down, 2000, seed)
        readout = calibrate(measure, circuit.ansatz)
        (counts,) = measure([circuit])
        values, errors = readout.correct(counts)
        pulls.append((values - exact) / errors)
        raw.append(Readout(0 * up, 0 * up, 2000).correct(counts)[0])
    # 450 pulls: mean 0 +- 0.05, standard deviation 1 +- 0.035
    assert abs(np.mean(pulls)) < 0.2
    assert 0.87 < np.std(pulls) < 1.13
    np.testing.assert_allclose(
        np.mean(raw, 0), (1 - up - down) * exact + down - up, atol=5 / math.sqrt(2000 * 150)
    )


def test_calibration_finds_the_readout_errors_of_a_simulator():
    noise = NoiseModel(readout=((0.02, 0.1, 0.05), (0.08, 0.03, 0.2)))
    measure = on_simulator("density-matrix-cpu", 50_000, seed=1, noise=noise)
    readout = calibrate(measure, Ansatz(3, 1, encoding="rx"))
    for got, true in ((readout.up, noise.readout[0]), (readout.down, noise.readout[1])):
        true = np.array(true)
        assert (np.abs(got - true) < 5 * np.sqrt(true * (1 - true) / 50_000)).all()


def test_readout_without_information_has_no_inverse():
    with pytest.raises(QuantumError, match="qubit 1 reads"):
        calibrate(misreading(np.array([0.0, 0.6]), np.array([0.0, 0.6]), 500, 0), Ansatz(2, 1))


@pytest.mark.parametrize(
    ("method", "curve"),
    [
        ("linear", lambda s: 0.7 - 0.1 * s),
        ("richardson", lambda s: 0.7 - 0.1 * s + 0.02 * s**2),
        ("quadratic", lambda s: 0.7 - 0.1 * s + 0.02 * s**2),
        ("exponential", lambda s: 0.7 * np.exp(-0.2 * s)),
        ("exponential", lambda s: -0.7 * np.exp(-0.2 * s)),
    ],
    ids=["line", "parabola", "least squares", "decay", "negative decay"],
)
def test_extrapolation_is_exact_for_the_curve_that_it_supposes(method, curve):
    scales = np.array([1.0, 3.0, 5.0])
    values = curve(scales)[:, None]
    got = extrapolate((1, 3, 5), values, np.full_like(values, 0.01), method)
    assert got.values[0] == pytest.approx(curve(0.0), abs=1e-6)


def test_errors_of_richardson_are_those_of_its_weights():
    # Lagrange at 0 through 1, 3, 5: 15/8, -10/8, 3/8
    errors = np.array([[0.01], [0.02], [0.03]])
    got = extrapolate((1, 3, 5), np.array([[0.5], [0.4], [0.3]]), errors, "richardson")
    expected = math.hypot(15 / 8 * 0.01, 10 / 8 * 0.02, 3 / 8 * 0.03)
    assert got.errors[0] == pytest.approx(expected)


def test_errors_of_the_exponential_are_those_of_repetition():
    random = np.random.default_rng(0)
    truth, sigma = 0.7 * np.exp(-0.2 * np.array([1.0, 3.0, 5.0])), 0.005
    draws = truth[:, None] + sigma * random.normal(size=(3, 300))
    got = extrapolate((1, 3, 5), draws, np.full_like(draws, sigma), "exponential")
    assert np.std(got.values) == pytest.approx(got.errors.mean(), rel=0.15)


@settings(max_examples=20, deadline=None)
@given(st.floats(-1, 1), st.sampled_from(("richardson", "linear", "quadratic")))
def test_values_that_noise_does_not_change_stay(value, method):
    values = np.full((3, 1), value)
    got = extrapolate((1, 3, 5), values, np.zeros((3, 1)), method)
    assert got.values[0] == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("fold", ["gates", "circuit"])
def test_mitigation_takes_the_bias_out(fold):
    (circuit,) = report.batch(tokens=1, n_qubits=3, seed=2)
    exact = exact_values(circuit)
    noise = NoiseModel.depolarising(0.004, 0.02, (0.03, 0.06))
    measure = on_simulator("density-matrix-cpu", 100_000, seed=3, noise=noise)
    readout = calibrate(measure, circuit.ansatz)
    raw = mitigate(measure, circuit, scales=(1, 3), method="linear")
    got = mitigate(
        measure, circuit, scales=(1, 3, 5), fold=fold, method="richardson", readout=readout
    )
    (counts,) = measure([circuit])
    plain, plain_errors = Readout(np.zeros(3), np.zeros(3), 1).correct(counts)
    assert (np.abs(plain - exact) / plain_errors).max() > 15  # there is a bias to take out
    assert np.abs(got.values - exact).max() < 0.25 * np.abs(plain - exact).max()
    # what is left is curvature beyond the second order, below the shot noise here
    assert (np.abs(got.values - exact) < 5 * got.errors).all()
    assert (got.errors > plain_errors).all()  # it is paid for in variance
    assert np.abs(raw.values - exact).max() > np.abs(got.values - exact).max()  # readout remains


def test_mitigation_measures_through_the_queue(tmp_path):
    (circuit,) = report.batch(tokens=1, n_qubits=2, depth=1)
    queue = JobQueue("ionq-emulated", 4000, tmp_path)
    got = mitigate(queue.measure, circuit, scales=(1, 3), method="linear")
    assert (np.abs(got.values - exact_values(circuit)) < 5 * got.errors).all()
    assert len(list(tmp_path.glob("*.counts"))) == 2


@pytest.mark.parametrize(("scale", "fold"), [(2, "gates"), (-1, "gates"), (3, "half")])
def test_folds_that_do_not_exist_are_refused(scale, fold):
    (circuit,) = report.batch(tokens=1)
    with pytest.raises(ConfigError):
        folded(circuit, scale, fold)
    with pytest.raises(ConfigError, match="folded already"):
        folded(folded(circuit, 3), 3)


@pytest.mark.parametrize(
    ("scales", "shape", "method", "message"),
    [
        ((1, 3), (2, 1), "cubic", "choose one of"),
        ((1, 3), (2, 1), "quadratic", "needs 3"),
        ((1, 1), (2, 1), "linear", "different"),
        ((1, 3), (3, 1), "linear", "one row for each"),
    ],
)
def test_extrapolation_that_makes_no_sense_is_refused(scales, shape, method, message):
    with pytest.raises(ConfigError, match=message):
        extrapolate(scales, np.zeros(shape), np.zeros(shape), method)


def test_folded_circuit_counts_its_gates():
    (circuit,) = report.batch(tokens=1)
    assert folded(circuit, 5).gates == folded(circuit, 5, "circuit").gates == 5 * circuit.gates


def test_noise_and_machines_are_refused_where_they_do_not_belong(monkeypatch):
    with pytest.raises(QuantumError, match="ignores noise"):
        on_simulator("ionq-emulated", 10, noise=NoiseModel.depolarising(0.1, 0.1))
    monkeypatch.setenv("IONQ_API_KEY", "x")
    with pytest.raises(QuantumError, match="is a machine"):
        on_simulator("ionq", 10)
