"""Observables in the Heisenberg picture, as real vectors over Pauli strings.

One qubit's Paulis are ordered I, Z, X, Y: the digit `2 x + z` of the symplectic bits (x, z), so
that a CNOT is bit arithmetic. An observable of n qubits is `4^n` real coefficients, qubit 0 the
most significant digit. A state encoded by RY(phi) has the Bloch coordinates (1, cos phi, sin phi,
0) in this order: what counts of an observable after the sweep is the first three digits.

A gate or channel that maps Bloch coordinates by `r' = T r` maps coefficients back by `o = T^T o'`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Inexact, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

GROUP = 3
"""Qubits whose matrices are multiplied out before they meet the observable: 64 x 64 is large
enough for a fast matrix product and small enough to cost little more arithmetic."""


def bloch_rotation(axis: str, angle: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch 4 4"]:
    """Return T of `exp(-i angle P / 2)`, P the Pauli of `axis` (`rx`, `ry` or `rz`)."""
    first, second = {"rx": (3, 1), "ry": (1, 2), "rz": (2, 3)}[axis]  # turns first into second
    matrix = torch.eye(4, dtype=angle.dtype, device=angle.device).repeat(*angle.shape, 1, 1)
    cosine, sine = angle.cos(), angle.sin()
    matrix[..., first, first] = cosine
    matrix[..., second, second] = cosine
    matrix[..., second, first] = sine
    matrix[..., first, second] = -sine
    return matrix


def carry(
    n_qubits: int, pairs: Sequence[tuple[int, int]], strings: Int64[np.ndarray, " strings"]
) -> tuple[Int64[np.ndarray, " strings"], Int64[np.ndarray, " strings"]]:
    """Carry Pauli strings through CNOTs: `CNOT P CNOT = sign * P'`, one after the other.

    Args:
        n_qubits: Number of qubits.
        pairs: (control, target) in the order in which the strings meet them: that of the circuit
            to go forward, the reverse to go backward.
        strings: Pauli strings as numbers in base 4.

    Returns:
        The new strings and their signs, 1 or -1.
    """
    odd = np.zeros_like(strings)
    for control, target in pairs:
        c, t = 2 * (n_qubits - 1 - control), 2 * (n_qubits - 1 - target)
        xc, zc = strings >> (c + 1) & 1, strings >> c & 1
        xt, zt = strings >> (t + 1) & 1, strings >> t & 1
        odd ^= xc & zt & (xt ^ zc ^ 1)
        strings = strings ^ xc << (t + 1) ^ zt << c
    return strings, 1 - 2 * odd


class Permutation:
    """CNOTs as a signed permutation of coefficients: `new[s] = sign[s] * old[source[s]]`.

    A string s before the CNOTs is what `source[s]` after them was.
    """

    def __init__(self, n_qubits: int, pairs: Sequence[tuple[int, int]]) -> None:
        source, sign = carry(n_qubits, pairs, np.arange(4**n_qubits))
        self.source = torch.from_numpy(source)
        self.sign = torch.from_numpy(sign).to(torch.int8)
        self.inverse = torch.empty_like(self.source)
        self.inverse[self.source] = torch.arange(4**n_qubits)
        self.trivial = not pairs

    def __call__(self, observables: Float[Tensor, "m strings"]) -> Float[Tensor, "m strings"]:
        """Carry observables from after the CNOTs to before them."""
        if self.trivial:
            return observables
        self._follow(observables)
        moved: Tensor = Gather.apply(  # type: ignore[no-untyped-call]
            observables, self.source, self.inverse, self.sign
        )
        return moved

    def back(self, observables: Float[Tensor, "m strings"]) -> Float[Tensor, "m strings"]:
        """Carry observables from before the CNOTs to after them, without a gradient."""
        if self.trivial:
            return observables
        self._follow(observables)
        moved = observables.index_select(1, self.inverse)
        return moved.mul_(self.sign.index_select(0, self.inverse))

    def _follow(self, observables: Tensor) -> None:
        """Move to where the observables are."""
        if self.source.device != observables.device:
            self.source = self.source.to(observables.device)
            self.inverse = self.inverse.to(observables.device)
            self.sign = self.sign.to(observables.device)


class Gather(torch.autograd.Function):
    """`x[:, source] * sign` for a permutation, whose gradient is a gather too and not a scatter."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, source: Tensor, inverse: Tensor, sign: Tensor | None = None
    ) -> Tensor:
        """Take the columns `source` of `x`; `inverse` is the inverse permutation."""
        ctx.save_for_backward(inverse, sign)
        moved = x.index_select(1, source)
        return moved if sign is None else moved.mul_(sign)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """Put them back."""
        inverse, sign = ctx.saved_tensors
        result = grad.index_select(1, inverse)
        if sign is not None:
            result *= sign.index_select(0, inverse)
        return result, None, None, None


def kron(matrices: Sequence[Tensor]) -> Tensor:
    """Return the Kronecker product over the last two axes of `[..., r, c]` matrices."""
    result = matrices[0]
    for matrix in matrices[1:]:
        result = (result[..., :, None, :, None] * matrix[..., None, :, None, :]).flatten(-2)
        result = result.flatten(-3, -2)
    return result


def apply_each(
    matrices: Inexact[Tensor, "n r c"], tensor: Inexact[Tensor, "m size"]
) -> Inexact[Tensor, "m result"]:
    """Multiply axis q of `tensor`, seen as `[m] + [c] * n`, by `matrices[q]`, for every q.

    Each product moves its axes to the end, so that the next ones are in front: after all of them
    the order is the first one again, and no copy was made but the products themselves.
    """
    m = tensor.shape[0]
    for first in range(0, matrices.shape[0], GROUP):
        product = kron(matrices[first : first + GROUP].unbind())  # [r^g, c^g]
        tensor = Turn.apply(  # type: ignore[no-untyped-call]
            tensor.view(m, product.shape[1], -1), product
        )
    return tensor.reshape(m, -1)


class Turn(torch.autograd.Function):
    """`tensor.mT @ matrix.mT` without the copies that transposes would cost, in the gradient too.

    Batched products take transposes as they are.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, matrix: Tensor) -> Tensor:
        """Return `[m, rest, r]` of `tensor` `[m, c, rest]` and `matrix` `[r, c]`."""
        ctx.save_for_backward(tensor, matrix)
        return torch.bmm(tensor.mT, matrix.mT.expand(len(tensor), -1, -1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of both."""
        tensor, matrix = ctx.saved_tensors
        for_tensor, for_matrix = ctx.needs_input_grad
        before = None
        if for_tensor:
            before = torch.bmm(matrix.mH.expand(len(tensor), -1, -1), grad.mT)
        return before, torch.bmm(grad.mT, tensor.mH).sum(0) if for_matrix else None


def apply_some(
    matrix: Float[Tensor, "size size"], qubits: Sequence[int], tensor: Float[Tensor, "m strings"]
) -> Float[Tensor, "m strings"]:
    """Multiply the axes `qubits` of `tensor`, seen as `[m] + [4] * n`, by one matrix."""
    m, n = tensor.shape[0], (tensor.shape[1].bit_length() - 1) // 2
    front = [1 + q for q in qubits]
    axes = tensor.reshape(m, *[4] * n).movedim(front, list(range(len(front))))
    result = matrix @ axes.reshape(matrix.shape[1], -1)
    return result.reshape(axes.shape).movedim(list(range(len(front))), front).reshape(m, -1)
