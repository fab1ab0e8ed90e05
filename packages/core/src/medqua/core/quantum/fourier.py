"""The exact engine that turns the circuit into one real matrix product for all tokens.

An encoded token is a product state, so <Z_i> is a polynomial in (1, cos phi_q, sin phi_q) with
3^n coefficients that depend on theta alone:

    <Z_i> = F1^T C_i F2,   F1, F2 the products of (1, cos, sin) over the first and last qubits

The table C is made once for each theta and depth by carrying every Z_i backward through the
layers (`docs/bottleneck.md` derives it); tokens then cost one matrix product, batch last.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from medqua.core.quantum.ansatz import Ansatz
from medqua.core.quantum.pauli import Z, entangler_permutation, rotations_to_bloch


class FourierEngine:
    """Trigonometric polynomial of the circuit; best for many tokens and up to 9 qubits or so."""

    def __init__(self, ansatz: Ansatz) -> None:
        self.ansatz = ansatz
        self._source, self._sign = entangler_permutation(ansatz.n_qubits, ansatz.pairs)

    def compile(
        self, theta: Float[Tensor, "max_depth n_qubits 3"], depths: Sequence[int]
    ) -> "dict[int, FourierProgram]":
        """Return a program for each depth: see `Engine`."""
        return {d: FourierProgram(self.table(theta.double(), d).to(theta.dtype)) for d in depths}

    def table(self, theta: Float[Tensor, "max_depth n_qubits 3"], depth: int) -> Tensor:
        """Return C, `[n_qubits] + [3] * n_qubits`: coefficients of <Z_i> in (1, cos, sin)."""
        n = self.ansatz.n_qubits
        source = self._source.to(theta.device)
        sign = self._sign.to(theta)
        observable = theta.new_zeros(n, 4**n)
        observable[range(n), [Z * 4 ** (n - 1 - i) for i in range(n)]] = 1.0
        for layer in reversed(range(depth)):
            angles = theta[layer]
            if layer == depth - 1:
                angles = torch.cat((angles[:, :2], torch.zeros_like(angles[:, 2:])), 1)
            observable = observable[:, source] * sign
            observable = apply_each(rotations_to_bloch(angles).mT, observable)
        if self.ansatz.encoding == "rx":  # RX(phi) on the zero state is RZ(-pi/2) RY(phi) on it
            turn = theta.new_tensor((0.0, 0.0, -torch.pi / 2)).expand(n, 3)
            observable = apply_each(rotations_to_bloch(turn).mT, observable)
        return observable.view(n, *[4] * n)[(slice(None), *[slice(3)] * n)]


def apply_each(matrices: Inexact[Tensor, "n d d"], tensor: Inexact[Tensor, "m size"]) -> Tensor:
    """Multiply axis q of `tensor`, seen as `[m] + [d] * n`, by `matrices[q]`, for every q."""
    n, d, _ = matrices.shape
    for q in range(n):
        axes = tensor.reshape(-1, d, d ** (n - 1 - q))
        tensor = matrices[q] @ axes
    return tensor.reshape(-1, d**n)


def features(angles: Float[Tensor, "tokens n"]) -> Float[Tensor, "terms tokens"]:
    """Return the products of (1, cos, sin) over the qubits, `[3^n, tokens]`, batch last."""
    basis = torch.stack((torch.ones_like(angles), angles.cos(), angles.sin()))  # [3, tokens, n]
    result = basis[:, :, 0]
    for q in range(1, angles.shape[1]):
        result = (result[:, None] * basis[None, :, :, q]).flatten(0, 1)
    return result


class FourierProgram:
    """The polynomial with its table bound."""

    def __init__(self, table: Tensor) -> None:
        n = table.shape[0]
        self.first = n - n // 2
        self.table = table.reshape(n, 3**self.first, -1).mT.reshape(-1, 3**self.first)

    def __call__(self, angles: Float[Tensor, "tokens n"]) -> Float[Tensor, "tokens n"]:
        """Return <Z_i>: see `Program`."""
        n = angles.shape[1]
        first, last = features(angles[:, : self.first]), features(angles[:, self.first :])
        partial = (self.table @ first).view(n, last.shape[0], angles.shape[0])
        return (partial * last).sum(1).T
