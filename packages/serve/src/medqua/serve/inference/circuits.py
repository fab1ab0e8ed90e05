"""The circuits of a study's own tokens, exact and on a CUDA-Q target in a process of its own.

told = CircuitLab().compare(layer, "ionq-emulated", shots=1000, tokens=6)
told.worst                                    # largest deviation, in standard errors
"""

import asyncio
import threading
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medqua.core.errors import ConfigError, QuantumError
from medqua.core.quantum.runtime.reference import exact_values
from medqua.core.quantum.runtime.sampling import Circuit, expectations
from medqua.core.quantum.runtime.targets import TARGETS, Target, find
from medqua.core.quantum.runtime.worker import Worker

if TYPE_CHECKING:  # torch, transformers and PEFT, which listing the targets does without
    from matplotlib.figure import Figure

    from medqua.serve.inference.explain import LayerRoutes

LIMIT_SECONDS = 120.0
"""Seconds after which a target's answer is waited for no longer."""

NO_CIRCUIT = "this adapter has a classical stand-in in the place of a circuit"

MOST_TOKENS = 16
"""Tokens of one comparison."""

MOST_SHOTS = 100_000
"""Measurements of a circuit."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Expectation values of some tokens, exact and as a target gives them."""

    target: str
    """The CUDA-Q target."""
    shots: int | None
    """Measurements of each circuit; None where the target answers expectation values."""
    noise: float
    """Probability of a depolarising error after each CNOT; 0 without noise."""
    depth: tuple[int, ...]
    """Circuit layers of each token."""
    exact: npt.NDArray[np.float64]
    """<Z_i> without noise by a statevector sweep of our own, `[tokens, n_qubits]`."""
    values: npt.NDArray[np.float64]
    """What the target gives."""
    errors: npt.NDArray[np.float64]
    """Standard error of each value; 0 where the target answers expectation values."""
    seconds: float
    """Seconds on the target, compilation included."""

    @property
    def deviation(self) -> float:
        """Largest deviation from exact."""
        return float(np.abs(self.values - self.exact).max())

    @property
    def worst(self) -> float | None:
        """The largest deviation in standard errors; None where there are none."""
        if not self.errors.all():
            return None
        return float((np.abs(self.values - self.exact) / self.errors).max())


def offered() -> list[Target]:
    """Return the targets that may be chosen: those that run here, without a GPU and for free.

    Known from a table: CUDA-Q is imported in the other process alone.
    """
    return [t for t in TARGETS.values() if not (t.remote or t.gpu or t.unusable)]


class CircuitLab:
    """Runs comparisons one after another, each in a process that is killed when it takes too long.

    Safe to share between threads, which then take turns.
    """

    def __init__(self, limit: float = LIMIT_SECONDS) -> None:
        """Args: limit: Seconds to wait for a target."""
        self._limit = limit
        self._turn = threading.Lock()

    def compare(
        self,
        layer: "LayerRoutes",
        target: str,
        *,
        shots: int = 1000,
        tokens: int = 6,
        noise: float = 0.0,
        seed: int = 0,
    ) -> Comparison:
        """Evaluate the circuits of a layer's first routed tokens.

        Args:
            layer: What an adapter did with an image.
            target: Name of a target of `offered`.
            shots: Measurements of each circuit; without effect on a target that answers expectation
                values.
            tokens: How many tokens, row by row.
            noise: Probability of a depolarising error after each CNOT, on a target that has noise.
            seed: Seed of the measurements.

        Raises:
            ConfigError: Numbers out of range, a target that is not offered, no circuit or no token.
            QuantumError: The target fails, or does not answer in time.
        """
        where = find(target)
        if where.name not in [known.name for known in offered()]:
            raise ConfigError(f"target {where.name!r} is not offered here: choose one of the list")
        if not (1 <= tokens <= MOST_TOKENS and 1 <= shots <= MOST_SHOTS and 0 <= noise <= 1):
            raise ConfigError(
                f"{tokens} tokens, {shots} shots, noise {noise}: needed 1 to {MOST_TOKENS} tokens, "
                f"1 to {MOST_SHOTS:,} shots and a probability"
            )
        if noise and not where.noise:
            noisy = " or ".join(known.name for known in offered() if known.noise)
            raise ConfigError(f"{where.name} ignores noise: choose {noisy}, or noise 0")
        circuits = circuits_of(layer, tokens)
        with self._turn:
            answer = asyncio.run(self._ask(where, circuits, shots, noise, seed))
        exact = np.array([exact_values(circuit) for circuit in circuits])
        if where.exact:
            values, errors = np.array(answer["values"]), np.zeros_like(exact)
        else:
            pairs = [expectations(counts, exact.shape[1]) for counts in answer["counts"]]
            values, errors = (np.array(column) for column in zip(*pairs, strict=True))
        return Comparison(
            where.label,
            None if where.exact else shots,
            noise,
            tuple(circuit.depth for circuit in circuits),
            exact,
            values,
            errors,
            float(sum(answer["seconds"])),
        )

    async def _ask(
        self, where: Target, circuits: list[Circuit], shots: int, noise: float, seed: int
    ) -> dict[str, Any]:
        worker = Worker()
        try:
            answer: dict[str, Any] = await worker.ask(
                "probe",
                self._limit,
                target=where.label,
                circuits=[asdict(circuit) for circuit in circuits],
                shots=None if where.exact else shots,
                seed=seed,
                noise={"two_qubit": noise} if noise else None,
            )
        except TimeoutError:
            raise QuantumError(
                f"{where.label} gave no answer within {self._limit:.0f} s: ask for fewer tokens or "
                "shots"
            ) from None
        finally:
            await worker.close()
        return answer


def drawing(layer: "LayerRoutes") -> "Figure":
    """Draw a layer's circuit at its full depth, with its trained angles, as a matplotlib figure.

    Raises:
        ConfigError: The adapter has no circuit, or matplotlib is absent.
    """
    if layer.ansatz is None:
        raise ConfigError(NO_CIRCUIT)
    from medqua.core.quantum.draw import figure

    return figure(layer.ansatz, theta=layer.theta)


def circuits_of(layer: "LayerRoutes", tokens: int) -> list[Circuit]:
    """Return the circuits of a layer's first routed tokens, with every number bound.

    Raises:
        ConfigError: The adapter has no circuit, or routed no token of the image.
    """
    if layer.ansatz is None:
        raise ConfigError(NO_CIRCUIT)
    if not len(layer.angles):
        raise ConfigError("this adapter routed no token of this image: choose another")
    theta = tuple(layer.theta.ravel().astype(float).tolist())
    depths = layer.depth[layer.routed].tolist()
    angles = layer.angles.astype(float).tolist()
    return [
        Circuit(layer.ansatz, tuple(phi), theta, int(depth))
        for phi, depth in list(zip(angles, depths, strict=True))[:tokens]
    ]
