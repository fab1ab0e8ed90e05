"""Finite shots: averages of measurements in the place of expectation values.

Two ways. `sample` draws every qubit by itself from its <Z_i>: cheap, for any engine and any noise,
and exact in each qubit's distribution. `sample_joint` draws whole bit strings, as a machine reads
all qubits of one shot together: the averages of different qubits are then correlated as they are
there. It needs the 2^n probabilities of every token, so it is for few qubits and no gate noise.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from medqua.core.errors import ConfigError, ShapeError
from medqua.core.quantum.ansatz import Ansatz
from medqua.core.quantum.noise import NoiseModel
from medqua.core.quantum.states import states

LARGEST_JOINT = 12
"""Most qubits of which bit strings are drawn."""

CHUNK_BYTES = 64_000_000
"""Size of the probabilities and uniform numbers that are held at a time."""


def sample(
    values: Float[Tensor, "tokens n"], shots: int, seed: int | None
) -> Float[Tensor, "tokens n"]:
    """Return averages of `shots` measurements of each <Z_i>, with the gradient of <Z_i>.

    A measurement is 1 with probability (1 + <Z_i>) / 2, else -1: the average is unbiased, with
    variance `(1 - <Z_i>^2) / shots`, and the gradient is that of its mean. Each qubit is drawn by
    itself, as if read in its own run: correlations among the qubits of a token are left out.

    Args:
        values: Exact expectation values.
        shots: Number of measurements of each.
        seed: Seed of a generator of its own; the global generator if None.
    """
    generator = None
    if seed is not None:
        generator = torch.Generator(values.device).manual_seed(seed)
    chance = ((1 + values.detach().double()) / 2).clamp(0, 1)
    ones = torch.binomial(torch.full_like(chance, shots), chance, generator=generator)
    return _straight(values, 2 * ones / shots - 1)


def sample_joint(
    values: Float[Tensor, "tokens n"],
    ansatz: Ansatz,
    theta: Float[Tensor, "max_depth n 3"],
    angles: Float[Tensor, "tokens n"],
    depth: int | Int64[Tensor, " tokens"],
    shots: int,
    seed: int | None,
    noise: NoiseModel | None = None,
) -> Float[Tensor, "tokens n"]:
    """Return averages over `shots` bit strings of each token, with the gradient of <Z_i>.

    The averages of two qubits covary by `(<Z_i Z_j> - <Z_i><Z_j>) / shots`; each by itself is
    distributed as in `sample`. On a CPU the draws of token k depend on the seed and on k alone,
    not on the tokens that follow.

    Args:
        values: Exact expectation values of the same circuit and noise: they carry the gradient.
        ansatz: The circuit.
        theta: Its parameters (radian).
        angles: phi of every token (radian).
        depth: Number of layers, one for all tokens or one each.
        shots: Number of bit strings of each token.
        seed: Seed of a generator of its own; the global generator if None.
        noise: Errors of the readout.

    Raises:
        ConfigError: More qubits than can be drawn together, or noise after gates.
    """
    generator = None
    if seed is not None:
        generator = torch.Generator(values.device).manual_seed(seed)
    averages = torch.empty_like(values, dtype=torch.float64)
    n = ansatz.n_qubits
    step = max(1, CHUNK_BYTES // (8 * (6 * 2**n + 4 * shots)))
    for begin in range(0, len(angles), step):
        part = slice(begin, begin + step)
        some = depth if isinstance(depth, int) else depth[part]
        joint = probabilities(ansatz, theta, angles[part], some, noise)
        averages[part] = expectations(bit_strings(joint, shots, generator), n)
    return _straight(values, averages)


@torch.no_grad()
def probabilities(
    ansatz: Ansatz,
    theta: Float[Tensor, "max_depth n 3"],
    angles: Float[Tensor, "tokens n"],
    depth: int | Int64[Tensor, " tokens"],
    noise: NoiseModel | None = None,
) -> Float[Tensor, "tokens strings"]:
    """Return the probability of every bit string, `[tokens, 2^n]`, float64, without gradient.

    String s has qubit 0 as its most significant bit.

    Args:
        ansatz: The circuit, of at most `LARGEST_JOINT` qubits.
        theta: Its parameters (radian).
        angles: phi of every token (radian).
        depth: Number of layers, one for all tokens or one each.
        noise: Errors of the readout, applied exactly; channels after gates are refused, since
            states are pure here.

    Raises:
        ConfigError: Too many qubits, or noise after gates.
    """
    n = ansatz.n_qubits
    refuse(ansatz, noise)
    theta, angles = theta.detach().double(), angles.detach().double()
    if isinstance(depth, int):
        depth = torch.full(angles.shape[:1], depth, device=angles.device)
    result = angles.new_empty(len(angles), 2**n)
    for d in sorted(set(depth.tolist())):
        here = (depth == d).nonzero()[:, 0]
        result[here] = states(ansatz, theta, angles[here], d).abs().square()
    if noise is None or noise.noiseless_readout:
        return result
    up, down = (
        torch.as_tensor(p, dtype=result.dtype, device=result.device).expand(n)
        for p in noise.readout
    )
    for q in range(n):  # P(read | state) of one qubit at a time
        axes = result.view(-1, 2**q, 2, 2 ** (n - q - 1))
        zero, one = axes[:, :, 0], axes[:, :, 1]
        mixed = ((1 - up[q]) * zero + down[q] * one, up[q] * zero + (1 - down[q]) * one)
        result = torch.stack(mixed, 2).flatten(1)
    return result


def bit_strings(
    joint: Float[Tensor, "tokens strings"], shots: int, generator: torch.Generator | None = None
) -> Int64[Tensor, "tokens shots"]:
    """Draw bit strings, as numbers whose most significant bit is qubit 0.

    Uniform numbers are used token by token, so that on a CPU a batch in pieces, one after the
    other from the same generator, draws what the whole batch does.

    Args:
        joint: Probabilities of the 2^n strings, from `probabilities`; rows are normalised.
        shots: Number of strings of each token.
        generator: Where random numbers come from; the global generator if None.

    Raises:
        ShapeError: A row that is no distribution.
    """
    cumulative = joint.double().cumsum(1)
    total = cumulative[:, -1:].contiguous()
    if (joint < 0).any() or not ((total > 0) & total.isfinite()).all():
        raise ShapeError("probabilities must be finite, not negative, and positive in sum")
    uniform = torch.rand(
        len(joint), shots, generator=generator, dtype=torch.float64, device=joint.device
    )
    # right=True: a string without probability is never drawn, not even at 0.0; and the product
    # may round up to the total, which stands past the last string that can be drawn
    drawn = torch.searchsorted(cumulative, uniform * total, right=True)
    last = torch.searchsorted(cumulative, total)
    return drawn.minimum(last)


def expectations(
    strings: Int64[Tensor, "tokens shots"], n_qubits: int
) -> Float[Tensor, "tokens n"]:
    """Return the average of +1 (read 0) and -1 (read 1) for each qubit, float64."""
    rows = [1 - 2 * (strings >> (n_qubits - 1 - q) & 1).double().mean(1) for q in range(n_qubits)]
    return torch.stack(rows, 1)


def refuse(ansatz: Ansatz, noise: NoiseModel | None) -> None:
    """Refuse a circuit or a noise model whose bit strings cannot be drawn.

    Raises:
        ConfigError: Too many qubits, or noise after gates.
    """
    if ansatz.n_qubits > LARGEST_JOINT:
        raise ConfigError(
            f"correlated shots are for up to {LARGEST_JOINT} qubits, not {ansatz.n_qubits}: draw "
            "each qubit by itself (correlated=False)"
        )
    if noise is not None and noise.channels:
        raise ConfigError(
            "correlated shots need a pure state, and the noise model has channels after gates: "
            "draw each qubit by itself (correlated=False), or keep its readout errors only"
        )


def _straight(values: Tensor, averages: Tensor) -> Tensor:
    """Return averages that pass their gradient straight to the exact values."""
    return values + (averages.to(values.dtype) - values).detach()
