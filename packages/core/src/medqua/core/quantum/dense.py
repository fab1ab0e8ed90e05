"""The exact engine that makes one 2^n x 2^n unitary and applies it to every token's state.

An RY-encoded product state is real, so the product with the complex unitary is two real ones.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from medqua.core.quantum.ansatz import Ansatz
from medqua.core.quantum.fourier import apply_each


class DenseEngine:
    """One unitary for all tokens; best for few tokens and for 9 to 11 qubits."""

    def __init__(self, ansatz: Ansatz) -> None:
        self.ansatz = ansatz
        self._source = entangler_source(ansatz)
        n = ansatz.n_qubits
        bits = torch.arange(2**n)[:, None] >> torch.arange(n - 1, -1, -1) & 1
        self._signs = 1.0 - 2.0 * bits  # [2^n, n]: Z_i in the computational basis

    def compile(
        self, theta: Float[Tensor, "max_depth n_qubits 3"], depths: Sequence[int]
    ) -> "dict[int, DenseProgram]":
        """Return a program for each depth, sharing the unitaries of the layers before: `Engine`."""
        n, dtype = self.ansatz.n_qubits, theta.dtype
        theta = theta.double()  # the unitary is small: rounding is left to the product with states
        prefix = torch.eye(2**n, dtype=torch.complex128, device=theta.device)
        if self.ansatz.encoding == "rx":  # RX(phi) on the zero state is RZ(-pi/2) RY(phi) on it
            turn = theta.new_tensor((0.0, 0.0, -torch.pi / 2)).expand(n, 3)
            prefix = apply_columns(rotations_to_unitary(turn), prefix)
        programs = {}
        for layer in range(max(depths, default=0)):
            if layer + 1 in depths:
                last = torch.cat((theta[layer, :, :2], torch.zeros_like(theta[layer, :, 2:])), 1)
                unitary = apply_columns(rotations_to_unitary(last), prefix)[
                    self._source.to(theta.device)
                ]
                programs[layer + 1] = DenseProgram(
                    unitary.to(dtype.to_complex()), self._signs.to(theta.device, dtype)
                )
            if layer + 1 < max(depths):
                prefix = apply_columns(rotations_to_unitary(theta[layer]), prefix)
                prefix = prefix[self._source.to(theta.device)]
        return programs


class DenseProgram:
    """The unitary of one depth (encoding excluded) with its readout."""

    def __init__(self, unitary: Tensor, signs: Tensor) -> None:
        self.unitary = unitary
        self._signs = signs

    def __call__(self, angles: Float[Tensor, "tokens n"]) -> Float[Tensor, "tokens n"]:
        """Return <Z_i>: see `Program`."""
        states = product_states(angles)
        real, imaginary = states @ self.unitary.real.T, states @ self.unitary.imag.T
        return (real.square() + imaginary.square()) @ self._signs


def product_states(angles: Float[Tensor, "tokens n"]) -> Float[Tensor, "tokens states"]:
    """Return the amplitudes of RY(phi) on the zero state, `[tokens, 2^n]`, real."""
    half = angles / 2
    basis = torch.stack((half.cos(), half.sin()), -1)  # [tokens, n, 2]
    result = basis[:, 0]
    for q in range(1, angles.shape[1]):
        result = (result[:, :, None] * basis[:, None, q]).flatten(1)
    return result


def rotations_to_unitary(theta: Float[Tensor, "n 3"]) -> Tensor:
    """Return RZ(c) RY(b) RX(a) of each qubit, complex `[n, 2, 2]`."""
    (ca, cb, cc), (sa, sb, sc) = (theta / 2).cos().unbind(-1), (theta / 2).sin().unbind(-1)
    phase = torch.complex(cc, -sc)  # exp(-i c / 2)
    top = torch.complex(cb * ca, sb * sa) * phase, torch.complex(-sb * ca, -cb * sa) * phase
    low = torch.complex(sb * ca, -cb * sa), torch.complex(cb * ca, -sb * sa)
    low = low[0] * phase.conj(), low[1] * phase.conj()
    return torch.stack((torch.stack(top, -1), torch.stack(low, -1)), -2)


def apply_columns(matrices: Tensor, columns: Tensor) -> Tensor:
    """Apply one 2 x 2 matrix to each qubit of every column of `columns` `[2^n, m]`."""
    return apply_each(matrices, columns.T.contiguous()).T.contiguous()


def entangler_source(ansatz: Ansatz) -> Tensor:
    """Return the permutation of one entangler on basis states: `new[s] = old[source[s]]`."""
    states = torch.arange(2**ansatz.n_qubits)
    for control, target in reversed(ansatz.pairs):
        control_bit = states >> (ansatz.n_qubits - 1 - control) & 1
        states = states ^ control_bit << (ansatz.n_qubits - 1 - target)
    return states
