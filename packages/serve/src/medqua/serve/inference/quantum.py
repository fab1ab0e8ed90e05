"""The bottlenecks between the stages: angles in, expectation values out, whatever happens.

    exact       exact engine on this machine; the default
    sampled     averages of `shots` measurements, drawn from the exact values
    target      a CUDA-Q target: a simulator, a noisy one, or emulated hardware
    control     a classical control that was trained in the circuit's place
    classical   none: the tokens keep the classical path, as if the router had chosen none

A target can be lost while serving: it raises, or answers what is no expectation value. Then what
`on_loss` says is done, the result says so, and the target is left alone for a while.
"""

import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from medqua.core.errors import BundleError, ConfigError, MedQuaError, QuantumError
from medqua.core.quantum.bottleneck import VariationalBottleneck
from medqua.core.quantum.noise import NoiseModel
from medqua.serve.inference.manifest import AdapterSpec
from medqua.serve.inference.results import OnLoss, QuantumPath, on_loss_of

_SLACK = 1e-3
"""How far beyond [-1, 1] rounding may carry an expectation value."""


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
        weights: Mapping[str, Tensor],
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
        self._exact: list[nn.Module] = []
        self._asked: list[nn.Module] = []
        for number, adapter in enumerate(adapters):
            exact = _make(adapter, options, asked=False)
            _load(exact, weights, number)
            self._exact.append(exact)
            asked, path = exact, _path(adapter, options)
            if path in ("target", "sampled"):
                asked = _make(adapter, options, asked=True)
                _load(asked, weights, number)
            self._asked.append(asked)
            self.paths.append(path)

    @torch.inference_mode()
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
        phi, depths = torch.from_numpy(angles), torch.from_numpy(depth)
        with self._lock:
            if self.paths[number] != "target":
                values = self._asked[number](phi, depths)
                return Evaluated(_numbers(values), self.paths[number], "")
            if time.monotonic() >= self._lost_until:
                try:
                    values = self._asked[number](phi, depths)
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
            values = self._exact[number](phi, depths)
            return Evaluated(_numbers(values), "exact", self._reason)


def _path(adapter: AdapterSpec, options: QuantumOptions) -> QuantumPath:
    if adapter.kind != "circuit":
        return "control"
    if options.target is not None:
        return "target"
    return "exact" if options.shots is None else "sampled"


def _make(adapter: AdapterSpec, options: QuantumOptions, *, asked: bool) -> nn.Module:
    """Build a bottleneck: what is asked for, or the exact one with the same noise."""
    n, depth = adapter.n_qubits, adapter.max_depth
    if adapter.kind != "circuit":
        from medqua.core.adapter import controls  # brings PEFT, which circuits do without

        made = controls.MLPBottleneck if adapter.kind == "mlp" else controls.FourierBottleneck
        return made(n, depth).eval()
    strengths = adapter.noise if options.noise is None else options.noise
    noise = NoiseModel.from_dict(strengths) if strengths else None
    if not asked:
        return VariationalBottleneck(n, depth, entangler=adapter.entangler, noise=noise).eval()
    return VariationalBottleneck(
        n,
        depth,
        entangler=adapter.entangler,
        noise=noise,
        engine="auto" if options.target is None else "cudaq",
        target=options.target or "qpp-cpu",
        shots=options.shots,
        seed=options.seed,
    ).eval()


def _load(bottleneck: nn.Module, weights: Mapping[str, Tensor], number: int) -> None:
    own = f"{number}."
    state = {k.removeprefix(own): v for k, v in weights.items() if k.startswith(own)}
    try:
        bottleneck.load_state_dict(state)
    except RuntimeError as error:
        raise BundleError(
            f"parameters of adapter {number} do not fit: export again ({_first_line(error)})"
        ) from error


def _check(values: Tensor) -> None:
    if not bool((values.abs() <= 1 + _SLACK).all()):  # written so that NaN fails too
        raise QuantumError("it answered what is no expectation value")


def _numbers(values: Tensor) -> np.ndarray:
    return values.float().contiguous().numpy()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
