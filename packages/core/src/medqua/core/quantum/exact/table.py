"""The table of the circuit: coefficients of every <Z_i> in the products of (1, cos, sin).

Each Z_i is carried backward through the layers (`docs/bottleneck.md` derives it). Channels ride
along: those after rotations inside the rotations' 4 x 4 matrices, those after CNOTs as weights of
the Pauli strings where they are diagonal, else as matrices on three qubits at a time.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from medqua.core.quantum.ansatz import ROTATIONS, Ansatz
from medqua.core.quantum.exact.pauli import (
    GROUP,
    Permutation,
    apply_each,
    apply_some,
    bloch_rotation,
    carry,
    kron,
)
from medqua.core.quantum.exact.sweep import sweep
from medqua.core.quantum.noise import NoiseModel

KEPT = 4
"""Layers up to which every observable on the way is kept for the gradient. That takes a fifth less
time than to work them out again, which keeps memory from growing with more layers."""


class HeisenbergTable:
    """Builds the table for any parameters and depth of one circuit and noise model."""

    def __init__(self, ansatz: Ansatz, noise: NoiseModel | None = None) -> None:
        n = ansatz.n_qubits
        self.ansatz = ansatz
        self.noise = noise or NoiseModel()
        self._permutation = Permutation(n, ansatz.pairs)
        strings, _ = carry(n, ansatz.pairs[::-1], 4 ** np.arange(n - 1, -1, -1))
        self._strings = torch.from_numpy(strings)  # Z_i before the last entangler
        self._digits = self._strings[:, None] >> 2 * torch.arange(n - 1, -1, -1) & 3
        kinds = [channel.kind for channel in self.noise.after("cx")]
        self._leaks = "amplitude_damping" in kinds and bool(ansatz.pairs)
        self._seen: list[Tensor] = []  # for each CNOT the digits, as 4 c + t, that its noise meets
        if kinds and not self._leaks:
            strings = np.arange(4**n)
            for pair in ansatz.pairs:
                strings, _ = carry(n, (pair,), strings)
                control, target = (strings >> 2 * (n - 1 - q) & 3 for q in pair)
                self._seen.append(torch.from_numpy(4 * control + target))

    def __call__(
        self, theta: Float[Tensor, "max_depth n 3"], depth: int, dtype: torch.dtype
    ) -> Float[Tensor, "n terms"]:
        """Return C, `[n, 3^n]`, for the circuit with `depth` layers.

        Args:
            theta: Parameters; the small matrices are worked out in float64.
            depth: Number of layers, 0 included.
            dtype: Precision of the sweep and of the table.
        """
        n = self.ansatz.n_qubits
        theta = theta.double()
        encoding = self._encoding(theta)
        if depth == 0:
            own = torch.eye(n, dtype=torch.int64, device=theta.device)
            return self._read(product(encoding, own, dtype))
        layers = self._layers(theta, depth)
        layers[0] = layers[0] @ encoding
        noise = [self._pair_noise(k, theta) for k in range(len(self.ansatz.pairs))]
        maps = [layer.mT.to(dtype) for layer in layers]
        if self._leaks:
            blocks = [(matrix.to(dtype), qubits) for matrix, qubits in self._blocks(noise)]
            every = torch.eye(4, device=theta.device).repeat(n, 1, 1)
            observables = product(every, torch.eye(n).long(), dtype)
            for layer in reversed(range(depth)):
                for matrix, qubits in reversed(blocks):
                    observables = apply_some(matrix, qubits, observables)
                observables = apply_each(maps[layer], observables)
            return self._read(observables)
        weight = self._weight(noise, dtype)
        observables = product(layers[-1], self._digits, dtype)
        if weight is not None:
            observables = observables * weight[self._strings.to(theta.device), None]
        inner = depth - 1
        if depth > KEPT and not self.noise.channels:  # the layers between are orthogonal
            observables = sweep(observables, torch.stack(maps[1:-1]), self._permutation)
            inner = 1
        for layer in reversed(range(inner)):
            observables = self._permutation(observables)
            observables = observables if weight is None else observables * weight
            observables = apply_each(maps[layer], observables)
        return self._read(observables)

    def _encoding(self, theta: Tensor) -> Float[Tensor, "n 4 3"]:
        """Return the map from (1, cos phi, sin phi) to the coordinates after the encoding."""
        n = self.ansatz.n_qubits
        matrix = torch.eye(4, dtype=theta.dtype, device=theta.device)
        if self.ansatz.encoding == "rx":  # RX(phi) on the zero state is RZ(-pi/2) RY(phi) on it
            matrix = bloch_rotation("rz", theta.new_tensor(-torch.pi / 2))
        noise = self.noise.bloch(self.ansatz.encoding, n, theta)
        result = matrix[:, :3].expand(n, 4, 3)
        return result if noise is None else noise @ result

    def _layers(self, theta: Tensor, depth: int) -> list[Tensor]:
        """Return the rotations of each layer with their noise, `[n, 4, 4]` each."""
        after = {name: self.noise.bloch(name, self.ansatz.n_qubits, theta) for name in ROTATIONS}
        whole = torch.eye(4, dtype=theta.dtype, device=theta.device)
        whole = last = whole.expand(depth, theta.shape[1], 4, 4)
        for k, name in enumerate(ROTATIONS):
            if name == "rz":  # the last layer ends before it
                last, whole = whole[depth - 1], whole[: depth - 1]
            whole = bloch_rotation(name, theta[: len(whole), :, k]) @ whole
            noise = after[name]
            whole = whole if noise is None else noise @ whole
        return [*whole, last]

    def _pair_noise(self, k: int, like: Tensor) -> Tensor | None:
        """Return what follows CNOT k on (control, target): a diagonal `[16]` or a `[16, 16]`."""
        result = None
        n, pairs = self.ansatz.n_qubits, self.ansatz.pairs
        for channel in self.noise.after("cx"):
            if channel.depolarises:
                strength = channel.strengths(len(pairs), like)[k]
                damped = (1 - 16 * strength / 15).expand(15)
                matrix = torch.cat((damped.new_ones(1), damped)).diag()
            else:
                single = channel.bloch(channel.strengths(n, like))
                matrix = kron([single[q] for q in pairs[k]])
            result = matrix if result is None else matrix @ result
        return result

    def _weight(self, noise: list[Tensor | None], dtype: torch.dtype) -> Tensor | None:
        """Return by how much the noise inside the entangler scales each Pauli string."""
        weight = None
        for matrix, seen in zip(noise, self._seen, strict=False):
            if matrix is not None:
                factor = matrix.diagonal().to(dtype)[seen.to(matrix.device)]
                weight = factor if weight is None else weight * factor
        return weight

    def _blocks(self, noise: list[Tensor | None]) -> list[tuple[Tensor, tuple[int, ...]]]:
        """Return the noisy entangler as matrices on few qubits, in the order of the circuit."""
        blocks: list[tuple[Tensor, tuple[int, ...]]] = []
        strings, sign = carry(2, ((0, 1),), np.arange(16))
        for pair, matrix in zip(self.ansatz.pairs, noise, strict=True):
            assert matrix is not None
            backward = torch.zeros_like(matrix)
            backward[range(16), strings] = torch.from_numpy(sign).to(matrix)
            backward = backward @ matrix.mT  # noise follows the CNOT: it meets observables first
            qubits = tuple(dict.fromkeys((*(blocks[-1][1] if blocks else ()), *pair)))
            if blocks and len(qubits) <= GROUP:
                old, before = blocks.pop()
                size = 4 ** (len(qubits) - len(before))
                old = kron((old, torch.eye(size, dtype=old.dtype, device=old.device)))
            else:
                qubits = pair
                old = torch.eye(16, dtype=matrix.dtype, device=matrix.device)
            local = [qubits.index(q) for q in pair]
            blocks.append((apply_some(backward.mT, local, old), qubits))
        return blocks

    def _read(self, table: Tensor) -> Tensor:
        """Apply the errors of the readout."""
        if self.noise.noiseless_readout:
            return table
        scale, shift = self.noise.readout_affine(self.ansatz.n_qubits, table)
        constant = torch.zeros_like(table[:1])
        constant[0, 0] = 1.0
        return table * scale[:, None] + shift[:, None] * constant


def product(
    maps: Float[Tensor, "n 4 r"], digits: Tensor, dtype: torch.dtype
) -> Float[Tensor, "m terms"]:
    """Return what Pauli strings, by their `digits` `[m, n]`, become under a map on each qubit.

    The two halves of the qubits are multiplied out in the precision of `maps`, all in `dtype`.
    """
    n = maps.shape[0]
    rows = maps[torch.arange(n, device=maps.device), digits.to(maps.device)]
    halves = []
    for part in (rows[:, : n // 2], rows[:, n // 2 :]):
        result = part[:, 0]
        for factor in part[:, 1:].unbind(1):
            result = (result[:, :, None] * factor[:, None]).flatten(1)
        halves.append(result.to(dtype))
    return (halves[0][:, :, None] * halves[1][:, None]).flatten(1)
