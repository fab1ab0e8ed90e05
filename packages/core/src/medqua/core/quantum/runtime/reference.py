"""What a circuit gives exactly, by a plain statevector sweep that shares nothing with CUDA-Q."""

from collections.abc import Mapping

import numpy as np

from medqua.core.quantum.exact.arrays import entangle, rotate
from medqua.core.quantum.runtime.sampling import Circuit


def probabilities(circuit: Circuit) -> np.ndarray:
    """Return the exact chance of every bit string, float64 `[2^n]`, by a statevector sweep.

    Folds change nothing without noise and are left out.
    """
    n, theta = circuit.ansatz.n_qubits, np.reshape(circuit.theta, circuit.ansatz.theta_shape)
    state = np.zeros([2] * n, complex)
    state.flat[0] = 1
    for gate in circuit.ansatz.gates(circuit.depth):
        if gate.parameter is None:
            entangle(state, *gate.qubits)
            continue
        (qubit,) = gate.qubits
        angle = theta[gate.parameter] if len(gate.parameter) > 1 else circuit.phi[qubit]
        state = rotate(state, gate.name, angle, qubit)
    chances: np.ndarray = np.abs(state.reshape(-1)) ** 2
    return chances


def exact_values(circuit: Circuit) -> np.ndarray:
    """Return the exact <Z_i>, float64 `[n]`."""
    n = circuit.ansatz.n_qubits
    bits = np.arange(2**n) >> np.arange(n - 1, -1, -1)[:, None] & 1
    values: np.ndarray = (1 - 2 * bits) @ probabilities(circuit)
    return values


def chi_square(counts: Mapping[str, int], chances: np.ndarray) -> tuple[float, int]:
    """Return Pearson's statistic of counts and its degrees of freedom.

    Bit strings expected fewer than five times are taken together.
    """
    n = len(chances).bit_length() - 1
    seen = np.array([counts.get(f"{state:0{n}b}", 0) for state in range(2**n)], float)
    expected = chances * seen.sum()
    rare = expected < 5
    seen = np.append(seen[~rare], seen[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    if expected[-1] < 5 and len(expected) > 1:  # too few even together: join the least of the rest
        least = int(np.argmin(expected[:-1]))
        seen[least] += seen[-1]
        expected[least] += expected[-1]
        seen, expected = seen[:-1], expected[:-1]
    return float(((seen - expected) ** 2 / expected).sum()), len(expected) - 1
