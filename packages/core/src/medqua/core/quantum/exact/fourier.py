"""The exact engine that turns the circuit into one real matrix product for all tokens.

An encoded token is a product state, so <Z_i> is a polynomial in (1, cos phi_q, sin phi_q) with
3^n coefficients that depend on theta alone:

    <Z_i> = F1^T C_i F2,   F1, F2 the products of (1, cos, sin) over the first and last qubits

The table C is made once for each theta and depth (`table.py`). Tokens then cost one matrix
product forward and two backward, batch last, in chunks that stay in the cache (`chunk.py`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from medqua.core.errors import QuantumError
from medqua.core.quantum.ansatz import Ansatz
from medqua.core.quantum.exact.chunk import Chunk, chunks
from medqua.core.quantum.exact.table import HeisenbergTable
from medqua.core.quantum.noise import NoiseModel

FEW = 256
"""Tokens up to which fresh buffers would cost more than the arithmetic in them."""

STEP = 8
"""Buffers for few tokens are for a multiple of this, so that most calls find some of their size."""

IDLE = 8
"""How many of those a program keeps."""


class FourierEngine:
    """Trigonometric polynomial of the circuit; noise is free."""

    def __init__(self, ansatz: Ansatz, noise: NoiseModel | None = None) -> None:
        self.ansatz = ansatz
        self._table = HeisenbergTable(ansatz, noise)

    def compile(
        self, theta: Float[Tensor, "max_depth n_qubits 3"], depths: Sequence[int]
    ) -> "dict[int, FourierProgram]":
        """Return a program for each depth: see `Engine`."""
        return {d: FourierProgram(self._table(theta, d, theta.dtype)) for d in depths}


class FourierProgram:
    """The polynomial with its table bound."""

    def __init__(self, table: Float[Tensor, "n terms"]) -> None:
        n = table.shape[0]
        self.first = split(n)
        axes = table.reshape(n, 3**self.first, 3 ** (n - self.first))
        self.table = axes.mT.reshape(-1, 3**self.first)  # [n * 3^last, 3^first]
        self._idle: dict[int, Chunk] = {}  # buffers, by size

    def __call__(self, angles: Float[Tensor, "tokens n"]) -> Float[Tensor, "tokens n"]:
        """Return <Z_i>: see `Program`."""
        learns = torch.is_grad_enabled() and (angles.requires_grad or self.table.requires_grad)
        if not learns and len(angles) <= FEW and angles.device.type == "cpu":
            return self._few(angles)
        result: Tensor = _Contract.apply(  # type: ignore[no-untyped-call]
            angles, self.table, self.first
        )
        return result

    def _few(self, angles: Float[Tensor, "tokens n"]) -> Float[Tensor, "tokens n"]:
        """Return <Z_i> of a few tokens without gradients, in the buffers of an earlier call."""
        tokens, n = angles.shape
        size = max(1, -(-tokens // STEP)) * STEP
        chunk = self._idle.pop(size, None)  # no other thread has it until it is put back
        if chunk is None:
            with torch.inference_mode(False):
                chunk = Chunk(self.table, n, self.first, size)
        chunk.turn(angles.T)
        torch.mm(self.table, chunk.f1, out=chunk.rows)
        z = angles.new_empty(n, size)
        chunk.values(z)
        if len(self._idle) >= IDLE:
            self._idle.clear()
        self._idle[size] = chunk
        return z[:, :tokens].T


def split(n_qubits: int) -> int:
    """Return how many qubits go into F1: so many that F1 and C F1 are about equally long."""
    return min(range(1, n_qubits + 1), key=lambda k: 3**k + 2 * n_qubits * 3 ** (n_qubits - k))


class _Contract(torch.autograd.Function):
    """`z[i] = F1^T C_i F2` for every token, with its derivatives in the angles and the table."""

    @staticmethod
    def forward(ctx: Any, angles: Tensor, table: Tensor, first: int) -> Tensor:
        tokens, n = angles.shape
        turned = angles.T.contiguous()
        basis = angles.new_empty(2, n, tokens)
        torch.cos(turned, out=basis[0])
        torch.sin(turned, out=basis[1])
        z = torch.empty_like(turned)  # `turned` may be the caller's own memory
        slopes = angles.new_empty(n - first, n, tokens) if ctx.needs_input_grad[0] else None
        for chunk, part in chunks(angles, n, first, tokens):
            chunk.load(basis[..., part])
            torch.mm(table, chunk.f1, out=chunk.rows)
            if slopes is None:
                chunk.values(z[:, part])
            else:
                chunk.values_and_slopes(z[:, part], slopes[..., part])
        ctx.first = first
        ctx.save_for_backward(basis, table, slopes)
        transposed: Tensor = z.T  # not copied: what follows is most often a matrix product
        return transposed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        if torch.is_grad_enabled():
            raise QuantumError(
                "the engines have no second derivatives: do without create_graph=True"
            )
        basis, table, slopes = ctx.saved_tensors
        for_angles, for_table, _ = ctx.needs_input_grad
        weights = grad.T.contiguous()
        n, first = len(weights), ctx.first
        pulled = torch.empty_like(weights) if for_angles else None
        grad_table = torch.zeros_like(table) if for_table else None
        for chunk, part in chunks(basis, n, first, basis.shape[2]):
            chunk.load(basis[..., part])
            chunk.weigh(weights[:, part])
            if grad_table is not None:
                grad_table.addmm_(chunk.rows, chunk.f1.T)
            if pulled is not None:
                torch.mm(table.T, chunk.rows, out=chunk.gradient)
                chunk.pull_back(pulled[:first, part])
        if pulled is not None:
            torch.sum(slopes * weights, 1, out=pulled[first:])
        return None if pulled is None else pulled.T, grad_table, None
