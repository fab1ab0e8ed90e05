"""Bit strings against CUDA-Q's, marginals and covariances against exact values."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, chi2_contingency, chisquare

from medqua.core.errors import ConfigError, ShapeError
from medqua.core.quantum.ansatz import Ansatz
from medqua.core.quantum.bottleneck import VariationalBottleneck
from medqua.core.quantum.engine import make_engine
from medqua.core.quantum.noise import NoiseModel
from medqua.core.quantum.runtime import kernels
from medqua.core.quantum.shots import (
    bit_strings,
    expectations,
    probabilities,
    sample,
    sample_joint,
)
from medqua.core.quantum.states import signs

CASES = [
    (Ansatz(2, 1), 1),
    (Ansatz(3, 2, encoding="rx"), 2),
    (Ansatz(4, 3, entangler="all"), 3),
    (Ansatz(5, 2, entangler="line"), 1),
    (Ansatz(6, 4), 4),
]


def random_circuit(ansatz, tokens=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(ansatz.theta_shape, generator=generator, dtype=torch.float64)
    angles = torch.randn(tokens, ansatz.n_qubits, generator=generator, dtype=torch.float64)
    return theta, angles


def exact(ansatz, theta, angles, depth, noise=None):
    return make_engine("fourier", ansatz, noise).compile(theta, (depth,))[depth](angles)


def cudaq_counts(ansatz, theta, angles, depth, shots, seed):
    cudaq = kernels.cudaq
    cudaq.set_target("qpp-cpu")
    cudaq.set_random_seed(seed)
    result = cudaq.sample(
        kernels.circuit,
        ansatz.n_qubits,
        angles.tolist(),
        theta.ravel().tolist(),
        depth,
        *kernels.codes(ansatz),
        shots_count=shots,
    )
    counts = np.zeros(2**ansatz.n_qubits)
    for string, count in result.items():
        counts[int(string, 2)] = count  # the first character is qubit 0
    return counts


def our_counts(joint, shots, seed):
    strings = bit_strings(joint, shots, torch.Generator().manual_seed(seed))
    return np.stack([np.bincount(row, minlength=joint.shape[1]) for row in strings.numpy()])


def pooled(table, least=10):
    """Put columns with few counts together, as the chi-square distribution needs."""
    few = table.sum(0) < 2 * least
    table = np.column_stack((table[:, ~few], table[:, few].sum(1)))
    return table[:, table.sum(0) > 0]


@pytest.mark.parametrize(("ansatz", "depth"), CASES)
def test_bit_strings_are_distributed_as_those_of_cudaq(ansatz, depth):
    theta, angles = random_circuit(ansatz, seed=ansatz.n_qubits)
    theirs = cudaq_counts(ansatz, theta, angles[0], depth, 20_000, seed=11)
    ours = our_counts(probabilities(ansatz, theta, angles, depth), 20_000, seed=12)[0]
    assert chi2_contingency(pooled(np.stack((ours, theirs)))).pvalue > 1e-4


def test_the_comparison_tells_qubits_in_reverse_order_apart():
    ansatz, depth = CASES[2]
    theta, angles = random_circuit(ansatz, seed=4)
    theirs = cudaq_counts(ansatz, theta, angles[0], depth, 20_000, seed=11)
    ours = our_counts(probabilities(ansatz, theta, angles, depth), 20_000, seed=12)[0]
    reverse = ours.reshape([2] * 4).transpose().ravel()
    assert chi2_contingency(pooled(np.stack((reverse, theirs)))).pvalue < 1e-4


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(2, 6),
    depth=st.integers(0, 3),
    encoding=st.sampled_from(("ry", "rx")),
    readout=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    seed=st.integers(0, 2**32),
)
def test_marginals_of_the_probabilities_are_the_expectation_values(
    n, depth, encoding, readout, seed
):
    ansatz = Ansatz(n, 3, encoding=encoding)
    theta, angles = random_circuit(ansatz, 4, seed)
    noise = NoiseModel(readout=readout)
    joint = probabilities(ansatz, theta, angles, depth, noise)
    torch.testing.assert_close(joint.sum(1), torch.ones(4).double(), rtol=0, atol=1e-12)
    expected = exact(ansatz, theta, angles, depth, noise)
    torch.testing.assert_close(joint @ signs(n, joint).T, expected, rtol=0, atol=1e-12)


def test_readout_errors_differ_from_qubit_to_qubit_and_keep_the_correlation():
    """Two qubits in (|00> + |11>) / sqrt(2): CNOT after RY(pi / 2) on the control."""
    ansatz = Ansatz(2, 1, entangler="line")
    theta = torch.zeros(1, 2, 3).double()
    angles = torch.tensor([[torch.pi / 2, 0]], dtype=torch.float64)
    noise = NoiseModel(readout=((0.1, 0.0), (0.0, 0.3)))
    joint = probabilities(ansatz, theta, angles, 1, noise)[0]
    # 00 is read as 10 with probability 0.1; 11 as 10 with probability 0.3
    expected = torch.tensor([0.45, 0.0, 0.05 + 0.15, 0.35], dtype=torch.float64)
    torch.testing.assert_close(joint, expected, rtol=0, atol=1e-12)


def test_averages_have_the_mean_and_covariance_of_joint_measurements():
    ansatz, shots, repeats = Ansatz(3, 2), 40, 20_000
    theta, angles = random_circuit(ansatz, seed=2)
    values = exact(ansatz, theta, angles, 2).expand(repeats, 3)
    averages = sample_joint(values, ansatz, theta, angles.expand(repeats, 3), 2, shots, seed=1)
    z = signs(3, values)
    joint = probabilities(ansatz, theta, angles, 2)[0]
    covariance = ((z * joint) @ z.T - torch.outer(values[0], values[0])) / shots
    assert (covariance - covariance.diag().diag()).abs().max() > 0.1 / shots  # not independent
    error = averages.mean(0) - values[0]
    assert (error.abs() < 5 * (covariance.diag() / repeats).sqrt()).all()
    torch.testing.assert_close(averages.T.cov(), covariance, rtol=0, atol=5e-4)
    apart = sample(values, shots, seed=1).T.cov()
    torch.testing.assert_close(apart, covariance.diag().diag(), rtol=0, atol=5e-4)


def test_each_qubit_by_itself_has_binomial_counts():
    values = torch.tensor([[0.3, -0.8]]).double().expand(20_000, 2)
    ones = ((sample(values, 4, seed=5) + 1) * 2).round().long().numpy()
    for q, value in enumerate((0.3, -0.8)):
        p = (1 + value) / 2
        expected = [(1 - p) ** 4, 4 * p * (1 - p) ** 3, 6 * (p * (1 - p)) ** 2]
        expected += [4 * p**3 * (1 - p), p**4]
        counts = np.bincount(ones[:, q], minlength=5)
        assert chisquare(counts, 20_000 * np.array(expected)).pvalue > 1e-4


def test_draws_depend_on_the_seed_and_the_token_but_not_on_the_batch(monkeypatch):
    ansatz = Ansatz(4, 3)
    theta, angles = random_circuit(ansatz, 30)
    depth = torch.arange(30) % 4
    values = torch.zeros(30, 4).double()

    def draw(count, seed=3):
        return sample_joint(values[:count], ansatz, theta, angles[:count], depth[:count], 50, seed)

    whole = draw(30)
    assert torch.equal(whole, draw(30))
    assert torch.equal(whole[:7], draw(7))
    assert not torch.equal(whole, draw(30, seed=4))
    monkeypatch.setattr("medqua.core.quantum.shots.CHUNK_BYTES", 5000)
    assert torch.equal(whole, draw(30))
    joint = probabilities(ansatz, theta, angles, depth)
    generator = torch.Generator().manual_seed(3)
    pieces = [bit_strings(part, 50, generator) for part in joint.split(8)]
    assert torch.equal(expectations(torch.cat(pieces), 4), whole)


def test_the_gradient_is_that_of_the_exact_values():
    ansatz = Ansatz(3, 2)
    theta, angles = random_circuit(ansatz, 5)
    theta.requires_grad_()
    values = exact(ansatz, theta, angles, 2)
    drawn = sample_joint(values, ansatz, theta, angles, 2, 10, seed=1)
    weights = torch.randn(5, 3).double()
    ours, theirs = (
        torch.autograd.grad((v * weights).sum(), theta, retain_graph=True) for v in (drawn, values)
    )
    assert torch.equal(ours[0], theirs[0])
    assert not torch.equal(drawn, values)


def test_no_tokens_give_no_averages():
    ansatz = Ansatz(3, 2)
    theta, angles = random_circuit(ansatz, 0)
    assert sample_joint(angles, ansatz, theta, angles, 2, 10, seed=1).shape == (0, 3)


def test_strings_without_probability_are_never_drawn():
    joint = torch.zeros(1, 8).double()
    joint[0, 2], joint[0, 5] = 0.25, 0.5  # rows are normalised
    counts = our_counts(joint, 30_000, seed=0)[0]
    assert set(np.flatnonzero(counts)) == {2, 5}
    statistic = (counts[2] - 10_000) ** 2 / 10_000 + (counts[5] - 20_000) ** 2 / 20_000
    assert chi2.sf(statistic, 1) > 1e-4


@pytest.mark.parametrize("row", [[0.5, -0.1, 0.6, 0.0], [0.0] * 4, [torch.nan, 1.0, 0.0, 0.0]])
def test_what_is_no_distribution_is_refused(row):
    with pytest.raises(ShapeError, match="probabilities must be finite"):
        bit_strings(torch.tensor([row]), 10)


def test_what_has_no_joint_distribution_is_refused():
    ansatz = Ansatz(2, 1)
    theta, angles = random_circuit(ansatz)
    with pytest.raises(ConfigError, match="channels after gates"):
        probabilities(ansatz, theta, angles, 1, NoiseModel.depolarising(0.01, 0.02))
    large = Ansatz(13, 1)
    with pytest.raises(ConfigError, match="up to 12 qubits, not 13"):
        probabilities(large, *random_circuit(large), 1)
    with pytest.raises(ConfigError, match="depth is 2"):
        probabilities(ansatz, theta, angles, 2)


def test_a_bottleneck_draws_correlated_shots():
    """In (|00> + |11>) / sqrt(2) both readouts of one shot agree, each by itself being a coin."""
    options = {"entangler": "line", "shots": 25, "seed": 7}
    together = VariationalBottleneck(2, 1, correlated=True, **options)
    apart = VariationalBottleneck(2, 1, **options)
    with torch.no_grad():
        together.theta.zero_()
        apart.theta.zero_()
    angles = torch.tensor([[torch.pi / 2, 0.0]]).expand(200, 2)
    z = together(angles, torch.ones(200, dtype=torch.int64))
    torch.testing.assert_close(z[:, 0], z[:, 1], rtol=0, atol=1e-6)
    assert z.std() > 0.1
    assert not torch.allclose(*apart(angles, 1).T)
    z.sum().backward()
    assert together.theta.grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "correlated is true but shots is None"),
        ({"shots": 5, "noise": NoiseModel.depolarising(0.1, 0.1)}, "channels after gates"),
    ],
)
def test_a_bottleneck_refuses_correlated_shots_it_cannot_draw(options, message):
    with pytest.raises(ConfigError, match=message):
        VariationalBottleneck(3, 2, correlated=True, **options)
