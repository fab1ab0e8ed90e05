"""Finite shots: averages of measurements in the place of expectation values."""

import torch
from jaxtyping import Float
from torch import Tensor


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
    average = (2 * ones / shots - 1).to(values.dtype)
    return values + (average - values).detach()
