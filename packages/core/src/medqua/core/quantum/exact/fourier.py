"""The exact engine that turns the circuit into one real matrix product for all tokens.

An encoded token is a product state, so <Z_i> is a polynomial in (1, cos phi_q, sin phi_q) with
3^n coefficients that depend on theta alone:

    <Z_i> = F1^T C_i F2,   F1, F2 the products of (1, cos, sin) over the first and last qubits

The table C is made once for each theta and depth (`table.py`). Tokens then cost one matrix
product forward and two backward, batch last, in chunks that stay in the cache.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from medqua.core.errors import QuantumError
from medqua.core.quantum.ansatz import Ansatz
from medqua.core.quantum.exact.table import HeisenbergTable
from medqua.core.quantum.noise import NoiseModel

CACHE_BYTES = 4_000_000
"""Size of the buffers of one chunk on a CPU: with 2 MB of second-level cache a core, chunks that
overflow it a little were faster than shorter ones, whose operations are more."""

FEW = 256
"""Tokens up to which the number of operations costs more than their size."""

ACCELERATOR_BYTES = 1_000_000_000
"""Size of the buffers of one chunk elsewhere: large enough to keep a GPU busy."""


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

    def __call__(self, angles: Float[Tensor, "tokens n"]) -> Float[Tensor, "tokens n"]:
        """Return <Z_i>: see `Program`."""
        if len(angles) <= FEW and not (
            torch.is_grad_enabled() and (angles.requires_grad or self.table.requires_grad)
        ):
            return self._few(angles)
        result: Tensor = _Contract.apply(  # type: ignore[no-untyped-call]
            angles, self.table, self.first
        )
        return result

    def _few(self, angles: Float[Tensor, "tokens n"]) -> Float[Tensor, "tokens n"]:
        """Return <Z_i> of a few tokens without gradients, in as few operations as possible."""
        n, first, turned = angles.shape[1], self.first, angles.T
        basis = torch.stack((torch.ones_like(turned), turned.cos(), turned.sin()), 1)
        # products of qubits (0, 1), (2, 3), ... in one operation
        pairs = (basis[0 : n - 1 : 2, :, None] * basis[1::2, None]).flatten(1, 2)
        partial = (self.table @ folded(basis, pairs, range(first))).view(n, -1, len(angles))
        return (partial * folded(basis, pairs, range(first, n))).sum(1).T.contiguous()


def folded(basis: Tensor, pairs: Tensor, qubits: range) -> Float[Tensor, "terms tokens"]:
    """Return the products over `qubits`, two at a time where `pairs` has them."""
    result = basis[0, :1]  # 1
    q = qubits.start
    while q < qubits.stop:
        paired = q % 2 == 0 and q + 1 < qubits.stop
        factor = pairs[q // 2] if paired else basis[q]
        result = (result[:, None] * factor).flatten(0, 1) if q > qubits.start else factor
        q += 1 + paired
    return result


def split(n_qubits: int) -> int:
    """Return how many qubits go into F1: so many that F1 and C F1 are about equally long."""
    return min(range(1, n_qubits + 1), key=lambda k: 3**k + 2 * n_qubits * 3 ** (n_qubits - k))


def chunk_size(n_qubits: int, first: int, like: Tensor) -> int:
    """Return how many tokens to work on at a time."""
    numbers = 3**first + n_qubits * 3 ** (n_qubits - first)
    budget: int = CACHE_BYTES if like.device.type == "cpu" else ACCELERATOR_BYTES
    most = 16_384 if like.device.type == "cpu" else 2**20
    tokens = int(budget // (numbers * like.element_size()))
    return max(64, min(tokens // 64 * 64, most))


class Chunks:
    """Buffers for the products of (1, cos, sin) of one chunk of tokens, batch last.

    They are allocated once for all chunks: fresh memory would cost more than the arithmetic.
    """

    def __init__(
        self, angles: Float[Tensor, "tokens n"], first: int, basis: Tensor | None = None
    ) -> None:
        self.tokens, self.n = angles.shape
        self.first, self.last = first, self.n - first
        self.size = min(chunk_size(self.n, first, angles), max(self.tokens, 1))
        if basis is None:
            basis = angles.new_empty(self.n, 3, self.tokens)
            basis[:, 0] = 1.0
            basis[:, 1] = angles.T
            torch.sin(basis[:, 1], out=basis[:, 2])
            basis[:, 1].cos_()
        self.basis = basis
        rows = self.n * 3**self.last
        self.partial = angles.new_empty(rows, self.size)
        self.first_buffer = angles.new_empty(3**first, self.size)
        self.last_buffer = angles.new_empty(3**self.last, self.size)
        self.gradient = angles.new_empty(3**first, self.size)
        self.scratch = angles.new_empty(max(rows, 2 * 3 ** (first - 1)), self.size)

    def __iter__(self) -> Iterator[tuple[slice, int]]:
        """Yield each chunk's tokens and their number."""
        for begin in range(0, self.tokens, self.size):
            part = slice(begin, min(begin + self.size, self.tokens))
            yield part, part.stop - begin

    def products(self, qubits: range, part: slice, buffer: Tensor) -> Tensor:
        """Return the products over `qubits`, `[3^k, tokens]`; the first is the slowest digit.

        The products over the last j of the qubits are the first 3^j rows.
        """
        out = buffer[: 3 ** len(qubits), : part.stop - part.start]
        out[0] = 1.0
        size = 1
        for q in reversed(qubits):
            factors = self.basis[q, 1:, None, part], out[None, :size]
            torch.mul(*factors, out=out[size : 3 * size].view(2, size, -1))
            size *= 3
        return out


class _Contract(torch.autograd.Function):
    """`z[i] = F1^T C_i F2` for every token, with its derivatives in the angles and the table."""

    @staticmethod
    def forward(ctx: Any, angles: Tensor, table: Tensor, first: int) -> Tensor:
        work = Chunks(angles, first)
        n, last = work.n, work.last
        ctx.first = first
        z = angles.new_empty(n, work.tokens)
        slopes = angles.new_empty(last, n, work.tokens) if ctx.needs_input_grad[0] else None
        for part, size in work:
            f1 = work.products(range(first), part, work.first_buffer)
            partial = torch.mm(table, f1, out=work.partial[:, :size]).view(n, -1, size)
            if slopes is None:
                f2 = work.products(range(first, n), part, work.last_buffer)
                scratch = work.scratch[: n * 3**last, :size].view_as(partial)
                torch.sum(torch.mul(partial, f2, out=scratch), 1, out=z[:, part])
            else:
                z[:, part] = _slopes(work, partial, part, slopes[..., part])
        ctx.save_for_backward(angles, table, slopes, work.basis)
        transposed: Tensor = z.T  # not copied: what follows is most often a matrix product
        return transposed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        if torch.is_grad_enabled():
            raise QuantumError(
                "the engines have no second derivatives: do without create_graph=True"
            )
        angles, table, slopes, basis = ctx.saved_tensors
        for_angles, for_table, _ = ctx.needs_input_grad
        work = Chunks(angles, ctx.first, basis)
        n, first = work.n, work.first
        weights = grad.T.contiguous()
        pulled = torch.empty_like(weights) if for_angles else None
        grad_table = torch.zeros_like(table) if for_table else None
        for part, size in work:
            f1 = work.products(range(first), part, work.first_buffer)
            f2 = work.products(range(first, n), part, work.last_buffer)
            outer = work.partial[:, :size]
            torch.mul(weights[:, None, part], f2, out=outer.view(n, -1, size))
            if grad_table is not None:
                grad_table.addmm_(outer, f1.T)
            if pulled is not None:
                torch.sum(slopes[..., part] * weights[:, part], 1, out=pulled[first:, part])
                gradient = torch.mm(table.T, outer, out=work.gradient[:, :size])
                _pull_back(work, gradient, f1, part, pulled[:first, part])
        return None if pulled is None else pulled.T, grad_table, None


def _slopes(work: Chunks, partial: Tensor, part: slice, slopes: Tensor) -> Tensor:
    """Return `z = sum_t partial[:, t] * F2[t]` and write its derivatives in the last angles.

    They are taken here, where `partial` `[n, 3^last, tokens]` is at hand, so that it need not be
    kept for the backward pass: `slopes` `[last, n, tokens]` is far smaller.
    """
    n, _, size = partial.shape
    for k, q in enumerate(range(work.first, n)):
        axes = partial.view(n, 3, -1, size)  # axis 1 is qubit q, axis 2 the products after it
        own = axes[:, :, 0]
        if q < n - 1:
            later = work.products(range(q + 1, n), part, work.last_buffer)
            scratch = work.scratch[: axes[..., 0].numel(), :size].view_as(axes)
            own = torch.mul(axes, later, out=scratch).sum(2)
        cosine, sine = work.basis[q, 1, part], work.basis[q, 2, part]
        torch.mul(own[:, 2], cosine, out=slopes[k]).addcmul_(own[:, 1], sine, value=-1)
        partial = axes[:, 0].addcmul_(axes[:, 1], cosine).addcmul_(axes[:, 2], sine)
    return partial[:, 0]


def _pull_back(work: Chunks, gradient: Tensor, f1: Tensor, part: slice, pulled: Tensor) -> None:
    """Write the gradient in the first angles, `[first, tokens]`; uses up `gradient` of F1."""
    tokens = gradient.shape[-1]
    pairs = gradient.new_empty(work.first, 2, tokens)  # by cosine, by sine
    size = gradient.shape[0]
    for q in range(work.first):
        size //= 3
        blocks = gradient[: 3 * size].view(3, size, tokens)
        scratch = work.scratch[: 2 * size, :tokens].view(2, size, tokens)
        torch.sum(torch.mul(blocks[1:], f1[:size], out=scratch), 1, out=pairs[q])
        if size > 1:
            cosine, sine = work.basis[q, 1, part], work.basis[q, 2, part]
            gradient = blocks[0].addcmul_(blocks[1], cosine).addcmul_(blocks[2], sine)
    basis = work.basis[: work.first, :, part]
    torch.mul(pairs[:, 1], basis[:, 1], out=pulled).addcmul_(pairs[:, 0], basis[:, 2], value=-1)
