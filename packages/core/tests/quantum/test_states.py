import numpy as np
import pennylane as qml
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medqua.core.quantum.ansatz import Ansatz
from medqua.core.quantum.engine import make_engine
from medqua.core.quantum.states import signs, states


@st.composite
def circuits(draw):
    ansatz = Ansatz(
        draw(st.integers(2, 7)),
        draw(st.integers(1, 4)),
        encoding=draw(st.sampled_from(("ry", "rx"))),
        entangler=draw(st.sampled_from(("ring", "line", "all", "none"))),
    )
    return ansatz, draw(st.integers(0, ansatz.max_depth)), draw(st.integers(0, 2**32))


def random_parameters(ansatz, seed, tokens):
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(tokens, *ansatz.theta_shape, generator=generator, dtype=torch.float64)
    angles = torch.randn(tokens, ansatz.n_qubits, generator=generator, dtype=torch.float64)
    return theta, angles


def pennylane_state(ansatz, depth, phi, theta):
    @qml.qnode(qml.device("default.qubit", wires=ansatz.n_qubits))
    def circuit():
        for gate in ansatz.gates(depth):
            if gate.name == "cx":
                qml.CNOT(gate.qubits)
            else:
                source = phi if len(gate.parameter) == 1 else theta
                getattr(qml, gate.name.upper())(source[gate.parameter].item(), wires=gate.qubits)
        return qml.state()

    return circuit()


@settings(max_examples=15, deadline=None)
@given(case=circuits())
def test_states_equal_pennylane(case):
    ansatz, depth, seed = case
    theta, angles = random_parameters(ansatz, seed, 3)
    state = states(ansatz, theta, angles, depth)
    for k in range(3):
        expected = pennylane_state(ansatz, depth, angles[k], theta[k])
        np.testing.assert_allclose(state[k].numpy(), expected, rtol=0, atol=1e-12)


@settings(max_examples=15, deadline=None)
@given(case=circuits())
def test_shared_parameters_give_the_values_and_gradients_of_the_engine(case):
    ansatz, depth, seed = case
    theta, angles = random_parameters(ansatz, seed, 3)
    theta = theta[0].requires_grad_()
    values = states(ansatz, theta, angles, depth).abs().square() @ signs(ansatz.n_qubits, angles).T
    expected = make_engine("fourier", ansatz).compile(theta, (depth,))[depth](angles)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-12)
    if depth:
        weights = torch.linspace(-1, 1, values.numel(), dtype=torch.float64).view_as(values)
        ours, theirs = (torch.autograd.grad((v * weights).sum(), theta) for v in (values, expected))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
