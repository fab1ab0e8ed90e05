"""The state of the circuit, for many tokens or many parameters at once, by sweeping its layers.

The engines never hold it; what needs more of a state than its <Z_i> (bit strings, entanglement,
fidelities, a product of all Z) starts here. Differentiable by autograd.
"""

import torch
from jaxtyping import Complex, Float, Int64
from torch import Tensor

from medqua.core.quantum.ansatz import Ansatz
from medqua.core.quantum.exact.dense import rotations_to_unitary
from medqua.core.quantum.exact.pauli import GROUP, Gather, kron


def states(
    ansatz: Ansatz,
    theta: Float[Tensor, "*batch max_depth n_qubits 3"],
    angles: Float[Tensor, "tokens n_qubits"],
    depth: int,
) -> Complex[Tensor, "tokens strings"]:
    """Return the amplitudes of every bit string, `[tokens, 2^n]`, qubit 0 the most significant.

    Args:
        ansatz: The circuit.
        theta: Its parameters (radian), the same for all tokens or one set for each,
            `[tokens, max_depth, n_qubits, 3]`.
        angles: phi of every token (radian), in the dtype of `theta`.
        depth: Number of layers.

    Raises:
        ConfigError: `depth` is out of range.
    """
    ansatz.checked(depth)
    source = permutation(ansatz).to(angles.device)
    inverse = torch.argsort(source)
    amplitudes = _encoded(ansatz, angles)
    for layer in range(depth):
        turns = theta[..., layer, :, :]
        if layer == depth - 1:  # the dead RZ
            turns = torch.cat((turns[..., :2], torch.zeros_like(turns[..., 2:])), -1)
        amplitudes = _rotate(amplitudes, rotations_to_unitary(turns))
        if ansatz.pairs:
            amplitudes = Gather.apply(amplitudes, source, inverse)  # type: ignore[no-untyped-call]
    return amplitudes


def permutation(ansatz: Ansatz) -> Int64[Tensor, " strings"]:
    """Return from which bit string each amplitude comes through the CNOTs of one layer, `[2^n]`."""
    n = ansatz.n_qubits
    strings = torch.arange(2**n)
    for control, target in reversed(ansatz.pairs):
        strings = strings ^ (strings >> (n - 1 - control) & 1) << (n - 1 - target)
    return strings


def signs(n_qubits: int, like: Tensor) -> Float[Tensor, "n_qubits strings"]:
    """Return Z_i of every bit string, `[n, 2^n]`: 1 where qubit i is 0, else -1."""
    places = torch.arange(n_qubits - 1, -1, -1, device=like.device)
    bits = torch.arange(2**n_qubits, device=like.device) >> places[:, None] & 1
    return (1 - 2 * bits).to(like.dtype)


def _encoded(ansatz: Ansatz, angles: Tensor) -> Tensor:
    """Return the product state of the encoding, complex `[tokens, 2^n]`."""
    cosine, sine = (angles / 2).cos(), (angles / 2).sin()
    zero = torch.complex(cosine, torch.zeros_like(cosine))
    if ansatz.encoding == "rx":
        one = torch.complex(torch.zeros_like(sine), -sine)
    else:
        one = torch.complex(sine, torch.zeros_like(sine))
    factors = torch.stack((zero, one), -1)  # [tokens, n, 2]
    result = factors[:, 0]
    for q in range(1, ansatz.n_qubits):
        result = (result[:, :, None] * factors[:, q, None]).flatten(1)
    return result


def _rotate(amplitudes: Tensor, gates: Tensor) -> Tensor:
    """Apply `gates` `[..., n, 2, 2]`, one to each qubit.

    Each product moves its qubits to the end: after all of them the order is the first one again.
    """
    tokens = amplitudes.shape[0]
    for first in range(0, gates.shape[-3], GROUP):
        product = kron(gates[..., first : first + GROUP, :, :].unbind(-3))  # [..., 2^g, 2^g]
        blocks = amplitudes.reshape(tokens, product.shape[-1], -1)
        amplitudes = (blocks.mT @ product.mT).reshape(tokens, -1)
    return amplitudes
