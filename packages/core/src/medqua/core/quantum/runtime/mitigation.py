"""Error mitigation: the readout's confusion undone, and noise extrapolated to zero.

    readout = calibrate(measure, ansatz)                  # two circuits
    values, errors = readout.correct(counts)
    estimate = extrapolate((1, 3, 5), values, errors)     # of folded circuits

`measure` takes circuits and returns their counts: a simulator, or a queue to a machine. Every
estimate comes with its standard error, which mitigation makes larger: it trades bias for variance.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medqua.core.errors import ConfigError, QuantumError
from medqua.core.quantum.ansatz import Ansatz
from medqua.core.quantum.noise import NoiseModel
from medqua.core.quantum.runtime.engine import measured_noise
from medqua.core.quantum.runtime.sampling import (
    Circuit,
    Counts,
    derived_seed,
    expectations,
    sample,
)
from medqua.core.quantum.runtime.targets import check, find

Measure = Callable[[Sequence[Circuit]], Sequence[Counts]]
"""What runs circuits and returns their counts, in order."""

METHODS = ("richardson", "linear", "quadratic", "exponential")


def on_simulator(
    target: str, shots: int, *, seed: int = 0, noise: NoiseModel | None = None
) -> Measure:
    """Return what measures circuits on a simulator in this process, with noise or without.

    Args:
        target: Name of the target.
        shots: Number of measurements of each circuit.
        seed: Seed; the k-th circuit of the same seed draws the same again.
        noise: Noise after gates and at the readout.

    Raises:
        QuantumError: The target is a machine, is absent, or ignores noise.
    """
    where, drawn = find(target), itertools.count()
    check(where, noisy=noise is not None, shots=shots)
    if where.remote:
        raise QuantumError(f"target {target!r} is a machine: measure through JobQueue.measure")

    def measure(circuits: Sequence[Circuit]) -> list[Counts]:
        models = [None if noise is None else measured_noise(noise, c.ansatz) for c in circuits]
        return [
            sample(where, circuit, shots, derived_seed(seed, next(drawn)), model)
            for circuit, model in zip(circuits, models, strict=True)
        ]

    return measure


@dataclass(frozen=True)
class Readout:
    """Misreading of each qubit by itself, as measured.

    A qubit that is 0 is read 1 with probability a, one that is 1 is read 0 with probability b, so
    that a readout of <Z> is `(1 - a - b) <Z> + b - a`.
    """

    up: np.ndarray
    """a of each qubit, float64 `[n]`."""

    down: np.ndarray
    """b of each qubit, float64 `[n]`."""

    shots: int
    """Measurements of each of the two calibration circuits."""

    def correct(self, counts: Counts) -> tuple[np.ndarray, np.ndarray]:
        """Return <Z_i> with the confusion inverted, and standard errors; float64 `[n]` each.

        The errors hold the shot noise of the counts and of the calibration, to first order. A
        value may lie outside [-1, 1]: clipping it would bias averages.
        """
        raw, error = expectations(counts, len(self.up))
        scale = 1 - self.up - self.down
        values = (raw - self.down + self.up) / scale
        # dz/da = (1 + z) / scale, dz/db = (z - 1) / scale
        of_up, of_down = (p * (1 - p) / self.shots for p in (self.up, self.down))
        variance = error**2 + of_up * (1 + values) ** 2 + of_down * (1 - values) ** 2
        return values, np.sqrt(variance) / scale


def calibrate(measure: Measure, ansatz: Ansatz) -> Readout:
    """Return the readout's errors, measured on all zeros and on all ones.

    The ones are made by the encoding's own rotation, by pi: its gate error is counted as readout
    error.

    Args:
        measure: What runs circuits.
        ansatz: The circuit whose qubits are calibrated.

    Raises:
        QuantumError: A qubit is read wrongly half of the time or more: there is no inverse.
    """
    n = ansatz.n_qubits
    theta = (0.0,) * int(np.prod(ansatz.theta_shape))
    zeros, ones = measure([Circuit(ansatz, (angle,) * n, theta, 0) for angle in (0.0, np.pi)])
    up = (1 - expectations(zeros, n)[0]) / 2
    down = (1 + expectations(ones, n)[0]) / 2
    worst = int(np.argmax(up + down))
    if up[worst] + down[worst] >= 1:
        raise QuantumError(
            f"qubit {worst} reads 1 for 0 with probability {up[worst]:.2f} and 0 for 1 with "
            f"{down[worst]:.2f}: its readout says nothing; leave it out"
        )
    return Readout(up, down, min(sum(zeros.values()), sum(ones.values())))


def folded(circuit: Circuit, scale: int, fold: str = "gates") -> Circuit:
    """Return a circuit that does the same with `scale` times the gates.

    A provider that optimises circuits may cancel what is folded: switch that off there.

    Args:
        circuit: The circuit.
        scale: 1, 3, 5, ...
        fold: `gates` (every gate G as G G^-1 G ...) or `circuit` (U U^-1 U ...).

    Raises:
        ConfigError: An even or negative scale, or a circuit that is folded already.
    """
    if fold not in ("gates", "circuit"):
        raise ConfigError(f"fold is {fold!r}: choose 'gates' or 'circuit'")
    if scale < 1 or scale % 2 == 0:
        raise ConfigError(f"scale is {scale}: folding gives 1, 3, 5, ...")
    if circuit.whole or circuit.each:
        raise ConfigError("the circuit is folded already: fold the original")
    times = (scale - 1) // 2
    return replace(circuit, each=times) if fold == "gates" else replace(circuit, whole=times)


@dataclass(frozen=True)
class Extrapolation:
    """Values at zero noise."""

    values: np.ndarray
    """<Z_i>, float64 `[n]`."""

    errors: np.ndarray
    """Standard errors from shot noise, float64 `[n]`; that the model is right is not in them."""

    method: str
    """How it was extrapolated."""


def extrapolate(
    scales: Sequence[int],
    values: np.ndarray,
    errors: np.ndarray,
    method: str = "linear",
) -> Extrapolation:
    """Return values extrapolated to zero noise by mitiq's inference.

    `richardson`, `linear` and `quadratic` are linear in the values, so their errors follow exactly.
    Those of `exponential` (to an asymptote of 0) follow to first order, by differences.

    Args:
        scales: Noise scales 1, 3, 5, ..., `k` of them.
        values: Values at each scale, float64 `[k, n]`.
        errors: Their standard errors, float64 `[k, n]`.
        method: `richardson`, `linear`, `quadratic` or `exponential`.

    Raises:
        ConfigError: An unknown method, too few scales, or shapes that do not belong together.
        QuantumError: mitiq is not installed, or cannot fit the values.
    """
    if method not in METHODS:
        raise ConfigError(f"method is {method!r}: choose one of {', '.join(METHODS)}")
    least = {"richardson": 2, "linear": 2, "quadratic": 3, "exponential": 2}[method]
    if len(set(scales)) != len(scales) or len(scales) < least:
        raise ConfigError(f"scales are {list(scales)}: {method} needs {least} different ones")
    if values.ndim != 2 or values.shape != errors.shape or len(values) != len(scales):
        raise ConfigError(
            f"values are {values.shape} and errors {errors.shape}: needed one row for each of the "
            f"{len(scales)} scales, alike"
        )
    fit = _fit(scales, method)
    if method == "exponential":
        result = np.array([fit(column) for column in values.T])
        variance = np.zeros(values.shape[1])
        for k in range(len(scales)):
            for q in range(values.shape[1]):
                step = max(errors[k, q], 1e-6)
                moved = values[:, q].copy()
                moved[k] += step
                variance[q] += ((fit(moved) - result[q]) / step * errors[k, q]) ** 2
        return Extrapolation(result, np.sqrt(variance), method)
    weights = np.array([fit(row) for row in np.eye(len(scales))])  # of each scale in the answer
    return Extrapolation(weights @ values, np.sqrt(weights**2 @ errors**2), method)


def _fit(scales: Sequence[int], method: str) -> Callable[[np.ndarray], float]:
    """Return mitiq's extrapolation to zero as a function of the values."""
    try:
        from mitiq.zne import inference  # type: ignore[import-untyped]
    except ImportError as error:
        raise QuantumError(
            f"extrapolation is mitiq's, which cannot be imported ({error}): "
            "install medqua-core[mitigation]"
        ) from error
    options: dict[str, Any] = {}
    match method:
        case "richardson":
            factory = inference.RichardsonFactory
        case "linear":
            factory = inference.LinearFactory
        case "quadratic":
            factory, options = inference.PolyFactory, {"order": 2}
        case _:
            factory, options = inference.ExpFactory, {"asymptote": 0.0}

    def fit(column: np.ndarray) -> float:
        try:
            return float(factory.extrapolate(list(scales), column.tolist(), **options))
        except inference.ExtrapolationError as error:
            raise QuantumError(
                f"no {method} curve fits {np.round(column, 3).tolist()}: choose another method"
            ) from error

    return fit


def mitigate(
    measure: Measure,
    circuit: Circuit,
    *,
    scales: Sequence[int] = (1, 3, 5),
    fold: str = "gates",
    method: str = "linear",
    readout: Readout | None = None,
) -> Extrapolation:
    """Return a circuit's <Z_i> with noise extrapolated to zero, readout corrected if calibrated.

    Args:
        measure: What runs circuits.
        circuit: The circuit.
        scales: Noise scales: 1, 3, 5, ...
        fold: See `folded`.
        method: See `extrapolate`.
        readout: Calibration of the same qubits. Without it readout errors remain: folding does
            not amplify them.

    Raises:
        ConfigError: Options that do not exist or contradict themselves.
        QuantumError: What `measure` or the extrapolation raises.
    """
    n = circuit.ansatz.n_qubits
    answers = measure([folded(circuit, scale, fold) for scale in scales])
    rows = [expectations(c, n) if readout is None else readout.correct(c) for c in answers]
    values, errors = (np.array(column) for column in zip(*rows, strict=True))
    return extrapolate(scales, values, errors, method)
