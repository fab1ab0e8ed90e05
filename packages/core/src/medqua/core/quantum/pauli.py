"""Observables in the Heisenberg picture, as real vectors over Pauli strings.

One qubit's Paulis are ordered I, Z, X, Y: the digit `2 x + z` of the symplectic bits (x, z), so
that a CNOT is bit arithmetic. An observable of n qubits is `[4] * n` real coefficients. A state
encoded by RY(phi) has the Bloch coordinates (1, cos phi, sin phi, 0) in this order: what remains
of an observable after the sweep is the first three digits of each axis.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int8, Int64
from torch import Tensor

Z = 1
"""Digit of the Pauli Z."""


def rotations_to_bloch(theta: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 4 4"]:
    """Return the action of RX, then RY, then RZ on the coordinates (I, Z, X, Y) of one qubit.

    `r' = T r` maps Bloch coordinates; an observable's coefficients go the other way, `o' = T^T o`.
    """
    a, b, c = theta.unbind(-1)
    (ca, sa), (cb, sb), (cc, sc) = ((v.cos(), v.sin()) for v in (a, b, c))
    o, i = torch.zeros_like(a), torch.ones_like(a)
    # rows z, x, y of Rz(c) Ry(b) Rx(a) acting on columns z, x, y
    rows = (
        (i, o, o, o),
        (o, cb * ca, -sb, cb * sa),
        (o, cc * sb * ca + sc * sa, cc * cb, cc * sb * sa - sc * ca),
        (o, sc * sb * ca - cc * sa, sc * cb, sc * sb * sa + cc * ca),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def entangler_permutation(
    n_qubits: int, pairs: Sequence[tuple[int, int]]
) -> tuple[Int64[Tensor, " strings"], Int8[Tensor, " strings"]]:
    """Return how CNOTs carry Pauli strings backward: `new[p] = sign[p] * old[source[p]]`.

    Args:
        n_qubits: Number of qubits n; there are 4^n strings.
        pairs: (control, target) of the CNOTs in the order in which they act on the state.
    """
    strings = np.arange(4**n_qubits, dtype=np.int64)
    shift = [2 * (n_qubits - 1 - q) for q in range(n_qubits)]
    sign = np.zeros_like(strings)
    for c, t in pairs:
        xc, zc = strings >> (shift[c] + 1) & 1, strings >> shift[c] & 1
        xt, zt = strings >> (shift[t] + 1) & 1, strings >> shift[t] & 1
        sign ^= xc & zt & (xt ^ zc ^ 1)
        strings = strings ^ (xc << (shift[t] + 1)) ^ (zt << shift[c])
    return torch.from_numpy(strings), torch.from_numpy((1 - 2 * sign).astype(np.int8))
