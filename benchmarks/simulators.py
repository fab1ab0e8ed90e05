"""The same circuit on other simulators: builders of one training step, float32, one thread.

A step takes angles `[tokens, n]`, theta and weights `[tokens, n]`, all numpy float32, and returns
<Z_i> and the gradients of `sum(weights <Z_i>)` in angles and theta.
"""

import importlib.machinery
import sys
import types
from collections.abc import Callable

import numpy as np
import torch

from medqua.core import Ansatz

Step = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


def pennylane(ansatz: Ansatz) -> Step:
    """Default.qubit, torch, parameter broadcasting, backpropagation."""
    import pennylane as qml

    device = qml.device("default.qubit", wires=ansatz.n_qubits)

    @qml.qnode(device, interface="torch", diff_method="backprop")
    def circuit(phi, theta):
        apply_pennylane(qml, ansatz, phi.T, theta)
        return [qml.expval(qml.PauliZ(i)) for i in range(ansatz.n_qubits)]

    def step(angles, theta, weights):
        phi, parameters = (torch.from_numpy(v).requires_grad_() for v in (angles, theta))
        z = torch.stack(circuit(phi, parameters), 1)
        (z * torch.from_numpy(weights)).sum().backward()
        return z.detach().numpy(), phi.grad.numpy(), parameters.grad.numpy()

    return step


def lightning(ansatz: Ansatz) -> Step:
    """Lightning.qubit in single precision, adjoint, one token after the other."""
    import pennylane as qml

    device = qml.device("lightning.qubit", wires=ansatz.n_qubits, c_dtype=np.complex64)

    @qml.qnode(device, interface="torch", diff_method="adjoint")
    def circuit(phi, theta):
        apply_pennylane(qml, ansatz, phi, theta)
        return [qml.expval(qml.PauliZ(i)) for i in range(ansatz.n_qubits)]

    def step(angles, theta, weights):
        phi, parameters = (torch.from_numpy(v).requires_grad_() for v in (angles, theta))
        rows = []
        for row, weight in zip(phi, torch.from_numpy(weights), strict=True):
            z = torch.stack(list(circuit(row, parameters)))
            (z * weight).sum().backward()
            rows.append(z.detach().numpy())
        return np.stack(rows), phi.grad.numpy(), parameters.grad.numpy()

    return step


def apply_pennylane(qml, ansatz, phi, theta):
    for gate in ansatz.gates():
        if gate.name == "cx":
            qml.CNOT(gate.qubits)
        else:
            source = phi if len(gate.parameter) == 1 else theta
            getattr(qml, gate.name.upper())(source[gate.parameter], wires=gate.qubits)


def tensorcircuit(ansatz: Ansatz) -> Step:
    """TensorCircuit-NG on jax, compiled and vectorised over tokens."""
    import jax
    import tensorcircuit as tc

    tc.set_backend("jax")
    tc.set_dtype("complex64")
    n = ansatz.n_qubits
    signs = 1.0 - 2.0 * (np.arange(2**n) >> np.arange(n - 1, -1, -1)[:, None] & 1)
    signs = signs.astype(np.float32)

    def one(phi, theta):
        circuit = tc.Circuit(n)
        for gate in ansatz.gates():
            if gate.name == "cx":
                circuit.cnot(*gate.qubits)
            else:
                source = phi if len(gate.parameter) == 1 else theta
                getattr(circuit, gate.name)(*gate.qubits, theta=source[gate.parameter])
        state = circuit.state()  # three times as fast as one expectation_ps for each qubit
        return signs @ (state.real**2 + state.imag**2)

    def loss(phi, theta, weights):
        z = jax.vmap(one, in_axes=(0, None))(phi, theta)
        return (z * weights).sum(), z

    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))

    def step(angles, theta, weights):
        (_, z), gradients = compiled(angles, theta, weights)
        return np.asarray(z), *(np.asarray(g) for g in gradients)

    return step


def deepquantum(ansatz: Ansatz) -> Step:
    """DeepQuantum on torch, batched data encoding."""
    import deepquantum as dq

    circuit = dq.QubitCircuit(ansatz.n_qubits)
    for gate in ansatz.gates():
        if gate.name == "cx":
            circuit.cnot(*gate.qubits)
        else:
            getattr(circuit, gate.name)(gate.qubits[0], encode=True)
    for i in range(ansatz.n_qubits):
        circuit.observable(i)
    live = torch.tensor([g.parameter for g in ansatz.gates() if len(g.parameter or ()) == 3]).T

    def step(angles, theta, weights):
        phi, parameters = (torch.from_numpy(v).requires_grad_() for v in (angles, theta))
        bound = parameters[tuple(live)].expand(len(phi), -1)
        circuit(data=torch.cat((phi, bound), 1))
        z = circuit.expectation()
        (z * torch.from_numpy(weights)).sum().backward()
        return z.detach().numpy(), phi.grad.numpy(), parameters.grad.numpy()

    return step


def torchquantum(ansatz: Ansatz) -> Step:
    """Torchquantum-ng on torch, batched. Its data sets name torchvision, which stays absent."""
    for name in TORCHVISION:
        module = sys.modules.setdefault(name, _AbsentModule(name))
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    import torchquantum as tq
    import torchquantum.functional as tqf

    n = ansatz.n_qubits
    measure = tq.MeasureAll(tq.PauliZ)

    def step(angles, theta, weights):
        phi, parameters = (torch.from_numpy(v).requires_grad_() for v in (angles, theta))
        device = tq.QuantumDevice(n_wires=n, bsz=len(phi))
        for gate in ansatz.gates():
            if gate.name == "cx":
                tqf.cnot(device, wires=list(gate.qubits))
            else:
                encodes = len(gate.parameter) == 1
                value = phi[:, gate.parameter[0]] if encodes else parameters[gate.parameter][None]
                getattr(tqf, gate.name)(device, wires=gate.qubits[0], params=value)
        z = measure(device)
        (z * torch.from_numpy(weights)).sum().backward()
        return z.detach().numpy(), phi.grad.numpy(), parameters.grad.numpy()

    return step


TORCHVISION = (
    "torchvision",
    "torchvision.datasets",
    "torchvision.datasets.utils",
    "torchvision.models",
    "torchvision.transforms",
    "torchvision.transforms.functional",
)


class _Absent(type):
    """Any name of a package that is imported but never used."""

    def __getattr__(cls, name):
        return absent(name)


class _AbsentModule(types.ModuleType):
    __path__: list[str] = []  # noqa: RUF012 - what makes it a package

    def __getattr__(self, name):
        return absent(name)


def absent(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return _Absent(name, (), {})


def qulacs(ansatz: Ansatz) -> Step:
    """Qulacs, parametric circuit, backpropagation, one token after the other."""
    from qulacs import Observable, ParametricQuantumCircuit, QuantumState

    n = ansatz.n_qubits
    circuit, sources = ParametricQuantumCircuit(n), []
    for gate in ansatz.gates():
        if gate.name == "cx":
            circuit.add_CNOT_gate(*gate.qubits)
        else:
            getattr(circuit, f"add_parametric_{gate.name.upper()}_gate")(gate.qubits[0], 0.0)
            sources.append(gate.parameter)
    observables = []
    for i in range(n):
        observables.append(Observable(n))
        observables[-1].add_operator(1.0, f"Z {i}")

    def step(angles, theta, weights):
        grad_angles, grad_theta = np.zeros_like(angles), np.zeros_like(theta)
        rows = []
        for row, (phi, weight) in enumerate(zip(angles, weights, strict=True)):
            for k, source in enumerate(sources):  # Qulacs turns the other way
                value = phi[source] if len(source) == 1 else theta[source]
                circuit.set_parameter(k, -float(value))
            state = QuantumState(n)
            circuit.update_quantum_state(state)
            rows.append([o.get_expectation_value(state) for o in observables])
            total = Observable(n)
            for i, w in enumerate(weight):
                total.add_operator(float(w), f"Z {i}")
            for source, value in zip(sources, circuit.backprop(total), strict=True):
                if len(source) == 1:
                    grad_angles[row][source] -= value
                else:
                    grad_theta[source] -= value
        return np.array(rows, dtype=np.float32), grad_angles, grad_theta

    return step


def cudaq(ansatz: Ansatz) -> Step:
    """CUDA-Q on qpp-cpu, `observe` and parameter shift, one token after the other."""
    from medqua.core.quantum.runtime.engine import CudaqEngine

    engine = CudaqEngine(ansatz, observe=True)

    def step(angles, theta, weights):
        phi, parameters = (torch.from_numpy(v).requires_grad_() for v in (angles, theta))
        z = engine.compile(parameters, (ansatz.max_depth,))[ansatz.max_depth](phi)
        z.backward(torch.from_numpy(weights))
        return z.detach().numpy(), phi.grad.numpy(), parameters.grad.numpy()

    return step


PEERS: dict[str, tuple[Callable[[Ansatz], Step], str, int]] = {
    "PennyLane default.qubit": (pennylane, "pennylane", 64),
    "PennyLane lightning.qubit": (lightning, "pennylane-lightning", 1),
    "TensorCircuit-NG jax": (tensorcircuit, "tensorcircuit-ng", 64),
    "DeepQuantum": (deepquantum, "deepquantum", 64),
    "torchquantum-ng": (torchquantum, "torchquantum-ng", 64),
    "Qulacs": (qulacs, "qulacs", 1),
    "CUDA-Q qpp-cpu": (cudaq, "cuda-quantum-cu13", 1),
}
"""Name -> builder, distribution, and the fewest tokens that are tried."""
