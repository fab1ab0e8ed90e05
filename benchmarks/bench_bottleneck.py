# ruff: noqa: E402 - threads are set before the libraries that read them are imported
"""Tokens per core-second of the bottleneck, forward and backward, against every simulator here.

    python benchmarks/bench_bottleneck.py [--qubits 4 8] [--output benchmarks/results]

Every peer runs the same circuit in float32 on one thread and must first give equal values and
gradients. Time is CPU time of the process, so that a core-second is one even on a busy machine;
each figure is the median of at least five runs. A peer that is not installed is left out and
named. The rate of a large float32 matrix product is measured in the same run.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from medqua.core import Ansatz, VariationalBottleneck

torch.set_num_threads(1)

Step = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""(angles, theta, weights) -> <Z_i>, and the gradients of sum(weights <Z_i>) in both."""

CASES = ((4, 2, 65536), (6, 4, 65536), (8, 4, 65536), (8, 4, 1024), (10, 4, 8192), (12, 4, 64))
"""(qubits, depth, tokens) of our runs."""


def ours(ansatz: Ansatz, engine: str) -> Step:
    bottleneck = VariationalBottleneck(ansatz.n_qubits, ansatz.max_depth, engine=engine)

    def step(angles, theta, weights):
        phi = torch.from_numpy(angles).requires_grad_()
        with torch.no_grad():
            bottleneck.theta.copy_(torch.from_numpy(theta))
        bottleneck.zero_grad()
        z = bottleneck(phi, ansatz.max_depth)
        z.backward(torch.from_numpy(weights))
        return z.detach().numpy(), phi.grad.numpy(), bottleneck.theta.grad.numpy()

    return step


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

    backend = tc.set_backend("jax")
    tc.set_dtype("complex64")
    n = ansatz.n_qubits

    def one(phi, theta):
        circuit = tc.Circuit(n)
        for gate in ansatz.gates():
            if gate.name == "cx":
                circuit.cnot(*gate.qubits)
            else:
                source = phi if len(gate.parameter) == 1 else theta
                getattr(circuit, gate.name)(*gate.qubits, theta=source[gate.parameter])
        return backend.real(backend.stack([circuit.expectation_ps(z=[i]) for i in range(n)]))

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
    "PennyLane default.qubit": (pennylane, "pennylane", 20_000),
    "PennyLane lightning.qubit": (lightning, "pennylane-lightning", 200),
    "TensorCircuit-NG jax": (tensorcircuit, "tensorcircuit-ng", 400_000),
    "DeepQuantum": (deepquantum, "deepquantum", 40_000),
    "Qulacs": (qulacs, "qulacs", 4_000),
    "CUDA-Q qpp-cpu": (cudaq, "cuda-quantum-cu13", 10),
}
"""Name -> builder, distribution, and tokens that take about a second at 4 qubits and 2 layers."""


def problem(ansatz: Ansatz, tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    theta = generator.normal(size=ansatz.theta_shape)
    theta[tuple(np.array(ansatz.dead()).T)] = 0.0
    angles = generator.uniform(-np.pi, np.pi, (tokens, ansatz.n_qubits))
    weights = generator.normal(size=angles.shape)
    return tuple(v.astype(np.float32) for v in (angles, theta, weights))


def seconds(function: Callable[[], object], repeats: int) -> float:
    function()
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        function()
        times.append(time.process_time() - begin)
    return statistics.median(times)


def gemm_rate() -> float:
    """FLOP per second of a float32 matrix product on one core."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    return 2 * 1024**3 / seconds(lambda: a @ b, 15)


def agree(step: Step, reference: Step, ansatz: Ansatz) -> None:
    data = problem(ansatz, 3)
    for got, expected in zip(step(*data), reference(*data), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)


def run(qubits: list[int]) -> dict:
    rows, absent = [], {}
    for n, depth, tokens in (case for case in CASES if case[0] in qubits):
        ansatz = Ansatz(n, depth)
        data = problem(ansatz, tokens)
        engine = VariationalBottleneck(n, depth).engine_for(tokens)
        step = ours(ansatz, engine)
        rate = tokens / seconds(lambda step=step, data=data: step(*data), 5)
        gemm = gemm_rate()
        peers = {}
        for name, (build, distribution, budget) in PEERS.items():
            try:
                importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                absent[name] = "not installed"
                continue
            shrink = 2.0 ** (n - 4) * depth / 2 * n / 4
            if budget / shrink < 0.02:
                continue
            peer = build(ansatz)
            agree(peer, step, ansatz)
            few = problem(ansatz, int(max(1, min(tokens, budget / shrink))))
            peers[name] = len(few[0]) / seconds(lambda peer=peer, few=few: peer(*few), 5)
        best = max(peers, key=peers.get, default=None)
        rows.append(
            {
                "case": f"n={n} L={depth} N={tokens}",
                "engine": engine,
                "ours": rate,
                "peers": peers,
                "best_peer": best,
                "ratio": rate / peers[best] if best else None,
                "gemm_flops": gemm,
                "gemm_share": rate * 6 * n * 3**n / gemm if engine == "fourier" else None,
            }
        )
    return {"rows": rows, "absent": absent}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    sizes = sorted({case[0] for case in CASES})
    parser.add_argument("--qubits", type=int, nargs="+", choices=sizes, default=sizes)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    result = run(arguments.qubits)
    names = ("torch", "cuda-quantum-cu13", *{distribution for _, distribution, _ in PEERS.values()})
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    result |= {
        "unit": "tokens per core-second, forward and backward, float32, one thread",
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
        "versions": versions,
        "date": datetime.date.today().isoformat(),
    }
    table = Table(title=result["unit"])
    present = [name for name in PEERS if any(name in row["peers"] for row in result["rows"])]
    for heading in ("case", "ours", *present, "ratio to best", "share of GEMM"):
        table.add_column(heading, justify="right")
    for row in result["rows"]:
        cells = [f"{row['peers'][p]:,.0f}" if p in row["peers"] else "" for p in present]
        share, ratio = row["gemm_share"], row["ratio"]
        table.add_row(
            f"{row['case']} ({row['engine']})",
            f"{row['ours']:,.0f}",
            *cells,
            "" if ratio is None else f"{ratio:,.1f}",
            "" if share is None else f"{share:.0%}",
        )
    console = Console(width=200)
    console.print(table)
    for name, reason in result["absent"].items():
        console.print(f"{name}: {reason}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "bottleneck.json").write_text(json.dumps(result, indent=1) + "\n")


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    main()
