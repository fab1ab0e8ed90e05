"""Closed forms that the measured figures of the study are held against.

Angles phi are uniform throughout; theta is uniform too, or normal around 0. Every <Z_i> and every
derivative of it then has mean 0 (averaged over phi the encoded state is the identity, and the
observables are traceless), so that a variance is a mean square.
"""

import math

import numpy as np

from medqua.core.quantum.ansatz import Ansatz
from medqua.core.quantum.exact.pauli import carry


def two_design_variance(n_qubits: int) -> float:
    """Return the variance of `d<O>/dtheta` deep inside a random circuit.

    With d = 2^n, O and the rotation's generator any Pauli strings but the identity, and the parts
    of the circuit before and after the rotation independent 2-designs, it is
    `d^2 / (2 (d - 1) (d + 1)^2)`: about `2^-(n+1)`, one factor of 2 for each qubit.

    Source: the setting of McClean et al. 2018 (Nature Communications 9, 4812), integrated exactly
    to second order; derived in docs/trainability.md.
    """
    d = 2.0**n_qubits
    return d**2 / (2 * (d - 1) * (d + 1) ** 2)


def haar_meyer_wallach(n_qubits: int) -> float:
    """Return the mean Meyer-Wallach entanglement of Haar-random states, `(2^n - 2) / (2^n + 1)`."""
    return (2.0**n_qubits - 2) / (2.0**n_qubits + 1)


def haar_bins(edges: np.ndarray, n_qubits: int) -> np.ndarray:
    """Return the probability of each bin of the fidelity of two Haar-random states.

    Its density is `(d - 1) (1 - F)^(d - 2)`.

    Args:
        edges: Increasing, from 0 to 1, `[bins + 1]`.
        n_qubits: Number of qubits, d = 2^n.
    """
    return np.asarray(-np.diff((1 - edges) ** (2**n_qubits - 1)))


def two_design_spectrum(n_qubits: int) -> np.ndarray:
    """Return the mean power of <Z_i> at each degree, `[n + 1]`, for U a 2-design.

    Each of the `4^n - 1` Pauli strings but the identity has the same mean square; `C(n, k) 2^k` of
    degree k are seen by the encoded state, each with a mean square of `2^-k` over phi. The sum is
    `1 / (2^n + 1)`, the variance of <Z_i> over Haar-random states.
    """
    power = [math.comb(n_qubits, k) / (4**n_qubits - 1) for k in range(n_qubits + 1)]
    return np.array([0.0, *power[1:]])


def supports(ansatz: Ansatz) -> np.ndarray:
    """Return which qubits each observable of depth 1 is a product of Z over.

    Row i is Z_i, the last row the product of all Z, `[n + 1, n]`, boolean: carried backward
    through the CNOTs.
    """
    n = ansatz.n_qubits
    strings = np.append(4 ** np.arange(n - 1, -1, -1), (4**n - 1) // 3)
    carried, _ = carry(n, ansatz.pairs[::-1], strings)
    digits = carried[:, None] >> 2 * np.arange(n - 1, -1, -1) & 3
    return np.asarray(digits == 1)


def depth_one_variances(ansatz: Ansatz, std: float | None) -> dict[str, float]:
    """Return the mean variance of a derivative at depth 1, exactly.

    There `<Z_i>` is a product of one function of (phi_q, a_q, b_q) over the qubits q of a support
    S, a and b the RX and RY angles (`_factor`). With m the mean square of such a factor and v that
    of its derivative, the variance is `v m^(|S| - 1)` for an angle on a qubit of S, else 0.

    Args:
        ansatz: The circuit; its first layer counts.
        std: Standard deviation of theta (radian); uniform angles if None.

    Returns:
        `local`: the mean over the readouts Z_i; `global`: the product of all Z. Both are means
        over the 2 n live angles.
    """
    m, v = _factor(ansatz.encoding, std)
    sizes = supports(ansatz).sum(1)
    each = sizes / ansatz.n_qubits * v * m ** (sizes - 1.0)
    return {"local": float(each[:-1].mean()), "global": float(each[-1])}


def depth_one_spectrum(ansatz: Ansatz, std: float | None) -> np.ndarray:
    """Return the mean power of <Z_i> at each degree at depth 1, exactly, `[n + 1]`.

    A product over a support S has degree |S| and nothing else: its power is `m^|S|`.

    Args:
        ansatz: The circuit; its first layer counts.
        std: Standard deviation of theta (radian); uniform angles if None.
    """
    m, _ = _factor(ansatz.encoding, std)
    sizes = supports(ansatz)[:-1].sum(1)
    return np.bincount(sizes, m**sizes, ansatz.n_qubits + 1) / ansatz.n_qubits


def _factor(encoding: str, std: float | None) -> tuple[float, float]:
    """Return the mean square of one qubit's factor, and of its derivative, the mean over a and b.

    RY encoding: `cos a cos b cos phi - sin b sin phi`; RX encoding: `cos b cos(phi + a)`.
    """
    cosine = 0.5 if std is None else (1 + math.exp(-2 * std**2)) / 2  # mean of cos^2
    sine = 1 - cosine
    if encoding == "rx":
        return cosine / 2, (cosine / 2 + sine / 2) / 2
    m = (cosine**2 + sine) / 2
    return m, (sine * cosine / 2 + (cosine * sine + cosine) / 2) / 2
