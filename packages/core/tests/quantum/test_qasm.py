"""The exported program, read by two independent parsers, does what our engines do."""

import numpy as np
import openqasm3
import pytest
import qiskit.quantum_info as qi
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qiskit_qasm3_import import parse

from medqua.core.errors import ConfigError, ShapeError
from medqua.core.quantum.ansatz import Ansatz
from medqua.core.quantum.engine import make_engine
from medqua.core.quantum.exact.dense import DenseEngine
from medqua.core.quantum.qasm import to_qasm


def random_parameters(ansatz, seed):
    generator = torch.Generator().manual_seed(seed)
    angles = torch.randn(ansatz.n_qubits, generator=generator, dtype=torch.float64)
    return angles, torch.randn(ansatz.theta_shape, generator=generator, dtype=torch.float64)


def expectations_by_qiskit(circuit):
    """<Z_i>; qiskit's first qubit is the last character of a Pauli's label."""
    state, n = qi.Statevector(circuit), circuit.num_qubits
    labels = ["".join("Z" if n - 1 - k == i else "I" for k in range(n)) for i in range(n)]
    return [state.expectation_value(qi.Pauli(label)).real for label in labels]


@st.composite
def circuits(draw):
    ansatz = Ansatz(
        draw(st.integers(2, 6)),
        draw(st.integers(1, 4)),
        encoding=draw(st.sampled_from(("ry", "rx"))),
        entangler=draw(st.sampled_from(("ring", "line", "all", "none"))),
    )
    return ansatz, draw(st.integers(0, ansatz.max_depth)), draw(st.integers(0, 2**32))


@settings(max_examples=20, deadline=None)
@given(case=circuits(), bound=st.sampled_from(("nothing", "theta", "all")))
def test_qiskit_reads_the_program_and_finds_our_expectations(case, bound):
    ansatz, depth, seed = case
    angles, theta = random_parameters(ansatz, seed)
    program = to_qasm(
        ansatz,
        depth,
        angles=angles if bound == "all" else None,
        theta=None if bound == "nothing" else theta,
        measure=False,
    )
    circuit = parse(program)
    free = {f"phi_{i}": angles[i].item() for i in range(ansatz.n_qubits)}
    free |= {"theta_" + "_".join(map(str, k)): theta[k].item() for k in np.ndindex(*theta.shape)}
    circuit.assign_parameters({p: free[p.name] for p in circuit.parameters}, inplace=True)
    expected = make_engine("fourier", ansatz).compile(theta, (depth,))[depth](angles[None])[0]
    np.testing.assert_allclose(expectations_by_qiskit(circuit), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("entangler", ["ring", "line", "all"])
def test_the_unitary_by_qiskit_is_ours_up_to_a_phase(entangler):
    ansatz = Ansatz(4, 3, entangler=entangler)
    _, theta = random_parameters(ansatz, 5)
    program = to_qasm(ansatz, angles=torch.zeros(4).double(), theta=theta, measure=False)
    unitary = qi.Operator(parse(program).reverse_bits()).data
    ours = DenseEngine(ansatz).compile(theta, (3,))[3].unitary.numpy()
    overlap = np.vdot(ours, unitary) / 16
    assert abs(overlap) == pytest.approx(1, abs=1e-10)
    np.testing.assert_allclose(unitary, overlap * ours, rtol=0, atol=1e-10)


def test_the_reference_parser_reads_every_statement():
    ansatz = Ansatz(3, 2)
    statements = openqasm3.parse(to_qasm(ansatz)).statements
    kinds = [type(statement).__name__ for statement in statements]
    gates = ansatz.gates()
    assert kinds.count("IODeclaration") == sum(gate.parameter is not None for gate in gates)
    read = [
        (s.name.name, tuple(q.indices[0][0].value for q in s.qubits))
        for s in statements
        if isinstance(s, openqasm3.ast.QuantumGate)
    ]
    assert read == [(gate.name, gate.qubits) for gate in gates]
    assert kinds[-1] == "QuantumMeasurementStatement"


def test_the_program_of_two_qubits_and_one_layer():
    theta = torch.zeros(1, 2, 3).double()
    theta[0, 0, 1], theta[0, 1, 0] = -1e-05, 0.1
    assert to_qasm(Ansatz(2, 1), theta=theta).splitlines()[2:] == [
        "// encoding ry, entangler ring, layers 1",
        "input float[64] phi_0;",
        "input float[64] phi_1;",
        "qubit[2] q;",
        "bit[2] c;",
        "ry(phi_0) q[0];",
        "ry(phi_1) q[1];",
        "rx(0.0) q[0];",
        "ry(-1e-05) q[0];",
        "rx(0.1) q[1];",
        "ry(0.0) q[1];",
        "cx q[0], q[1];",
        "cx q[1], q[0];",
        "c = measure q;",
    ]


def test_what_makes_no_program_is_refused():
    ansatz = Ansatz(3, 2)
    with pytest.raises(ConfigError, match=r"depth is 3: this ansatz has circuits of 0\.\.2"):
        to_qasm(ansatz, 3)
    with pytest.raises(ShapeError, match=r"angles are torch.float32 of shape \[2\]: .* \[3\]"):
        to_qasm(ansatz, angles=torch.zeros(2))
    with pytest.raises(ShapeError, match=r"theta are torch.int64"):
        to_qasm(ansatz, theta=torch.zeros(2, 3, 3, dtype=torch.int64))
    with pytest.raises(ShapeError, match="angles hold NaN or infinity"):
        to_qasm(ansatz, angles=torch.tensor([0.0, torch.inf, 0.0]))
