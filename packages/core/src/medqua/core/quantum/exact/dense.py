"""The exact engine that makes one 2^n x 2^n unitary and applies it to every token's state.

An RY-encoded product state is real, so a token costs one real matrix product with the real and
imaginary parts of the unitary on top of each other, forward, and two backward, batch last.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from medqua.core.errors import QuantumError
from medqua.core.quantum.ansatz import Ansatz
from medqua.core.quantum.exact.pauli import Gather, kron

KEEP_BYTES = 256_000_000
"""Amplitudes up to this size are kept for the backward pass; more are worked out again."""


class DenseEngine:
    """One unitary for all tokens; its cost does not depend on depth once that is made."""

    def __init__(self, ansatz: Ansatz) -> None:
        n = ansatz.n_qubits
        self.ansatz = ansatz
        self._front = n - n // 2
        self._source = self._permutation()
        self._inverse = torch.argsort(self._source)
        bits = torch.arange(2**n) >> torch.arange(n - 1, -1, -1)[:, None] & 1
        self._signs = 1.0 - 2.0 * bits  # [n, 2^n]: Z_i in the computational basis

    def _permutation(self) -> Tensor:
        """Return where each amplitude after the entangler comes from.

        The products of one layer leave the order (front qubits, re/im, back qubits); amplitudes
        are wanted as (re/im, all qubits), entangled.
        """
        n, back = self.ansatz.n_qubits, self.ansatz.n_qubits - self._front
        states = torch.arange(2**n)
        for control, target in reversed(self.ansatz.pairs):
            states = states ^ (states >> (n - 1 - control) & 1) << (n - 1 - target)
        high, low = states >> back, states & 2**back - 1
        return torch.cat([(2 * high + part << back) + low for part in (0, 1)])

    def compile(
        self, theta: Float[Tensor, "max_depth n_qubits 3"], depths: Sequence[int]
    ) -> "dict[int, DenseProgram]":
        """Return a program for each depth, sharing the layers before: see `Engine`."""
        n, deepest = self.ansatz.n_qubits, max(depths, default=0)
        self._source = self._source.to(theta.device)
        self._inverse = self._inverse.to(theta.device)
        self._signs = self._signs.to(theta)
        # amplitudes of every basis state that goes in, (re/im, qubits): the columns of U
        columns = theta.new_zeros(2**n, 2, 2**n)
        columns[:, 0].fill_diagonal_(1.0)
        columns = columns.flatten(1)
        angles = theta[:deepest].double()
        ended = torch.cat((angles[..., :2], torch.zeros_like(angles[..., 2:])), -1)  # no dead RZ
        fronts, backs = self._layers(torch.stack((angles, ended)), theta.dtype)
        programs = {}
        if 0 in depths:
            programs[0] = DenseProgram(columns, self._signs)
        for layer in range(deepest):
            if layer + 1 in depths:
                last = self._advance(columns, fronts[1, layer], backs[1, layer])
                programs[layer + 1] = DenseProgram(last, self._signs)
            if layer + 1 < deepest:
                columns = self._advance(columns, fronts[0, layer], backs[0, layer])
        return programs

    def _layers(self, angles: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the rotations of the front and of the back qubits as real matrices.

        `angles` are `[2, layers, n, 3]`, whole layers and last ones.
        """
        gates = rotations_to_unitary(angles)
        if self.ansatz.encoding == "rx" and angles.shape[1]:
            # RX(phi) on the zero state is RZ(-pi/2) RY(phi) on it
            turn = rotations_to_unitary(angles.new_tensor((0.0, 0.0, -torch.pi / 2)))
            gates = torch.cat((gates[:, :1] @ turn, gates[:, 1:]), 1)
        front = kron(gates[:, :, : self._front].unbind(2))
        back = kron(gates[:, :, self._front :].unbind(2))
        return real_form(front, "outside").to(dtype), real_form(back, "inside").to(dtype)

    def _advance(self, columns: Tensor, front: Tensor, back: Tensor) -> Tensor:
        """Apply one layer to columns `[m, (re/im, qubits)]`."""
        m = columns.shape[0]
        columns = columns.reshape(m, front.shape[1], -1).mT @ front.mT  # [m, back, (re/im, front)]
        columns = columns.reshape(m, back.shape[1], -1).mT @ back.mT  # [m, front, (re/im, back)]
        moved: Tensor = Gather.apply(  # type: ignore[no-untyped-call]
            columns.reshape(m, -1), self._source, self._inverse
        )
        return moved


class DenseProgram:
    """The unitary of one depth (encoding excluded) with its readout."""

    def __init__(self, columns: Float[Tensor, "states parts"], signs: Tensor) -> None:
        self.columns = columns
        self._signs = signs

    @property
    def unitary(self) -> Complex[Tensor, "states states"]:
        """The unitary; for the encoding `rx`, with RZ(-pi/2) on every qubit before it."""
        real, imaginary = self.columns.T.reshape(2, *[self.columns.shape[0]] * 2)
        return torch.complex(real, imaginary)

    def __call__(self, angles: Float[Tensor, "tokens n"]) -> Float[Tensor, "tokens n"]:
        """Return <Z_i>: see `Program`."""
        result: Tensor = _Expectation.apply(  # type: ignore[no-untyped-call]
            angles, self.columns, self._signs
        )
        return result


class _Expectation(torch.autograd.Function):
    """`z = signs |U psi(phi)|^2` for every token, with derivatives in the angles and in U."""

    @staticmethod
    def forward(ctx: Any, angles: Tensor, columns: Tensor, signs: Tensor) -> Tensor:
        states = product_states(angles)[-1]
        amplitudes = columns.T @ states  # [(re/im, states), tokens]
        real, imaginary = amplitudes.view(2, -1, amplitudes.shape[1])
        probabilities = (real * real).addcmul_(imaginary, imaginary)
        keep = amplitudes.numel() * amplitudes.element_size() <= KEEP_BYTES
        ctx.save_for_backward(angles, columns, signs, amplitudes if keep else None)
        z: Tensor = (signs @ probabilities).T.contiguous()
        return z

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        if torch.is_grad_enabled():
            raise QuantumError(
                "the engines have no second derivatives: do without create_graph=True"
            )
        angles, columns, signs, amplitudes = ctx.saved_tensors
        stages = product_states(angles)
        if amplitudes is None:
            amplitudes = columns.T @ stages[-1]
        weights = (2.0 * signs.T) @ grad.T  # [states, tokens]
        weighted = amplitudes.view(2, *weights.shape) * weights
        weighted = weighted.view_as(amplitudes)
        for_angles, for_columns, _ = ctx.needs_input_grad
        grad_columns = stages[-1] @ weighted.T if for_columns else None
        grad_angles = pull_back(columns @ weighted, stages, angles) if for_angles else None
        return grad_angles, grad_columns, None


def product_states(angles: Float[Tensor, "tokens n"]) -> list[Tensor]:
    """Return the amplitudes of RY(phi) on the zero state, real, batch last.

    Entry k is of the last k + 1 qubits, `[2^(k+1), tokens]`.
    """
    turned = (angles / 2).T.contiguous()
    basis = torch.stack((turned.cos(), turned.sin()), 1)  # [n, 2, tokens]
    stages = [basis[-1]]
    for factor in basis[:-1].flip(0):
        stages.append((factor[:, None] * stages[-1]).flatten(0, 1))
    return stages


def pull_back(
    gradient: Float[Tensor, "states tokens"], stages: list[Tensor], angles: Tensor
) -> Float[Tensor, "tokens n"]:
    """Return the gradient in the angles from that in the amplitudes of the product state."""
    turned = (angles / 2).T
    cosine, sine = turned.cos(), turned.sin()
    rows = []
    for q, later in enumerate(reversed([None, *stages[:-1]])):
        halves = gradient.view(2, -1, gradient.shape[1])
        pair = halves[:, 0] if later is None else (halves * later).sum(1)
        rows.append(pair[1] * cosine[q] - pair[0] * sine[q])
        gradient = (halves[0] * cosine[q]).addcmul_(halves[1], sine[q])
    return torch.stack(rows, 1) / 2


def rotations_to_unitary(theta: Float[Tensor, "*batch 3"]) -> Complex[Tensor, "*batch 2 2"]:
    """Return RZ(c) RY(b) RX(a) of angles (a, b, c)."""
    (ca, cb, cc), (sa, sb, sc) = (theta / 2).cos().unbind(-1), (theta / 2).sin().unbind(-1)
    phase = torch.complex(cc, -sc)  # exp(-i c / 2)
    top = torch.complex(cb * ca, sb * sa) * phase, torch.complex(-sb * ca, -cb * sa) * phase
    low = torch.complex(sb * ca, -cb * sa), torch.complex(cb * ca, -sb * sa)
    low = low[0] * phase.conj(), low[1] * phase.conj()
    return torch.stack((torch.stack(top, -1), torch.stack(low, -1)), -2)


def real_form(matrix: Complex[Tensor, "*batch r c"], inner: str) -> Tensor:
    """Return a complex matrix as a real one of twice the size, `[..., 2 r, 2 c]`.

    Rows are (re/im, r). Columns are (re/im, c) if `inner` is `outside`, else (c, re/im).
    """
    rows = torch.stack((matrix.real, matrix.imag), -3)  # what a real column gives
    turned = torch.stack((-matrix.imag, matrix.real), -3)  # what an imaginary one gives
    axis = -2 if inner == "outside" else -1
    return torch.stack((rows, turned), axis).flatten(-2).flatten(-3, -2)
