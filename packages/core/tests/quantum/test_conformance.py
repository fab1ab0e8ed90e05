"""Every engine against numpy statevectors, CUDA-Q `observe` and `get_unitary`, PennyLane.

The suite runs over `ENGINES`: an engine that is added there is tested here.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pennylane as qml
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medqua.core.quantum.ansatz import Ansatz
from medqua.core.quantum.engine import ENGINES, make_engine
from medqua.core.quantum.exact.dense import DenseEngine
from medqua.core.quantum.runtime.engine import CudaqEngine

PAULIS = {
    "rx": np.array([[0, 1], [1, 0]]),
    "ry": np.array([[0, -1j], [1j, 0]]),
    "rz": np.array([[1, 0], [0, -1]]),
}


def numpy_columns(gates, columns, phi, theta):
    """Apply gates to the columns of `[2^n, m]` in float64, one axis of a tensor at a time."""
    n = len(columns).bit_length() - 1
    state = np.asarray(columns, dtype=complex).reshape(*[2] * n, -1)
    for gate in gates:
        if gate.name == "cx":
            control, target = gate.qubits
            one = [slice(None)] * n
            one[control] = 1
            state[tuple(one)] = np.flip(state[tuple(one)], target - (control < target)).copy()
        else:
            angle = (phi if len(gate.parameter) == 1 else theta)[gate.parameter]
            matrix = np.cos(angle / 2) * np.eye(2) - 1j * np.sin(angle / 2) * PAULIS[gate.name]
            state = np.moveaxis(np.tensordot(matrix, state, (1, gate.qubits[0])), 0, gate.qubits[0])
    return state.reshape(2**n, -1)


def numpy_expectations(ansatz, angles, theta, depth):
    n = ansatz.n_qubits
    signs = np.array([[1 - 2 * (s >> (n - 1 - i) & 1) for i in range(n)] for s in range(2**n)])
    zero = np.eye(2**n)[:, :1]
    states = [numpy_columns(ansatz.gates(depth), zero, phi, theta) for phi in angles]
    return np.array([np.abs(state[:, 0]) ** 2 @ signs for state in states])


def pennylane_circuit(ansatz, depth):
    device = qml.device("default.qubit", wires=ansatz.n_qubits)

    @qml.qnode(device, interface="torch", diff_method="backprop")
    def circuit(phi, theta):
        for gate in ansatz.gates(depth):
            if gate.name == "cx":
                qml.CNOT(gate.qubits)
            else:
                source = phi if len(gate.parameter) == 1 else theta
                getattr(qml, gate.name.upper())(source[gate.parameter], wires=gate.qubits)
        return [qml.expval(qml.PauliZ(i)) for i in range(ansatz.n_qubits)]

    return lambda phi, theta: torch.stack(list(circuit(phi, theta)))


@st.composite
def circuits(draw, max_qubits=8, max_depth=6):
    ansatz = Ansatz(
        draw(st.integers(2, max_qubits)),
        draw(st.integers(1, max_depth)),
        encoding=draw(st.sampled_from(("ry", "rx"))),
        entangler=draw(st.sampled_from(("ring", "line", "all", "none"))),
    )
    depth = draw(st.integers(0, ansatz.max_depth))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    angles = torch.rand(3, ansatz.n_qubits, generator=generator, dtype=torch.float64)
    theta = torch.rand(ansatz.theta_shape, generator=generator, dtype=torch.float64)
    return ansatz, depth, (2 * angles - 1) * torch.pi, (2 * theta - 1) * torch.pi


def evaluate(name, ansatz, depth, angles, theta):
    if name == "triton" and torch.cuda.is_available():  # else its kernels are interpreted
        angles, theta = angles.cuda(), theta.cuda()
    return make_engine(name, ansatz).compile(theta, (depth,))[depth](angles).cpu()


def observe(ansatz, depth, angles, theta):
    return CudaqEngine(ansatz, observe=True).compile(theta, (depth,))[depth](angles)


def gradients(function, *inputs):
    inputs = [value.clone().requires_grad_() for value in inputs]
    value = function(*inputs)
    weights = torch.linspace(-1, 1.5, value.numel(), dtype=value.dtype).view_as(value)
    return torch.autograd.grad((value * weights).sum(), inputs, materialize_grads=True)


def close(tolerance):
    return {"rtol": 0.0, "atol": tolerance}


@pytest.mark.parametrize("name", ENGINES)
@settings(max_examples=25, deadline=None)
@given(case=circuits())
def test_engine_equals_numpy_in_float64(name, case):
    ansatz, depth, angles, theta = case
    expected = numpy_expectations(ansatz, angles.numpy(), theta.numpy(), depth)
    np.testing.assert_allclose(evaluate(name, *case), expected, **close(1e-10))


@pytest.mark.parametrize("name", ENGINES)
@settings(max_examples=25, deadline=None)
@given(case=circuits())
def test_engine_in_float32_equals_float64_to_1e_6(name, case):
    ansatz, depth, angles, theta = case
    value = evaluate(name, ansatz, depth, angles.float(), theta.float())
    assert value.dtype == torch.float32
    expected = evaluate(name, ansatz, depth, angles.float().double(), theta.float().double())
    torch.testing.assert_close(value.double(), expected, **close(1e-6))


@pytest.mark.parametrize("name", ENGINES)
@settings(max_examples=10, deadline=None)
@given(case=circuits(max_qubits=5))
def test_engine_cudaq_kernel_and_pennylane_agree_in_value_and_gradient(name, case):
    ansatz, depth, angles, theta = case
    engine = evaluate(name, *case)
    kernel = observe(*case)
    pennylane = pennylane_circuit(ansatz, depth)
    reference = torch.stack([pennylane(phi, theta) for phi in angles])
    torch.testing.assert_close(engine, kernel, **close(1e-10))
    torch.testing.assert_close(engine, reference, **close(1e-10))

    ours = gradients(lambda a, t: evaluate(name, ansatz, depth, a, t), angles, theta)
    theirs = gradients(lambda a, t: torch.stack([pennylane(p, t) for p in a]), angles, theta)
    for got, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, expected, **close(1e-8))

    single = gradients(
        lambda a, t: evaluate(name, ansatz, depth, a, t), angles.float(), theta.float()
    )
    for got, expected in zip(single, theirs, strict=True):
        torch.testing.assert_close(got.double(), expected, **close(1e-5))


@settings(max_examples=15, deadline=None)
@given(case=circuits())
def test_cudaq_kernel_equals_numpy(case):
    ansatz, depth, angles, theta = case
    expected = numpy_expectations(ansatz, angles[:1].numpy(), theta.numpy(), depth)
    value = observe(ansatz, depth, angles[:1], theta)
    np.testing.assert_allclose(value, expected, **close(1e-10))


@settings(max_examples=4, deadline=None)
@given(case=circuits(max_qubits=3, max_depth=2))
def test_cudaq_kernel_trains_by_parameter_shift(case):
    ansatz, depth, angles, theta = case
    ours = gradients(lambda a, t: observe(ansatz, depth, a, t), angles[:2], theta)
    theirs = gradients(lambda a, t: evaluate("dense", ansatz, depth, a, t), angles[:2], theta)
    for got, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, expected, **close(1e-9))


@settings(max_examples=15, deadline=None)
@given(case=circuits(max_qubits=6))
def test_unitary_of_dense_cudaq_and_numpy_agree(case):
    ansatz, depth, _, theta = case
    kernel = CudaqEngine(ansatz).unitary(theta.numpy(), depth)
    identity = np.eye(2**ansatz.n_qubits)
    expected = numpy_columns(ansatz.layers(depth), identity, None, theta.numpy())
    phase = np.vdot(expected, kernel)
    np.testing.assert_allclose(kernel, expected * phase / abs(phase), **close(1e-10))
    if ansatz.encoding == "ry":  # the rx encoding is folded into the dense unitary
        dense = DenseEngine(ansatz).compile(theta, (depth,))[depth].unitary
        np.testing.assert_allclose(dense, expected, **close(1e-10))


@pytest.mark.parametrize("name", ENGINES)
@settings(max_examples=10, deadline=None)
@given(case=circuits(max_qubits=3, max_depth=2))
def test_dead_parameters_change_nothing_and_get_no_gradient(name, case):
    ansatz, depth, angles, theta = case
    index = tuple(torch.tensor(ansatz.dead(depth)).T)
    changed = theta.clone()
    changed[index] += 1.0
    torch.testing.assert_close(
        evaluate(name, *case), evaluate(name, ansatz, depth, angles, changed), **close(1e-12)
    )
    _, gradient = gradients(lambda a, t: evaluate(name, ansatz, depth, a, t), angles[:1], theta)
    assert not gradient[index].any()


@pytest.mark.parametrize("name", ENGINES)
def test_depth_one_without_entangler_is_a_product_of_bloch_rotations(name):
    ansatz = Ansatz(2, 1, entangler="none")
    theta = torch.tensor([[[0.3, -1.1, 0.0], [2.0, 0.4, 0.0]]], dtype=torch.float64)
    angles = torch.tensor([[0.7, -2.2]], dtype=torch.float64)
    (a, b), phi = theta[0, :, :2].unbind(-1), angles[0]
    expected = b.cos() * a.cos() * phi.cos() - b.sin() * phi.sin()
    torch.testing.assert_close(evaluate(name, ansatz, 1, angles, theta)[0], expected)


@pytest.mark.parametrize(("encoding", "entangler"), [("ry", "ring"), ("rx", "all")])
def test_gates_equal_numpy_at_14_qubits(encoding, entangler):
    ansatz = Ansatz(14, 3, encoding=encoding, entangler=entangler)
    generator = torch.Generator().manual_seed(3)
    angles = torch.randn(2, 14, generator=generator, dtype=torch.float64)
    theta = torch.randn(ansatz.theta_shape, generator=generator, dtype=torch.float64)
    expected = numpy_expectations(ansatz, angles.numpy(), theta.numpy(), 3)
    values = evaluate("gates", ansatz, 3, angles, theta)
    np.testing.assert_allclose(values, expected, **close(1e-10))

    ours = gradients(lambda a, t: evaluate("gates", ansatz, 3, a, t), angles, theta)
    weights = np.linspace(-1, 1.5, expected.size).reshape(expected.shape)
    for inputs, gradient, index in (
        ((angles, theta), ours[0], (1, 5)),
        ((theta, angles), ours[1], (0, 3, 1)),
        ((theta, angles), ours[1], (1, 13, 2)),
    ):  # the parameter-shift rule of a rotation
        slope = 0.0
        for sign in (1, -1):
            moved = inputs[0].clone()
            moved[index] += sign * torch.pi / 2
            a, t = (moved, inputs[1]) if inputs[0] is angles else (inputs[1], moved)
            slope += sign * (numpy_expectations(ansatz, a.numpy(), t.numpy(), 3) * weights).sum()
        assert abs(gradient[index] - slope / 2) < 1e-9


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("angle", [0.0, torch.pi / 2, torch.pi, -torch.pi])
def test_gates_have_gradients_where_their_angles_of_rotation_are_not_unique(axis, angle):
    ansatz = Ansatz(3, 3)
    theta = torch.zeros(ansatz.theta_shape, dtype=torch.float64)
    theta[:, :, axis] = angle
    theta[:, :, 2] = 0.3
    angles = torch.tensor([[0.3, -1.0, 2.0], [0.0, torch.pi, 1.0]], dtype=torch.float64)
    for depth in (1, 2, 3):
        case = (ansatz, depth, angles, theta)
        expected = evaluate("dense", *case)
        torch.testing.assert_close(evaluate("gates", *case), expected, **close(1e-12))
        got, expected = (
            gradients(lambda a, t, n=name, d=depth: evaluate(n, ansatz, d, a, t), angles, theta)
            for name in ("gates", "dense")
        )
        for mine, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(mine, theirs, **close(1e-12))


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("last_axis_first", [False, True])
def test_what_is_handed_in_is_left_as_it_was(name, tokens, last_axis_first):
    ansatz = Ansatz(3, 2)
    generator = torch.Generator().manual_seed(2)
    shape = (3, tokens) if last_axis_first else (tokens, 3)
    memory = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    theta = torch.randn(ansatz.theta_shape, generator=generator, dtype=torch.float64)
    theta.requires_grad_()
    weights = torch.randn(tokens, 3, generator=generator, dtype=torch.float64)
    before = [value.detach().clone() for value in (memory, theta, weights)]
    angles = memory.T if last_axis_first else memory
    first, second = (evaluate(name, ansatz, 2, angles, theta) for _ in range(2))
    torch.testing.assert_close(first, second, **close(1e-12))
    first.backward(weights, retain_graph=True)
    kept = memory.grad.clone()
    second.backward(weights)
    torch.testing.assert_close(memory.grad, 2 * kept, **close(1e-12))
    for value, was in zip((memory, theta, weights), before, strict=True):
        assert torch.equal(value.detach(), was)


@pytest.mark.parametrize("name", ["fourier", "dense", "gates"])
def test_chunks_of_tokens_equal_tokens_alone(name, monkeypatch):
    from medqua.core.quantum.exact import chunk, dense, gates

    ansatz = Ansatz(5, 2)
    generator = torch.Generator().manual_seed(1)
    angles = torch.randn(70, 5, generator=generator, dtype=torch.float64)
    theta = torch.randn(ansatz.theta_shape, generator=generator, dtype=torch.float64)

    def values_and_gradients():
        value = evaluate(name, ansatz, 2, angles, theta)
        return value, *gradients(lambda a, t: evaluate(name, ansatz, 2, a, t), angles, theta)

    whole = values_and_gradients()
    monkeypatch.setattr(gates, "CACHE_BYTES", 30_000)  # chunks of 8, the last one smaller
    monkeypatch.setattr(chunk, "CACHE_BYTES", 1)
    for module in (gates, dense):
        monkeypatch.setattr(module, "KEEP_BYTES", 0)  # states are worked out again
    for got, expected in zip(values_and_gradients(), whole, strict=True):
        torch.testing.assert_close(got, expected, **close(1e-11))


PEAK = """
import sys, torch
from pathlib import Path
from medqua.core import VariationalBottleneck
torch.set_num_threads(1)
n, depth, tokens, engine = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
angles = torch.randn(tokens, n, requires_grad=True)
def peak(n, depth):
    VariationalBottleneck(n, depth, engine=engine)(angles[:, :n], depth).sum().backward()
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
before = peak(2, 1)  # loads libraries
print(peak(n, depth) - before, peak(n, depth + 40) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    ("engine", "n", "depth", "state"),
    [
        ("gates", 14, 2, 2**14 * 8 * 8),  # of 8 tokens, complex64
        ("fourier", 8, 5, 4**8 * 8 * 4),  # the Pauli strings of 8 observables, float32
    ],
)
def test_memory_does_not_grow_with_depth(engine, n, depth, state):
    arguments = [sys.executable, "-c", PEAK, str(n), str(depth), "8", engine]
    told = subprocess.run(arguments, check=True, capture_output=True).stdout
    shallow, deep = (1024 * int(peak) for peak in told.split())
    assert shallow > state
    assert deep - shallow < 16 * state  # of 40 layers more: kept, they would be 40 states at least
