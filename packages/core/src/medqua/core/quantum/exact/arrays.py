"""The circuit in numpy alone, for a process that evaluates one without torch.

As in `dense.py`, all tokens of a depth share one unitary; there is no gradient and no noise, and
arithmetic is float64 throughout.
"""

import math

import numpy as np
import numpy.typing as npt

from medqua.core.errors import ConfigError, ShapeError
from medqua.core.quantum.ansatz import NOT_FINITE, Ansatz

LARGEST = 8
"""Most qubits: a unitary of more costs longer to build than torch takes to be imported."""

CHUNK = 1024
"""Tokens whose amplitudes are in memory at a time."""


class ArrayCircuit:
    """<Z_i> of many tokens, each with its own angles and depth, by one set of parameters.

    Args:
        ansatz: The circuit, of at most `LARGEST` qubits.
        theta: Parameters (radian), `[max_depth, n_qubits, 3]`.

    Raises:
        ConfigError: Too many qubits.
        ShapeError: Parameters of another shape.
    """

    def __init__(self, ansatz: Ansatz, theta: npt.NDArray[np.floating]) -> None:
        if ansatz.n_qubits > LARGEST:
            raise ConfigError(
                f"{ansatz.n_qubits} qubits in numpy: it takes up to {LARGEST}; use "
                "VariationalBottleneck"
            )
        if theta.shape != ansatz.theta_shape:
            raise ShapeError(
                f"theta has shape {list(theta.shape)}: this ansatz needs {list(ansatz.theta_shape)}"
            )
        n = ansatz.n_qubits
        self.ansatz = ansatz
        self._theta = theta.astype(np.float64)
        bits = np.arange(2**n)[:, None] >> np.arange(n - 1, -1, -1) & 1
        self._signs = 1.0 - 2.0 * bits  # [2^n, n]: Z_i in the computational basis
        self._columns: dict[int, npt.NDArray[np.float64]] = {}

    def __call__(
        self, angles: npt.NDArray[np.floating], depth: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """Return <Z_i>, `[tokens, n_qubits]` in [-1, 1].

        Args:
            angles: phi (radian), `[tokens, n_qubits]`.
            depth: Number of layers of each token, `[tokens]`.

        Raises:
            ShapeError: Another shape, a depth out of range, or angles that are not finite.
        """
        n, limit = self.ansatz.n_qubits, self.ansatz.max_depth
        if angles.ndim != 2 or angles.shape[1] != n or depth.shape != angles.shape[:1]:
            raise ShapeError(
                f"angles of shape {list(angles.shape)}, depths of shape {list(depth.shape)}: "
                f"needed [tokens, {n}] and [tokens]"
            )
        if not np.isfinite(angles).all():
            raise ShapeError(NOT_FINITE)
        if ((depth < 0) | (depth > limit)).any():
            raise ShapeError(f"depths {depth.min()} to {depth.max()}: needed 0..{limit}")
        values = np.cos(angles.astype(np.float64))  # what depth 0 is
        for layers in np.unique(depth[depth > 0]).tolist():
            places = np.flatnonzero(depth == layers)
            for start in range(0, len(places), CHUNK):
                part = places[start : start + CHUNK]
                values[part] = self._expectations(angles[part], layers)
        return values

    def _expectations(
        self, angles: npt.NDArray[np.floating], layers: int
    ) -> npt.NDArray[np.float64]:
        """Return <Z_i> of tokens of one depth."""
        amplitudes = _product_states(angles) @ self._unitary(layers)  # [tokens, (re/im, 2^n)]
        real, imaginary = np.split(amplitudes, 2, axis=1)
        values: npt.NDArray[np.float64] = (real * real + imaginary * imaginary) @ self._signs
        return values

    def _unitary(self, layers: int) -> npt.NDArray[np.float64]:
        """Return the layers' unitary, transposed, its real beside its imaginary part."""
        if layers not in self._columns:
            n = self.ansatz.n_qubits
            state = np.eye(2**n, dtype=complex).reshape([2] * n + [2**n])
            if self.ansatz.encoding == "rx":  # RX(phi) on the zero state is RZ(-pi/2) RY(phi) on it
                for qubit in range(n):
                    state = rotate(state, "rz", -math.pi / 2, qubit)
            for gate in self.ansatz.layers(layers):
                if gate.parameter is None:
                    entangle(state, *gate.qubits)
                else:
                    state = rotate(state, gate.name, self._theta[gate.parameter], *gate.qubits)
            unitary = state.reshape(2**n, 2**n)
            self._columns[layers] = np.concatenate((unitary.real.T, unitary.imag.T), axis=1)
        return self._columns[layers]


def rotate(state: np.ndarray, name: str, angle: float, qubit: int) -> np.ndarray:
    """Return a state, or several, `[2] * n + [...]`, after the rotation `exp(-i angle P / 2)`."""
    c, s = math.cos(angle / 2), math.sin(angle / 2)
    rotations: dict[str, list[list[complex]]] = {
        "rx": [[c, -1j * s], [-1j * s, c]],
        "ry": [[c, -s], [s, c]],
        "rz": [[c - 1j * s, 0], [0, c + 1j * s]],
    }
    turned = np.tensordot(np.array(rotations[name]), state, (1, qubit))
    return np.moveaxis(turned, 0, qubit)


def entangle(state: np.ndarray, control: int, target: int) -> None:
    """Apply a CNOT to a state, or several, `[2] * n + [...]`, in place."""
    one = np.moveaxis(state, (control, target), (0, 1))[1]  # a view
    one[:] = one[::-1].copy()


def _product_states(angles: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Return what RY(phi) makes of the zero states: real amplitudes `[tokens, 2^n]`."""
    half = angles.astype(np.float64) / 2
    factors = np.stack((np.cos(half), np.sin(half)), axis=-1)  # [tokens, n, 2]
    states = factors[:, 0]
    for qubit in range(1, angles.shape[1]):
        states = (states[:, :, None] * factors[:, qubit, None]).reshape(len(angles), -1)
    return states
