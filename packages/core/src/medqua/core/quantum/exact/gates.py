"""The exact engine that sweeps every token's state through the circuit, for 12 to 20 qubits.

With RZ(c) RY(b) RX(a) = RZ(c + alpha) RY(beta) RZ(gamma) a layer is diagonal but for one real
rotation of each qubit. The rotations of a few qubits are multiplied out to one small matrix; the
phases of a layer, its CNOTs and the phases of the next are one gather and one product. Encoding
and first layer turn zero states into another product state, made directly.

The backward pass runs the circuit in reverse, on the state and on its gradient side by side: it
keeps nothing of the layers between. The derivative in an angle of a rotation about P is
`Im <gradient| P' |state>`, P' the axis P carried to where state and gradient are compared.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from medqua.core.errors import QuantumError
from medqua.core.quantum.ansatz import Ansatz
from medqua.core.quantum.exact.dense import rotations_to_unitary
from medqua.core.quantum.exact.pauli import kron

GROUP = 5
"""Most qubits whose rotations are multiplied out."""

KEEP_BYTES = 256_000_000
"""States up to this size are kept for the backward pass; more are worked out again."""

CACHE_BYTES = 8_000_000
"""Size of the buffers of one chunk on a CPU: larger than the second-level cache, since a chunk is
some hundred operations."""

ACCELERATOR_BYTES = 1_000_000_000
"""Size of the buffers of one chunk elsewhere."""

FEWEST = 8
"""Tokens of a chunk even where their states exceed the cache."""

PAULIS = (((0, 1), (1, 0)), ((0, -1j), (1j, 0)), ((1, 0), (0, -1)))
"""X, Y, Z."""


class GatesEngine:
    """Statevectors of all tokens at once; nothing is made ahead but small matrices and phases."""

    def __init__(self, ansatz: Ansatz) -> None:
        n = ansatz.n_qubits
        self.ansatz = ansatz
        states = torch.arange(2**n)
        for control, target in reversed(ansatz.pairs):
            states = states ^ (states >> (n - 1 - control) & 1) << (n - 1 - target)
        self.source = states  # entangled[s] = before[source[s]]
        self.inverse = torch.argsort(states)
        bits = torch.arange(2**n) >> torch.arange(n - 1, -1, -1)[:, None] & 1
        self.signs = (1 - 2 * bits).to(torch.int8)  # [n, 2^n]: Z_i in the computational basis
        count = -(-n // GROUP)
        sizes = [n // count + (k < n % count) for k in range(count)]
        self.groups = [range(sum(sizes[:k]), sum(sizes[: k + 1])) for k in range(count)]

    def compile(
        self, theta: Float[Tensor, "max_depth n_qubits 3"], depths: Sequence[int]
    ) -> "dict[int, GatesProgram]":
        """Return a program for each depth, sharing the layers before: see `Engine`."""
        device = theta.device
        self.source, self.inverse = self.source.to(device), self.inverse.to(device)
        self.signs = self.signs.to(device)
        with torch.no_grad():
            sweep = Sweep(self, theta.detach(), max(depths, default=0))
        return {d: GatesProgram(sweep, theta, d) for d in depths}


class GatesProgram:
    """The circuit of one depth with its parameters bound."""

    def __init__(self, sweep: "Sweep", theta: Tensor, depth: int) -> None:
        self._sweep = sweep
        self._theta = theta
        self._depth = depth

    def __call__(self, angles: Float[Tensor, "tokens n"]) -> Float[Tensor, "tokens n"]:
        """Return <Z_i>: see `Program`."""
        if self._depth == 0:
            return angles.cos()
        result: Tensor = _Expectation.apply(  # type: ignore[no-untyped-call]
            angles, self._theta, self._sweep, self._depth
        )
        return result


class Sweep:
    """The layers with their parameters bound, shared by the circuits of every depth."""

    def __init__(self, engine: GatesEngine, theta: Tensor, deepest: int) -> None:
        self.engine = engine
        self.complex = theta.dtype.to_complex()
        self.readout = engine.signs[:, engine.inverse].to(theta)  # before the last entangler
        angles = theta[:deepest].double()
        bare = torch.cat((angles[..., :2], torch.zeros_like(angles[..., 2:])), -1)
        self.unitaries = rotations_to_unitary(bare)  # RY(b) RX(a), [layers, n, 2, 2]
        top, low = self.unitaries[..., 0].unbind(-1)  # = RZ(alpha) RY(beta) RZ(gamma)
        alpha, gamma = low.angle() - top.angle(), -low.angle() - top.angle()
        cosine, sine = top.abs(), low.abs()  # of beta / 2
        turns = torch.stack((cosine, -sine, sine, cosine), -1).view(*sine.shape, 2, 2)
        self.rotations = [
            [kron(turn[group.start : group.stop].unbind()).to(theta) for group in engine.groups]
            for turn in turns
        ]
        self.reverses = [[turn.mT.contiguous() for turn in layer] for layer in self.rotations]
        # the first layer is applied to the zero states as a whole, only its RZ remains
        late = angles[..., 2] + torch.cat((torch.zeros_like(alpha[:1]), alpha[1:]))
        self.before, self.after = (rz_phases(angle) for angle in (late, gamma))
        # the axes of RX, RY and RZ, carried to where state and gradient are compared: after
        # RY(b) RX(a) in the first layer, before RY(beta) in the others
        paulis = torch.tensor(PAULIS).to(self.unitaries)
        axes = paulis.expand(*angles.shape, 2, 2).clone()
        axes[..., 0, :, :] = self.unitaries @ paulis[0] @ self.unitaries.mH
        back = (rz_phases(alpha) * turns)[1:, :, None]
        axes[1:] = back.mH @ axes[1:] @ back
        self.axes = axes  # [layers, n, 3, 2, 2]

    def phases(self, layer: int) -> Complex[Tensor, "states 1"]:
        """Return the RZ on both sides of the entangler before `layer`; made anew, never kept."""
        before = product(self.before[layer - 1])[self.engine.source]
        return (before * product(self.after[layer])).to(self.complex)

    def start(self, angles: Float[Tensor, "tokens n"]) -> Complex[Tensor, "2 n 2 tokens"]:
        """Return each qubit's state after the first layer's RY RX and, of it, the slope in phi."""
        turned = (angles / 2).T
        cosine, sine = turned.cos(), turned.sin()
        bases = torch.stack((torch.stack((cosine, sine), 1), torch.stack((-sine, cosine), 1)))
        first = self.unitaries[0]
        if self.engine.ansatz.encoding == "rx":  # RX(phi) on the zero state is (cos, -i sin)
            first = first * torch.tensor((1, -1j), device=first.device)
        left, right = first.to(self.complex)[..., None].unbind(2)
        return left * bases[:, :, :1] + right * bases[:, :, 1:]

    def forward(self, work: "Work", angles: Float[Tensor, "tokens n"], depth: int) -> Tensor:
        """Return the states before the last entangler, `[1, 2^n, tokens]`."""
        states = work.take(1, len(angles))
        front, back = halves(self.start(angles)[0])
        torch.mul(front[:, None], back, out=states.view(len(front), len(back), -1))
        for layer in range(1, depth):
            states = work.gather(states, self.engine.source).mul_(self.phases(layer))
            states = work.rotate(states, self.rotations[layer])
        return states

    def backward(
        self,
        work: "Work",
        states: Complex[Tensor, "1 states tokens"],
        angles: Float[Tensor, "tokens n"],
        weights: Float[Tensor, "n tokens"],
        sums: "Crosses",
    ) -> Float[Tensor, "tokens n"]:
        """Return the gradient in the angles, and add to `sums` what that in theta is made of.

        Args:
            work: Buffers.
            states: What `forward` returned for the same angles.
            angles: phi (radian).
            weights: Gradient in <Z_i>.
            sums: State and gradient of each layer, compared.
        """
        both = work.take(2, len(angles))  # states and the conjugates of their gradients
        both[0] = states[0]
        torch.mul(states[0].conj(), self.readout.T @ weights, out=both[1])
        for layer in range(len(sums.groups), 0, -1):
            both = work.rotate(both, self.reverses[layer])
            sums.add(layer, *both)
            phases = self.phases(layer)
            both *= torch.stack((phases.conj(), phases))
            both = work.gather(both, self.engine.inverse)
        start, slope = self.start(angles)
        front, back = halves(start)
        gradient = both[1].view(len(front), len(back), -1)
        scratch = work.other(both)[0].view_as(gradient)
        of_front = torch.mul(gradient, back, out=scratch).sum(1)
        of_back = torch.mul(gradient, front[:, None], out=scratch).sum(0)
        cut = len(start) // 2
        pulled = torch.cat((pull_back(of_front, start[:cut]), pull_back(of_back, start[cut:])))
        sums.first += start @ pulled.mT
        in_angles: Tensor = (pulled * slope).real.sum(1).T
        return in_angles

    def gradient(self, sums: "Crosses", like: Float[Tensor, "max_depth n 3"]) -> Tensor:
        """Return the gradient in theta, `like` in shape; dead parameters have 0."""
        depth = len(sums.groups) + 1
        result = torch.zeros_like(like)
        crosses = sums.each_qubit()
        result[:depth] = torch.einsum("lqkji,lqij->lqk", self.axes[:depth], crosses).imag
        result[depth - 1, :, 2] = 0.0
        return result


class Crosses:
    """`sum conj(gradient[.. j ..]) state[.. i ..]` as matrices `[i, j]`, over tokens and the rest.

    `Im <gradient| P |state>` is the imaginary part of the trace of P times such a matrix.
    """

    def __init__(self, sweep: Sweep, depth: int) -> None:
        self._ranges = sweep.engine.groups
        self.first = sweep.unitaries.new_zeros(sweep.engine.ansatz.n_qubits, 2, 2)
        self.groups = [
            [sweep.unitaries.new_zeros(2 ** len(group), 2 ** len(group)) for group in self._ranges]
            for _ in range(1, depth)
        ]

    def add(self, layer: int, state: Tensor, gradient: Tensor) -> None:
        """Add the states and conjugate gradients of a chunk, `[2^n, tokens]`."""
        for group, total in zip(self._ranges, self.groups[layer - 1], strict=True):
            shape = (2**group.start, 2 ** len(group), -1)
            total += torch.bmm(state.view(shape), gradient.view(shape).mT).sum(0)

    def each_qubit(self) -> Complex[Tensor, "depth n 2 2"]:
        """Return the matrices of single qubits."""
        layers = [self.first]
        for groups in self.groups:
            rows = []
            for total in groups:
                size = len(total)
                for q in range(size.bit_length() - 1):
                    axes = (2**q, 2, size >> q + 1)
                    rows.append(torch.einsum("aibajb->ij", total.view(*axes, *axes)))
            layers.append(torch.stack(rows))
        return torch.stack(layers)


class Work:
    """Buffers for one chunk of tokens, batch last; allocated once for all chunks."""

    def __init__(self, sweep: Sweep, tokens: int, device: torch.device, states: int = 2) -> None:
        self.groups, self.rows = sweep.engine.groups, len(sweep.engine.source)
        budget = CACHE_BYTES if device.type == "cpu" else ACCELERATOR_BYTES
        each = 2 * 2 * self.rows * sweep.complex.itemsize  # one size, forward and backward
        self.size = max(1, min(max(FEWEST, budget // each // 8 * 8), tokens))
        length = states * self.rows * self.size
        self.buffers = torch.empty(2, length, dtype=sweep.complex, device=device)
        self.used = 0

    def chunks(self, tokens: int) -> Iterator[slice]:
        """Yield each chunk's tokens."""
        for begin in range(0, tokens, self.size):
            yield slice(begin, min(begin + self.size, tokens))

    def take(self, states: int, tokens: int) -> Complex[Tensor, "m states tokens"]:
        """Return the buffer that is not in use, as `states` states of so many tokens."""
        self.used ^= 1
        length = states * self.rows * tokens
        return self.buffers[self.used][:length].view(states, self.rows, tokens)

    def other(self, states: Tensor) -> Tensor:
        """Return the buffer that is not in use, in the shape of `states`."""
        return self.take(states.shape[0], states.shape[2])

    def gather(self, states: Tensor, source: Tensor) -> Tensor:
        """Permute the amplitudes."""
        return torch.index_select(states, 1, source, out=self.other(states))

    def rotate(self, states: Tensor, rotations: Sequence[Tensor]) -> Tensor:
        """Apply one real matrix to each group of qubits."""
        for group, matrix in zip(self.groups, rotations, strict=True):
            shape = (states.shape[0] * 2**group.start, len(matrix), -1)
            old, states = states, self.other(states)
            many = matrix.expand(shape[0], -1, -1)
            out = torch.view_as_real(states).view(shape)
            torch.bmm(many, torch.view_as_real(old).view(shape), out=out)
        return states


class _Expectation(torch.autograd.Function):
    """`<Z_i>` of every token, with derivatives in the angles and in theta."""

    @staticmethod
    def forward(ctx: Any, angles: Tensor, theta: Tensor, sweep: Sweep, depth: int) -> Tensor:
        tokens, n = angles.shape
        work = Work(sweep, tokens, angles.device, states=1)
        z = angles.new_empty(n, tokens)
        ctx.sweep, ctx.depth = sweep, depth
        keep = tokens * 2**n * sweep.complex.itemsize <= KEEP_BYTES and any(ctx.needs_input_grad)
        kept = []
        for part in work.chunks(tokens):
            states = sweep.forward(work, angles[part], depth)
            if keep:
                kept.append(states.clone())
            squares = torch.view_as_real(states).square().view(2**n, -1)
            z[:, part] = (sweep.readout @ squares).view(n, -1, 2).sum(-1)
        ctx.save_for_backward(angles, theta, *kept)
        return z.T.contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        if torch.is_grad_enabled():
            raise QuantumError(
                "the engines have no second derivatives: do without create_graph=True"
            )
        angles, theta, *kept = ctx.saved_tensors
        sweep: Sweep = ctx.sweep
        work = Work(sweep, len(angles), angles.device)
        sums = Crosses(sweep, ctx.depth)
        weights = grad.T
        pulled = torch.empty_like(angles)
        for k, part in enumerate(work.chunks(len(angles))):
            states = kept[k] if kept else sweep.forward(work, angles[part], ctx.depth)
            pulled[part] = sweep.backward(work, states, angles[part], weights[:, part], sums)
        for_angles, for_theta, *_ = ctx.needs_input_grad
        grad_theta = sweep.gradient(sums, theta) if for_theta else None
        return pulled if for_angles else None, grad_theta, None, None


def rz_phases(angle: Float[Tensor, "*batch"]) -> Complex[Tensor, "*batch 2 1"]:
    """Return the diagonal of RZ."""
    phase = torch.polar(torch.ones_like(angle), -angle / 2)
    return torch.stack((phase, phase.conj()), -1)[..., None]


def product(vectors: Complex[Tensor, "n 2 tokens"]) -> Complex[Tensor, "states tokens"]:
    """Return the product state of single qubits, the first one the most significant."""
    result = vectors[0]
    for vector in vectors[1:]:
        result = (result[:, None] * vector).flatten(0, 1)
    return result


def halves(start: Complex[Tensor, "n 2 tokens"]) -> tuple[Tensor, Tensor]:
    """Return the product states of the first and of the last qubits."""
    cut = len(start) // 2
    return product(start[:cut]), product(start[cut:])


def pull_back(
    gradient: Complex[Tensor, "states tokens"], vectors: Complex[Tensor, "n 2 tokens"]
) -> Complex[Tensor, "n 2 tokens"]:
    """Return the conjugate gradient in single qubits' vectors from that in their product."""
    rows = []
    for q, vector in enumerate(vectors):
        gradient = gradient.view(2, -1, gradient.shape[1])
        last = q + 1 == len(vectors)
        later = gradient if last else gradient * product(vectors[q + 1 :])
        rows.append(later.sum(1))
        gradient = gradient[0] * vector[0] + gradient[1] * vector[1]
    return torch.stack(rows)
