"""Noise in the Heisenberg picture against CUDA-Q's density matrices."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medqua.core import Ansatz, NoiseModel, VariationalBottleneck
from medqua.core.errors import ConfigError, QuantumError
from medqua.core.quantum.exact.fourier import FourierEngine
from medqua.core.quantum.noise import CHANNELS, GATES, Channel
from medqua.core.quantum.runtime.engine import CudaqEngine


@st.composite
def noise_models(draw, n):
    """What a model is made of; made outside, for runtime type checks draw random numbers."""
    channels = []
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(CHANNELS))
        gates = tuple(draw(st.sets(st.sampled_from(GATES), min_size=1)))
        strength = draw(st.floats(0, 0.3))
        if draw(st.booleans()) and not (kind == "depolarising" and "cx" in gates):
            strength = tuple(draw(st.lists(st.floats(0, 0.3), min_size=n, max_size=n)))
        channels.append((kind, strength, gates))
    return channels, (draw(st.floats(0, 0.2)), draw(st.floats(0, 0.2)))


@st.composite
def noisy_circuits(draw):
    n = draw(st.integers(2, 4))
    ansatz = Ansatz(
        n,
        2,
        encoding=draw(st.sampled_from(("ry", "rx"))),
        entangler=draw(st.sampled_from(("ring", "line", "all", "none"))),
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    angles = torch.randn(2, n, generator=generator, dtype=torch.float64)
    theta = torch.randn(ansatz.theta_shape, generator=generator, dtype=torch.float64)
    return ansatz, draw(noise_models(n)), draw(st.integers(0, 2)), angles, theta


@settings(max_examples=20, deadline=None)
@given(noisy_circuits())
def test_noise_equals_cudaq_density_matrices(case):
    ansatz, (channels, readout), depth, angles, theta = case
    noise = NoiseModel(tuple(Channel(*channel) for channel in channels), readout)
    ours = FourierEngine(ansatz, noise).compile(theta, (depth,))[depth](angles)
    target = CudaqEngine(ansatz, noise, "density-matrix-cpu")
    theirs = target.compile(theta, (depth,))[depth](angles)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("entangler", ["ring", "all"])
@pytest.mark.parametrize("kind", CHANNELS)
def test_gradients_in_angles_parameters_and_strengths(kind, entangler):
    ansatz = Ansatz(3, 2, entangler=entangler)
    generator = torch.Generator().manual_seed(0)
    angles, theta = (
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 3), ansatz.theta_shape)
    )
    strength, up, down = (
        torch.tensor(p, dtype=torch.float64, requires_grad=True) for p in (0.1, 0.05, 0.02)
    )

    def run(angles, theta, strength, up, down):
        noise = NoiseModel((Channel(kind, strength),), (up, down))
        return FourierEngine(ansatz, noise).compile(theta, (2,))[2](angles)

    assert torch.autograd.gradcheck(run, (angles, theta, strength, up, down))


def test_a_noisy_bottleneck_trains_and_learns_its_noise():
    torch.manual_seed(0)
    true = NoiseModel.depolarising(0.0, 0.08)
    source = VariationalBottleneck(3, 2, noise=true)
    angles = torch.randn(16, 3)
    z = source(angles, 2).detach()
    logit = torch.tensor(-5.0, requires_grad=True)
    optimiser = torch.optim.Adam([logit], lr=0.5)
    for _ in range(40):
        noise = NoiseModel((Channel("depolarising", logit.sigmoid(), ("cx",)),))
        model = VariationalBottleneck(3, 2, noise=noise)
        model.load_state_dict(source.state_dict())
        optimiser.zero_grad()
        (model(angles, 2) - z).square().mean().backward()
        optimiser.step()
    assert logit.sigmoid().item() == pytest.approx(0.08, abs=5e-3)


def test_depth_zero_keeps_the_noise_of_encoding_and_readout():
    noise = NoiseModel((Channel("amplitude_damping", 0.1, ("ry",)),), (0.02, 0.05))
    angles = torch.tensor([[0.3, -2.0]], dtype=torch.float64)
    z = VariationalBottleneck(2, 1, noise=noise)(angles, 0)
    torch.testing.assert_close(z, (0.9 * angles.cos() + 0.1) * 0.93 + 0.03)


def test_depolarising_without_entangler_shrinks_by_the_closed_form():
    noise = NoiseModel((Channel("depolarising", 0.03, ("rx", "ry")),))
    noisy = VariationalBottleneck(3, 1, entangler="none", noise=noise)
    exact = VariationalBottleneck(3, 1, entangler="none")
    exact.load_state_dict(noisy.state_dict())
    angles = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(noisy(angles, 1), exact(angles, 1) * (1 - 4 * 0.03 / 3) ** 3)


def test_thermal_relaxation_leaves_the_fractions_that_t1_and_t2_say():
    noise = NoiseModel.thermal((50.0, 80.0), (60.0, 160.0), {"rx": 5.0})
    like = torch.zeros((), dtype=torch.float64)
    matrix = noise.bloch("rx", 2, like)
    t1, t2 = np.array((50.0, 80.0)), np.array((60.0, 160.0))
    np.testing.assert_allclose(matrix[:, 1, 1], np.exp(-5 / t1))
    np.testing.assert_allclose(matrix[:, 1, 0], 1 - np.exp(-5 / t1))
    np.testing.assert_allclose(matrix[:, 2, 2], np.exp(-5 / t2))
    assert noise.bloch("ry", 2, like) is None


def test_plain_numbers_name_relaxation_and_readout():
    plain = {"t1": 50.0, "t2": 70.0, "one_qubit_time": 0.05, "two_qubit_time": 0.3}
    times = {"rx": 0.05, "ry": 0.05, "rz": 0.05, "cx": 0.3}
    assert NoiseModel.from_dict(plain) == NoiseModel.thermal(50.0, 70.0, times)
    assert NoiseModel.from_dict({"readout": 0.1}) == NoiseModel(readout=(0.1, 0.1))
    assert NoiseModel.from_dict({"readout_1": 0.2}) == NoiseModel(readout=(0.0, 0.2))


@pytest.mark.parametrize("kind", CHANNELS)
def test_kraus_operators_are_complete(kind):
    for qubits in (1, 2) if kind == "depolarising" else (1,):
        operators = Channel(kind, 0.2).kraus(0.2, qubits)
        total = sum(k.conj().T @ k for k in operators)
        np.testing.assert_allclose(total, np.eye(2**qubits), atol=1e-12)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Channel("cosmic_ray", 0.1), "choose one of depolarising"),
        (lambda: Channel("bit_flip", 1.2), "must be a probability"),
        (lambda: Channel("bit_flip", (0.1, -0.1)), "it must be a probability, or one"),
        (lambda: Channel("bit_flip", 0.1, ("cz",)), "choose among rx"),
        (lambda: Channel("depolarising", (0.1, 0.2)), "give them as two channels"),
        (lambda: NoiseModel(readout=(0.0, 2.0)), "readout error is 2.0"),
        (lambda: NoiseModel.thermal(1.0, 3.0, {"cx": 1.0}), "T2 at most 2 T1"),
        (
            lambda: VariationalBottleneck(
                3, 1, noise=NoiseModel((Channel("bit_flip", (0.1, 0.2)),))
            )(torch.zeros(1, 3), 1),
            "the circuit needs one or 3",
        ),
    ],
)
def test_bad_noise_is_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_a_target_that_would_ignore_noise_is_refused():
    with pytest.raises(QuantumError, match="ignores noise: choose target='density-matrix-cpu'"):
        VariationalBottleneck(2, 1, engine="cudaq", noise=NoiseModel.depolarising(0.1, 0.1))


def test_an_absent_target_is_refused_with_those_present():
    with pytest.raises(QuantumError, match="choose one of qpp-cpu"):
        VariationalBottleneck(2, 1, engine="cudaq", target="nvidia-nonsense")
