"""The bottlenecks between the stages: angles in, expectation values out, whatever happens.

    exact       exact engine on this machine; the default
    sampled     averages of `shots` measurements, drawn from the exact values
    target      a CUDA-Q target: a simulator, a noisy one, or emulated hardware
    control     a classical control that was trained in the circuit's place
    classical   none: the tokens keep the classical path, as if the router had chosen none

A target can be lost while serving: it raises, or answers what is no expectation value. Then what
`on_loss` says is done, the result says so, and the target is left alone for a while.

Exact values of circuits without noise, up to eight qubits, are worked out in numpy; torch is loaded
for the rest.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medqua.core.errors import BundleError, ConfigError, MedQuaError, QuantumError, ShapeError
from medqua.core.quantum.ansatz import Ansatz
from medqua.core.quantum.exact.arrays import LARGEST, ArrayCircuit
from medqua.serve.inference.manifest import AdapterSpec
from medqua.serve.inference.results import OnLoss, QuantumPath, on_loss_of

Bottleneck = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""phi `[N, n_qubits]` (radian) and circuit layers `[N]` int64 -> `[N, n_qubits]`."""

_SLACK = 1e-3
"""How far beyond [-1, 1] rounding may carry an expectation value."""

_UNFIT = "parameters of adapter {} do not fit: export again"


@dataclass(frozen=True)
class QuantumOptions:
    """How the circuits are evaluated.

    Raises:
        ConfigError: A value that does not exist, or options that contradict each other.
    """

    target: str | None = None
    """CUDA-Q target, such as `density-matrix-cpu` or `ionq-emulated`; None is the exact engine."""
    shots: int | None = None
    """Measurements of each circuit; None is exact. Targets that measure need it."""
    seed: int | None = None
    """Seed of the measurements."""
    noise: Mapping[str, float] | None = None
    """Noise by the names of `NoiseModel.from_dict`; None is the noise that the model was trained
    with, an empty mapping is none."""
    on_loss: OnLoss = "exact"
    """When the target is lost: the `exact` engine, the `classical` path, or `fail`."""
    rest_seconds: float = 30.0
    """How long a target that was lost is not asked again."""

    def __post_init__(self) -> None:
        on_loss_of(self.on_loss)
        if self.seed is not None and self.shots is None:
            raise ConfigError(f"seed is {self.seed} but shots is None: exact values need no seed")
        if not self.rest_seconds >= 0:
            raise ConfigError(f"rest_seconds is {self.rest_seconds}: needed 0 or more")


@dataclass(frozen=True, eq=False)
class Evaluated:
    """What became of the tokens of one layer."""

    z: np.ndarray | None
    """Expectation values `[N, n_qubits]` float32; None where the classical path is taken."""
    path: QuantumPath
    """What made them."""
    reason: str
    """Why it was not the target that was asked for; empty otherwise."""


class QuantumRuntime:
    """The bottlenecks of one export. Safe to share between threads, which take turns.

    Args:
        adapters: The bottlenecks, in order.
        weights: Their parameters, by `"<number>.<name>"`.
        options: How they are evaluated.

    Raises:
        ConfigError: Options that contradict each other.
        QuantumError: CUDA-Q or the target is absent, or lacks a capability.
        BundleError: Parameters that do not fit.
    """

    def __init__(
        self,
        adapters: Sequence[AdapterSpec],
        weights: Mapping[str, np.ndarray],
        options: QuantumOptions,
    ) -> None:
        self.options = options
        self._lock = threading.Lock()
        self._lost_until = -math.inf
        self._reason = ""
        circuits = any(adapter.kind == "circuit" for adapter in adapters)
        if not circuits and (options.target or options.shots or options.noise):
            raise ConfigError(
                "a target, shots or noise are asked for, but this model has no circuit: leave "
                "them out"
            )
        self.paths: list[QuantumPath] = []
        self._exact: list[Bottleneck] = []
        self._asked: list[Bottleneck] = []
        for number, adapter in enumerate(adapters):
            exact = _exact(adapter, options, weights, number)
            self._exact.append(exact)
            asked, path = exact, _path(adapter, options)
            if path in ("target", "sampled"):
                asked = _by_torch(adapter, options, weights, number, asked=True)
            self._asked.append(asked)
            self.paths.append(path)

    def evaluate(self, number: int, angles: np.ndarray, depth: np.ndarray) -> Evaluated:
        """Return the expectation values of one layer's routed tokens.

        Args:
            number: Which layer, from 0.
            angles: phi `[N, n_qubits]` (radian).
            depth: Circuit layers of each token, `[N]` int64.

        Raises:
            QuantumError: The target is lost and `on_loss` is `fail`.
            ShapeError: Angles that are not finite: the model's fault, on any path.
        """
        with self._lock:
            if self.paths[number] != "target":
                values = self._asked[number](angles, depth)
                return Evaluated(_numbers(values), self.paths[number], "")
            if time.monotonic() >= self._lost_until:
                try:
                    values = self._asked[number](angles, depth)
                    _check(values)
                    return Evaluated(_numbers(values), "target", "")
                except (QuantumError, RuntimeError, OSError) as error:
                    if isinstance(error, MedQuaError) and not isinstance(error, QuantumError):
                        raise
                    self._lost_until = time.monotonic() + self.options.rest_seconds
                    self._reason = f"{self.options.target} was lost: {_first_line(error)}"
            if self.options.on_loss == "fail":
                raise QuantumError(f"{self._reason}; on_loss is 'fail'")
            if self.options.on_loss == "classical":
                return Evaluated(None, "classical", self._reason)
            values = self._exact[number](angles, depth)
            return Evaluated(_numbers(values), "exact", self._reason)


def _path(adapter: AdapterSpec, options: QuantumOptions) -> QuantumPath:
    if adapter.kind != "circuit":
        return "control"
    if options.target is not None:
        return "target"
    return "exact" if options.shots is None else "sampled"


def _exact(
    adapter: AdapterSpec, options: QuantumOptions, weights: Mapping[str, np.ndarray], number: int
) -> Bottleneck:
    """Build the bottleneck that is evaluated exactly, with the noise that is asked for."""
    noise = adapter.noise if options.noise is None else options.noise
    if adapter.kind != "circuit" or noise or adapter.n_qubits > LARGEST:
        return _by_torch(adapter, options, weights, number, asked=False)
    ansatz = Ansatz(adapter.n_qubits, adapter.max_depth, entangler=adapter.entangler)
    state = _state(weights, number)
    if set(state) != {"theta"}:
        raise BundleError(
            f"parameters of adapter {number} are {sorted(state)}, needed theta alone: export again"
        )
    try:
        return ArrayCircuit(ansatz, state["theta"])
    except ShapeError as error:
        raise BundleError(f"{_UNFIT.format(number)} ({error})") from error


def _by_torch(
    adapter: AdapterSpec,
    options: QuantumOptions,
    weights: Mapping[str, np.ndarray],
    number: int,
    *,
    asked: bool,
) -> Bottleneck:
    """Build the bottleneck that torch evaluates: what is asked for, or the exact one."""
    from medqua.serve.inference.bottlenecks import TorchBottleneck

    made = TorchBottleneck(adapter, options, asked=asked)
    try:
        made.load(_state(weights, number))
    except RuntimeError as error:
        raise BundleError(f"{_UNFIT.format(number)} ({_first_line(error)})") from error
    return made


def _state(weights: Mapping[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
    """Return the parameters of one adapter, by their own names."""
    own = f"{number}."
    return {k.removeprefix(own): v for k, v in weights.items() if k.startswith(own)}


def _check(values: np.ndarray) -> None:
    if not (np.abs(values) <= 1 + _SLACK).all():  # written so that NaN fails too
        raise QuantumError("it answered what is no expectation value")


def _numbers(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
