"""One circuit, measured on a CUDA-Q target: counts of bit strings, and what follows from them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from medqua.core.errors import ConfigError, QuantumError
from medqua.core.quantum.ansatz import Ansatz
from medqua.core.quantum.runtime.targets import Target, check, select

Counts = Mapping[str, int]
"""Bit string -> how often it was read; the first character is qubit 0."""


@dataclass(frozen=True)
class Circuit:
    """The ansatz with every number bound: what is sent to a machine."""

    ansatz: Ansatz
    """The circuit."""

    phi: tuple[float, ...]
    """Angle of each qubit (radian)."""

    theta: tuple[float, ...]
    """Parameters (radian), `[max_depth, n, 3]` in C order."""

    depth: int
    """Number of layers."""

    whole: int = 0
    """Times that the circuit U is followed by its inverse and itself: `U (U^-1 U)^whole`."""

    each: int = 0
    """Times that every gate is followed by its inverse and itself."""

    def __post_init__(self) -> None:
        """Refuse what no machine should be asked."""
        n, needed = self.ansatz.n_qubits, math.prod(self.ansatz.theta_shape)
        if len(self.phi) != n or len(self.theta) != needed:
            raise ConfigError(
                f"a circuit has {len(self.phi)} angles and {len(self.theta)} parameters: the "
                f"ansatz needs {n} and {needed}"
            )
        if not all(map(math.isfinite, (*self.phi, *self.theta))):
            raise ConfigError("a circuit has NaN or infinity among its angles: nothing is sent")
        self.ansatz.checked(self.depth)
        if self.whole < 0 or self.each < 0 or (self.whole and self.each):
            raise ConfigError(
                f"folded {self.whole} times as a whole and {self.each} times gate by gate: "
                "choose one of both, at least 0"
            )

    @property
    def gates(self) -> int:
        """Number of gates that run, folds included."""
        once = len(self.ansatz.gates(self.depth))
        return once * (2 * max(self.whole, self.each) + 1)


def sample(
    target: Target, circuit: Circuit, shots: int, seed: int, noise_model: Any = None
) -> dict[str, int]:
    """Return the counts of `shots` measurements of one circuit, run in this process.

    CUDA-Q's emulators begin every call at the same point of the random stream of the last seed:
    without a seed of its own each circuit would be drawn with its neighbour's random numbers.

    Args:
        target: Where it runs.
        circuit: What runs.
        shots: Number of measurements.
        seed: Seed of this circuit; without effect on a machine.
        noise_model: Noise as `medqua.core.quantum.runtime.engine.measured_noise` makes it, on a
            target that has noise.

    Raises:
        QuantumError: The target cannot do it, or answers an error.
    """
    check(target, noisy=noise_model is not None, shots=shots)
    cudaq = select(target)
    cudaq.set_random_seed(seed)
    options = {} if noise_model is None else {"noise_model": noise_model}
    kernel, arguments = call(circuit, plain=noise_model is None)
    try:
        result = cudaq.sample(kernel, *arguments, shots_count=shots, **options)
    except RuntimeError as error:
        raise QuantumError(f"{target.label} answered an error: {error}") from error
    return dict(result.items())


def call(circuit: Circuit, plain: bool = True) -> tuple[Any, tuple[Any, ...]]:
    """Return the kernel and its arguments.

    Args:
        circuit: What runs.
        plain: Take the kernel without explicit measurement if nothing is folded.
    """
    from medqua.core.quantum.runtime import kernels

    arguments = (
        circuit.ansatz.n_qubits,
        list(circuit.phi),
        list(circuit.theta),
        circuit.depth,
        *kernels.codes(circuit.ansatz),
    )
    if plain and not circuit.whole and not circuit.each:
        return kernels.circuit, arguments
    return kernels.measured, (*arguments, circuit.whole, circuit.each)


def expectations(counts: Counts, n_qubits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return <Z_i> and its standard error, each float64 `[n_qubits]`.

    The error is `2 sqrt(p (1 - p) / shots)` with p = (ones + 1) / (shots + 2), so that it is not
    zero where every shot read the same.

    Args:
        counts: What was read.
        n_qubits: Number of qubits.

    Raises:
        QuantumError: No counts, or bit strings of another length.
    """
    if not counts or any(len(bits) != n_qubits or set(bits) - {"0", "1"} for bits in counts):
        raise QuantumError(
            f"the answer holds {len(counts)} kinds of bit string: needed at least one, of "
            f"{n_qubits} bits each"
        )
    shots = sum(counts.values())
    ones = np.zeros(n_qubits)
    for bits, count in counts.items():
        ones += count * np.array([bit == "1" for bit in bits])
    chance = (ones + 1) / (shots + 2)
    return 1 - 2 * ones / shots, 2 * np.sqrt(chance * (1 - chance) / shots)


def derived_seed(*parts: int) -> int:
    """Return a seed for CUDA-Q (32 bits, never 0) that depends on every part."""
    words = [word for part in parts for word in (abs(part) & 0xFFFFFFFF, abs(part) >> 32)]
    return int(np.random.SeedSequence(words).generate_state(1)[0]) | 1
