"""What is measured of random circuits: derivatives, entanglement, fidelities, Fourier spectrum."""

import math

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from medqua.core.quantum.ansatz import Ansatz
from medqua.core.quantum.exact.table import HeisenbergTable
from medqua.core.quantum.states import signs, states
from medqua.core.quantum.study.theory import haar_bins

BINS = 75
"""Bins of the fidelity, as in Sim et al. 2019."""


def derivatives(
    ansatz: Ansatz,
    theta: Float[Tensor, "circuits max_depth n 3"],
    angles: Float[Tensor, "circuits n"],
    depth: int,
    generator: torch.Generator,
) -> tuple[dict[str, Float[Tensor, " circuits"]], Complex[Tensor, "circuits strings"]]:
    """Return the mean square of the derivatives in the middle layer's live angles, and the states.

    `local` is the mean over the n readouts Z_i, estimated without bias from one random sum
    `sum_i r_i <Z_i>`, r_i = +-1; `global` is for the product of all Z.

    Args:
        ansatz: The circuit.
        theta: Parameters of each circuit (radian).
        angles: phi of each circuit (radian).
        depth: Number of layers, at least 1.
        generator: Where the signs r come from.
    """
    n, middle = ansatz.n_qubits, (depth - 1) // 2
    live = 2 if middle == depth - 1 else 3  # the RZ of the last layer is dead
    turned = theta[:, middle].clone().requires_grad_()
    whole = torch.cat((theta[:, :middle], turned[:, None], theta[:, middle + 1 :]), 1)
    state = states(ansatz, whole, angles, depth)
    probabilities, z = state.abs().square(), signs(n, angles)
    random = torch.randint(0, 2, angles.shape, generator=generator).to(angles) * 2 - 1
    outputs = {
        "local": (probabilities @ z.T * random).sum() / math.sqrt(n),
        "global": (probabilities @ z.prod(0)).sum(),
    }
    result = {}
    for name, output in outputs.items():
        (gradient,) = torch.autograd.grad(output, turned, retain_graph=name == "local")
        result[name] = gradient[..., :live].square().mean((1, 2))
    return result, state.detach()


def meyer_wallach(state: Complex[Tensor, "circuits strings"]) -> Float[Tensor, " circuits"]:
    """Return the Meyer-Wallach entanglement, `2 (1 - mean over qubits of Tr rho_q^2)`.

    0 for product states, 1 where every qubit is maximally entangled with the others.

    Source: Meyer and Wallach 2002 (J. Math. Phys. 43, 4273), in the form of Brennen 2003.
    """
    circuits, n = state.shape[0], state.shape[1].bit_length() - 1
    purity = torch.zeros(circuits, dtype=state.real.dtype)
    for q in range(n):
        halves = state.reshape(circuits, 2**q, 2, -1).transpose(1, 2).flatten(2)
        reduced = halves @ halves.mH  # [circuits, 2, 2]
        purity += reduced.abs().square().sum((1, 2))
    return 2 * (1 - purity / n)


def fidelities(state: Complex[Tensor, "circuits strings"]) -> Float[Tensor, " pairs"]:
    """Return `|<psi|psi'>|^2` of every pair of different states."""
    overlap = (state.conj() @ state.T).abs().square()
    first, second = torch.triu_indices(len(overlap), len(overlap), offset=1)
    return overlap[first, second].clamp(0, 1)


def uniform_edges(bins: int = BINS) -> np.ndarray:
    """Return edges of bins of equal width, `[bins + 1]`, as in Sim et al. 2019."""
    return np.linspace(0, 1, bins + 1)


def haar_edges(n_qubits: int, bins: int = BINS) -> np.ndarray:
    """Return edges of bins that Haar-random states fill equally, `[bins + 1]`.

    In bins of equal width all but about `exp(-d / 75)` of the fidelities of many qubits fall in
    the first one, whatever the circuit; these bins tell circuits apart at every size.
    """
    return np.asarray(1 - (1 - np.linspace(0, 1, bins + 1)) ** (1 / (2**n_qubits - 1)))


def expressibility(values: Float[Tensor, " pairs"], n_qubits: int, edges: np.ndarray) -> float:
    """Return the Kullback-Leibler divergence (nat) of fidelities from those of Haar-random states.

    0 would be a circuit as random as Haar states; the larger, the less of the state space is
    reached evenly. A finite sample of Haar states does not give 0 either: compare with `floor`.

    Args:
        values: Fidelities of pairs of states.
        n_qubits: Number of qubits.
        edges: Of the bins, from 0 to 1.

    Source: Sim, Johnson and Aspuru-Guzik 2019 (Adv. Quantum Technol. 2, 1900070), Eq. 9.
    """
    counts, _ = np.histogram(values.double().numpy(), edges)
    share = counts / counts.sum()
    used = share > 0
    # (1 - F)^(d - 1) underflows in the last bins of many qubits: a floor keeps the divergence
    # finite, and an underestimate
    haar = np.maximum(haar_bins(edges, n_qubits)[used], np.finfo(float).tiny)
    return float((share[used] * np.log(share[used] / haar)).sum())


def haar_states(
    circuits: int, n_qubits: int, generator: torch.Generator, dtype: torch.dtype
) -> Complex[Tensor, "circuits strings"]:
    """Return Haar-random states, complex of the precision of `dtype`."""
    parts = torch.randn(2, circuits, 2**n_qubits, generator=generator, dtype=dtype)
    state = torch.complex(parts[0], parts[1])
    norm: Tensor = torch.linalg.vector_norm(state, dim=1, keepdim=True)
    return state / norm


@torch.no_grad()
def spectrum(
    ansatz: Ansatz, theta: Float[Tensor, "max_depth n 3"], depth: int
) -> Float[Tensor, " degrees"]:
    """Return the power of <Z_i> at each degree, the mean over i, `[n + 1]`.

    A term of degree k is a product of k cosines or sines of different angles; its mean square over
    uniform phi is `2^-k` times its coefficient squared, and different terms are orthogonal. The
    sum is the mean square of <Z_i> over phi.

    Args:
        ansatz: The circuit.
        theta: Its parameters (radian).
        depth: Number of layers.
    """
    n = ansatz.n_qubits
    table = HeisenbergTable(ansatz)(theta, depth, theta.dtype)
    terms = torch.arange(3**n)
    degree = torch.zeros_like(terms)
    for _ in range(n):
        degree, terms = degree + (terms % 3 > 0), terms // 3
    power = table.square().mean(0) * 0.5**degree
    return torch.zeros(n + 1, dtype=table.dtype).index_add(0, degree, power)
