import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medqua.core import NoiseModel, VariationalBottleneck
from medqua.core.errors import ConfigError, QuantumError
from medqua.core.quantum.ansatz import Ansatz
from medqua.core.quantum.exact.fourier import FourierEngine
from medqua.core.quantum.runtime import report
from medqua.core.quantum.runtime.engine import CudaqEngine, measured_noise
from medqua.core.quantum.runtime.reference import chi_square, exact_values, probabilities
from medqua.core.quantum.runtime.remote import redacted, restored
from medqua.core.quantum.runtime.sampling import Circuit, derived_seed, expectations, sample
from medqua.core.quantum.runtime.targets import CREDENTIALS, TARGETS, check, find, present

EMULATED = [f"{name}-emulated" for name in CREDENTIALS]
VARIABLES = {variable for target in TARGETS.values() for variable in target.credentials}


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def fourier(circuit, noise=None):
    theta = torch.tensor(circuit.theta, dtype=torch.float64).view(circuit.ansatz.theta_shape)
    program = FourierEngine(circuit.ansatz, noise).compile(theta, (circuit.depth,))[circuit.depth]
    return program(torch.tensor([circuit.phi], dtype=torch.float64))[0].numpy()


def test_there_are_eight_emulated_providers_and_they_run_offline():
    assert len(EMULATED) == 8
    assert set(EMULATED) <= set(present())


@pytest.mark.parametrize(
    "name",
    ["density-matrix-cpu", "qpp-cpu", *(name for name in EMULATED if "braket" not in name)],
)
def test_counts_follow_the_exact_distribution_and_the_target_can_be_left(name):
    (circuit,) = report.batch(tokens=1, seed=5)
    shots = 20_000
    counts = sample(find(name), circuit, shots, derived_seed(11, len(name)))
    assert sum(counts.values()) == shots
    statistic, freedom = chi_square(counts, probabilities(circuit))
    assert statistic < freedom + 6 * math.sqrt(2 * freedom)  # p about 1e-6 for 15
    exact = CudaqEngine(circuit.ansatz, observe=True)  # back on qpp-cpu, exactly
    values = exact.observe(list(circuit.phi), list(circuit.theta), circuit.depth)
    np.testing.assert_allclose(values, fourier(circuit), atol=1e-12)


def test_exact_distribution_has_the_expectation_values_of_the_table():
    for circuit in report.batch(tokens=3, seed=1):
        assert probabilities(circuit).sum() == pytest.approx(1)
        np.testing.assert_allclose(exact_values(circuit), fourier(circuit), atol=1e-12)


def test_seed_repeats_a_circuit_and_parts_neighbours():
    (circuit,) = report.batch(tokens=1)
    target = find("ionq-emulated")
    once = sample(target, circuit, 500, 7)
    assert sample(target, circuit, 500, 7) == once
    assert sample(target, circuit, 500, 8) != once


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**62), st.integers(0, 10**6), st.integers(0, 10**6))
def test_derived_seeds_differ_by_part(seed, first, second):
    assert 0 < derived_seed(seed, first) < 2**32
    assert derived_seed(seed, first) == derived_seed(seed, first)
    if first != second:  # 31 bits: a collision among these few would be a defect
        assert derived_seed(seed, first, 0) != derived_seed(seed, second, 1)


@pytest.mark.parametrize(
    ("entangler", "encoding"), [("ring", "ry"), ("line", "rx"), ("all", "ry"), ("none", "rx")]
)
@pytest.mark.parametrize(("whole", "each"), [(1, 0), (2, 0), (0, 1), (0, 2)])
def test_folds_change_nothing_without_noise(entangler, encoding, whole, each):
    ansatz = Ansatz(3, 2, encoding=encoding, entangler=entangler)
    random = np.random.default_rng(3)
    phi, theta = random.uniform(-3, 3, 3), random.uniform(-3, 3, 18)
    circuit = Circuit(ansatz, tuple(phi.tolist()), tuple(theta.tolist()), 2, whole, each)
    counts = sample(find("density-matrix-cpu"), circuit, 20_000, 5)
    statistic, freedom = chi_square(counts, probabilities(circuit))
    assert statistic < freedom + 6 * math.sqrt(2 * freedom) + 10


def test_gate_folding_of_depolarising_noise_is_depolarising_noise_three_times():
    # depolarising commutes with its gate: G N G^-1 N G N = N^3 G; (1 - 4p/3)^3, (1 - 16p/15)^3
    one, two = 0.004, 0.02
    third = NoiseModel.depolarising(
        0.75 * (1 - (1 - 4 * one / 3) ** 3), 15 / 16 * (1 - (1 - 16 * two / 15) ** 3), (0.03, 0.06)
    )
    (circuit,) = report.batch(tokens=1, n_qubits=3, seed=2)
    folded = Circuit(circuit.ansatz, circuit.phi, circuit.theta, 2, each=1)
    noise = NoiseModel.depolarising(one, two, (0.03, 0.06))
    shots = 200_000
    model = measured_noise(noise, circuit.ansatz)
    counts = sample(find("density-matrix-cpu"), folded, shots, 1, model)
    values, errors = expectations(counts, 3)
    assert np.all(np.abs(values - fourier(circuit, third)) < 5 * errors)
    assert np.any(np.abs(values - fourier(circuit, noise)) > 10 * errors)  # it does amplify


def test_bottleneck_runs_end_to_end_on_an_emulated_provider():
    torch.manual_seed(0)
    settings = {"engine": "cudaq", "target": "ionq-emulated", "shots": 4000, "seed": 3}
    bottleneck = VariationalBottleneck(3, 2, **settings)
    exact = VariationalBottleneck(3, 2, engine="fourier")
    again = VariationalBottleneck(3, 2, **settings)
    exact.load_state_dict(bottleneck.state_dict())
    again.load_state_dict(bottleneck.state_dict())
    angles, depth = torch.randn(4, 3), torch.tensor([0, 1, 2, 2])
    values, expected = bottleneck(angles, depth), exact(angles, depth)
    error = ((1 - expected**2).clamp_min(1e-3) / 4000).sqrt()
    assert ((values - expected).abs() < 5 * error).all()
    assert (values * 2000 % 1 == 0).all() or torch.allclose(
        values * 2000, (values * 2000).round(), atol=1e-2
    )  # averages of 4000 times +-1, drawn once
    torch.testing.assert_close(again(angles, depth), values)
    assert not torch.equal(bottleneck(angles, depth), values)


def test_gradient_on_an_emulated_provider_is_the_shift_rule_within_shot_noise():
    torch.manual_seed(1)
    bottleneck = VariationalBottleneck(
        2, 1, engine="cudaq", target="oqc-emulated", shots=20_000, seed=3
    )
    exact = VariationalBottleneck(2, 1, engine="fourier")
    exact.load_state_dict(bottleneck.state_dict())
    angles = torch.randn(1, 2)
    for model in (bottleneck, exact):
        model(angles, 1).sum().backward()
    # one derivative: a difference of two averages, halved, summed over two qubits
    assert (bottleneck.theta.grad - exact.theta.grad).abs().max() < 5 * math.sqrt(4 / 2 / 20_000)
    assert exact.theta.grad.abs().max() > 0.1


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("ionq-emulated", {"noisy": True, "shots": 10}, "ignores noise: choose"),
        ("qpp-cpu", {"noisy": True}, "ignores noise: choose target='density-matrix-cpu'"),
        ("braket-emulated", {}, "answers by measurements: give shots"),
        ("ionq", {"shots": 10}, "IONQ_API_KEY is not set"),
        ("oqc", {"shots": 10}, "OQC_URL and OQC_DEVICE and OQC_AUTH_TOKEN are not set"),
        ("iqm-emulated", {"shots": 10}, "fetches the machine's description"),
        ("pasqal", {"shots": 10}, "not by this circuit's gates"),
    ],
)
def test_what_a_target_cannot_do_is_refused_with_its_reason(name, arguments, message):
    with pytest.raises(QuantumError, match=message):
        check(find(name), **arguments)


def test_gpu_target_on_a_machine_without_one_says_so():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    for name in ("nvidia", "nvidia-mqpu", "tensornet"):
        with pytest.raises(QuantumError, match=r"needs an NVIDIA GPU.*Present: qpp-cpu"):
            check(find(name))


def test_absent_target_lists_those_present():
    with pytest.raises(QuantumError, match=r"choose one of qpp-cpu, .*did you mean 'ionq"):
        find("ionk-emulated")


def test_machine_is_not_billed_by_training(monkeypatch):
    monkeypatch.setenv("IONQ_API_KEY", "x")
    with pytest.raises(QuantumError, match="bills every circuit"):
        VariationalBottleneck(2, 1, engine="cudaq", target="ionq", shots=10)


def test_options_follow_the_name_and_credentials_do_not():
    target = find("ionq:machine=qpu.aria-1;url=http://localhost:1")
    assert dict(target.options) == {"machine": "qpu.aria-1", "url": "http://localhost:1"}
    assert find(target.label) == target
    for bad in ("ionq:machine", "ionq:=x", "qbraid:api_key=abc"):
        with pytest.raises(ConfigError):
            find(bad)


def test_handle_is_kept_without_credentials_and_restored_with_those_of_the_environment(monkeypatch):
    monkeypatch.setenv("IONQ_API_KEY", 'old"secret')
    future = {"config": {"token": 'old"secret', "refresh_token": "abc"}, "jobs": [["1", "c"]]}
    kept = redacted(json.dumps(future), find("ionq"))
    assert "secret" not in kept
    assert "abc" not in kept
    monkeypatch.setenv("IONQ_API_KEY", 'new"one')
    back = json.loads(restored(kept, find("ionq")))
    assert back == {"config": {"token": 'new"one', "refresh_token": ""}, "jobs": [["1", "c"]]}


@pytest.mark.parametrize(
    "changes",
    [
        {"phi": (0.0, math.nan)},
        {"phi": (0.0,)},
        {"depth": 2},
        {"whole": 1, "each": 1},
        {"each": -1},
    ],
)
def test_circuit_that_no_machine_should_be_asked_is_refused(changes):
    good = {"ansatz": Ansatz(2, 1), "phi": (0.0, 0.0), "theta": (0.0,) * 6, "depth": 1}
    with pytest.raises(ConfigError):
        Circuit(**{**good, **changes})


@pytest.mark.parametrize("counts", [{}, {"01": 3, "0": 1}, {"0x": 1}])
def test_answer_that_is_no_measurement_is_refused(counts):
    with pytest.raises(QuantumError, match="2 bits each"):
        expectations(counts, 2)


def test_expectations_put_qubit_0_first_and_are_never_sure():
    values, errors = expectations({"00": 30, "10": 10}, 2)
    np.testing.assert_allclose(values, [0.5, 1.0])
    assert errors[0] == pytest.approx(2 * math.sqrt(11 / 42 * 31 / 42 / 40))
    assert errors[1] > 0


def test_report_calls_a_wrong_answer_wrong():
    circuits = report.batch(tokens=1)
    target = find("ionq-emulated")
    right = sample(target, circuits[0], 4000, 1)
    reversed_bits = {bits[::-1]: count for bits, count in right.items()}
    answer = {"seconds": [1.0], "values": []}
    assert not report.judge(target, circuits, {**answer, "counts": [right]}, 4000).wrong
    row = report.judge(target, circuits, {**answer, "counts": [reversed_bits]}, 4000)
    assert row.wrong
    assert "beyond chance" in row.reason


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "medqua.core.quantum.runtime", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"},
        check=False,
    )


def test_command_prints_rows_and_reasons():
    done = command("--json", "--only", "qpp-cpu", "--only", "braket-emulated", "--only", "ionq")
    assert done.returncode == 0, done.stderr
    exact, emulated, machine = json.loads(done.stdout)
    assert exact["deviation"] < 1e-12
    assert emulated["p_value"] > report.CHANCE
    assert emulated["shots"] == 4000
    assert machine["reason"] == "IONQ_API_KEY is not set in the environment"


@pytest.mark.slow
def test_command_runs_every_target_usable_here():
    done = command("--json")
    assert done.returncode == 0, done.stderr
    rows = {row["target"]: row for row in json.loads(done.stdout)}
    assert all(rows[name]["p_value"] > report.CHANCE for name in EMULATED)
