"""The variational bottleneck: angles of the routed tokens in, expectation values out."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from medqua.core.errors import ConfigError, ShapeError
from medqua.core.quantum.ansatz import NOT_FINITE, Ansatz
from medqua.core.quantum.cost import LARGEST, cheapest
from medqua.core.quantum.engine import Engine, Program, make_engine
from medqua.core.quantum.exact.triton_fourier import runs_fused
from medqua.core.quantum.noise import NoiseModel
from medqua.core.quantum.shots import refuse, sample, sample_joint

INITIAL_STD = 0.4
"""Standard deviation of the initial rotation angles (radian). Against uniform angles it gives
larger derivatives in circuits of one layer only; `docs/trainability.md` measures it."""


class VariationalBottleneck(nn.Module):
    r"""The circuit of Eq. 1 as a layer, `<Z_i> = <0| E(phi)^+ U(theta)^+ Z_i U(theta) E(phi) |0>`.

    Every token brings its own angles and its own depth; all share `theta`. Arithmetic is float32
    inside autocast and beside a bfloat16 backbone, and float64 when `angles` are.

    Args:
        n_qubits: Number of qubits n, at least 2.
        max_depth: Largest number of layers, at least 1.
        encoding: Rotation that encodes an angle: `ry` or `rx`.
        entangler: `ring`, `line`, `all` or `none`: see `Ansatz`.
        engine: `auto` (the cheapest for the number of tokens, see `engine_for`), or the name of
            one of `medqua.core.quantum.engine.ENGINES`.
        noise: Noise after gates and at the readout, exact in expectation; strengths given as
            tensors are differentiated, and remain the caller's to optimise.
        shots: Number of measurements of each token: <Z_i> is then an average of that many +-1,
            drawn for each qubit by itself. The gradient is that of the expectation value.
        correlated: Draw whole bit strings instead, as a machine reads all qubits of a shot
            together: up to 12 qubits, readout errors but no noise after gates.
        seed: Seed of the shots: call number k after construction draws the same again. Without
            it they come from the global generator.
        target: CUDA-Q target of the `cudaq` engine, such as `ionq-emulated`: see
            `medqua.core.quantum.runtime.targets`. Those that answer by measurements need `shots`.

    Raises:
        ConfigError: A size, a number of shots or a name that does not exist.
        QuantumError: An engine or a target that is not installed or lacks a capability.
    """

    theta: nn.Parameter
    """`[max_depth, n_qubits, 3]`, RX, RY and RZ angles (radian). The RZ of the last layer is inert:
    it starts at 0 and its gradient is 0."""

    def __init__(
        self,
        n_qubits: int,
        max_depth: int,
        *,
        encoding: str = "ry",
        entangler: str = "ring",
        engine: str = "auto",
        noise: NoiseModel | None = None,
        shots: int | None = None,
        correlated: bool = False,
        seed: int | None = None,
        target: str = "qpp-cpu",
    ) -> None:
        super().__init__()
        self.ansatz = Ansatz(n_qubits, max_depth, encoding=encoding, entangler=entangler)
        if shots is not None and shots < 1:
            raise ConfigError(f"shots is {shots}: at least 1, or None for exact expectation values")
        if seed is not None and shots is None:
            raise ConfigError(f"seed is {seed} but shots is None: exact values need no seed")
        if correlated:
            if shots is None:
                raise ConfigError("correlated is true but shots is None: give the number of shots")
            refuse(self.ansatz, noise)
        self.engine, self.noise, self.shots, self.seed = engine, noise, shots, seed
        self.correlated = correlated
        self.target = target
        if noise is not None and engine == "auto" and n_qubits > LARGEST["fourier"]:
            raise ConfigError(
                f"noise is for up to {LARGEST['fourier']} qubits, not {n_qubits}: above that "
                "choose engine='cudaq' with target='density-matrix-cpu'"
            )
        self.calls = 0
        self._engines: dict[str, Engine] = {}
        self._cache: dict[tuple[str, int, torch.dtype, torch.device], tuple[Tensor, Program]] = {}
        self.theta = nn.Parameter(torch.empty(self.ansatz.theta_shape))
        self._engine(self.engine_for(1))  # refuse now what cannot run
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new angles from the global generator; the dead ones are set to 0."""
        with torch.no_grad():
            self.theta.normal_(std=INITIAL_STD)
            self.theta[-1, :, 2] = 0.0

    def engine_for(self, tokens: int) -> str:
        """Return the name of the engine that evaluates so many tokens of one depth."""
        if self.engine != "auto":
            return self.engine
        if self.target != "qpp-cpu":
            return "cudaq"
        if runs_fused(self.ansatz.n_qubits, self.theta.device):
            return "triton"
        frozen = not self.training and not torch.is_grad_enabled()
        return cheapest(self.ansatz, tokens, noisy=self.noise is not None, prepared=frozen)

    def forward(self, angles: Tensor, depth: int | Tensor) -> Tensor:
        """Return <Z_i> of every token.

        `theta` takes part in the graph whatever the depths and however few the tokens, so that
        no rank of a distributed run waits for a gradient that never comes. A tensor of depths
        costs one transfer to the host, which also brings the check for angles that are not
        finite; on an accelerator with one `int` depth there is no transfer and no such check, and
        such a token's own values are NaN.

        Args:
            angles: phi, `[tokens, n_qubits]` (radian), any float dtype; `tokens` may be 0.
            depth: Number of layers in 0..max_depth, one for all tokens or one each (int64).
                Depth 0 is `cos(phi)`.

        Returns:
            `[tokens, n_qubits]` in [-1, 1]; float64 if `angles` are, else float32.

        Raises:
            ShapeError: A wrong shape, a depth out of range, or angles that are not finite.
            QuantumError: Second derivatives are asked for.
        """
        n = self.ansatz.n_qubits
        if angles.ndim != 2 or angles.shape[1] != n or not angles.is_floating_point():
            raise ShapeError(
                f"angles are {angles.dtype} of shape {list(angles.shape)}: the bottleneck needs "
                f"floating point [tokens, {n}], one angle for each of its {n} qubits"
            )
        if torch.compiler.is_compiling():
            disable: Any = torch.compiler.disable  # as a decorator it loads the compiler at once
            values: Tensor = disable(self._apart)(angles, depth)
            return values
        if torch.is_autocast_enabled(angles.device.type):
            return self._apart(angles, depth)
        return self._values(angles, depth)

    def _apart(self, angles: Tensor, depth: int | Tensor) -> Tensor:
        """Return <Z_i> outside the graph of a compiler and outside autocast."""
        with torch.autocast(angles.device.type, enabled=False):
            return self._values(angles, depth)

    def _values(self, angles: Tensor, depth: int | Tensor) -> Tensor:
        """Return <Z_i> of every token."""
        limit = self.ansatz.max_depth
        angles = angles if angles.dtype == torch.float64 else angles.float()
        if isinstance(depth, Tensor):
            counts = self._count(angles, depth)
            order = depth.argsort(stable=True)
            buckets = torch.split(angles[order], counts)
            values = self._evaluate({d: b for d, b in enumerate(buckets) if len(b)}, angles)
            values = values[order.argsort()]
        else:
            if not 0 <= depth <= limit:
                raise ShapeError(f"depth is {depth}: the bottleneck has circuits of 0..{limit}")
            if angles.device.type == "cpu" and not finite(angles.detach()):
                raise ShapeError(NOT_FINITE)
            values = self._evaluate({depth: angles} if len(angles) else {}, angles)
        if self.shots is not None and not self.measures:
            if self.correlated:
                values = sample_joint(
                    values,
                    self.ansatz,
                    self.theta,
                    angles,
                    depth,
                    self.shots,
                    self._next_seed(),
                    self.noise,
                )
            else:
                values = sample(values, self.shots, self._next_seed())
        return values

    def _count(self, angles: Tensor, depth: Tensor) -> list[int]:
        """Return how many tokens have each depth, with one transfer to the host."""
        limit = self.ansatz.max_depth
        if depth.shape != angles.shape[:1] or depth.dtype != torch.int64:
            raise ShapeError(
                f"depth is {depth.dtype} of shape {list(depth.shape)}: the bottleneck needs one "
                f"int64 depth for each of the {angles.shape[0]} tokens, or a single int"
            )
        levels = torch.arange(limit + 1, device=depth.device)
        histogram = (depth[:, None] == levels).sum(0)
        finite = torch.isfinite(angles.detach()).all().to(histogram)
        *counts, ok = torch.cat((histogram, finite[None])).tolist()
        if sum(counts) != depth.shape[0]:
            raise ShapeError(
                f"{depth.shape[0] - sum(counts)} of {depth.shape[0]} depths are outside 0..{limit}"
            )
        if not ok:
            raise ShapeError(NOT_FINITE)
        return counts

    def _evaluate(self, buckets: Mapping[int, Tensor], like: Tensor) -> Tensor:
        """Return <Z_i> of tokens that are bucketed by depth, in the order of the buckets."""
        tokens = sum(len(bucket) for bucket in buckets.values())
        name = self.engine_for(max(1, tokens // max(1, len(buckets))))
        needed = tuple(d for d in buckets if d or self.noise is not None or self.measures)
        programs = self._programs(name, needed, like)
        values = [programs[d](b) if d in programs else b.cos() for d, b in buckets.items()]
        result = torch.cat(values) if len(values) > 1 else values[0] if values else like.cos()
        if torch.is_grad_enabled() and self.theta.requires_grad:
            result = result + 0.0 * self.theta.sum().to(like.dtype)
        return result

    def _programs(self, name: str, depths: tuple[int, ...], like: Tensor) -> Mapping[int, Program]:
        """Return the programs of some depths; with frozen parameters those of the last time."""
        if not depths:
            return {}
        engine = self._engine(name)
        frozen = not (torch.is_grad_enabled() and self.theta.requires_grad)
        if self.training or not frozen or self._noise_learns:
            self._cache.clear()
            return engine.compile(self.theta.to(like.dtype), depths)
        programs = {}
        for d in depths:
            key = (name, d, like.dtype, self.theta.device)
            bound, program = self._cache.get(key, (None, None))
            if bound is None or program is None or not self._unchanged(bound):
                with torch.inference_mode(False), torch.no_grad():
                    bound = self.theta.detach().clone()
                    program = engine.compile(bound.to(like.dtype), (d,))[d]
                self._cache[key] = (bound, program)
            programs[d] = program
        return programs

    def _unchanged(self, bound: Tensor) -> bool:
        """Return whether `theta` still has the values that a program was made of."""
        return torch.equal(self.theta, bound)

    @property
    def measures(self) -> bool:
        """Whether the target itself answers by measurements, so that none are drawn here."""
        if self.shots is None or self.engine_for(1) != "cudaq":
            return False
        return bool(getattr(self._engine("cudaq"), "measures", False))

    @property
    def _noise_learns(self) -> bool:
        """Whether a strength of the noise may change between calls."""
        return self.noise is not None and self.noise.holds_tensors

    def _engine(self, name: str) -> Engine:
        """Return an engine, made when first needed."""
        if name not in self._engines:
            self._engines[name] = make_engine(
                name, self.ansatz, self.noise, self.target, self.shots, self.seed
            )
        return self._engines[name]

    def _next_seed(self) -> int | None:
        """Return the seed of this call's shots."""
        self.calls += 1
        return None if self.seed is None else hash((self.seed, self.calls)) & 2**63 - 1

    def __getstate__(self) -> dict[str, Any]:
        """Leave what can be made again out of copies and pickles."""
        return {**self.__dict__, "_engines": {}, "_cache": {}}

    def extra_repr(self) -> str:
        """Show the circuit and how it is evaluated."""
        a = self.ansatz
        text = (
            f"n_qubits={a.n_qubits}, max_depth={a.max_depth}, encoding={a.encoding!r}, "
            f"entangler={a.entangler!r}, engine={self.engine!r}"
        )
        text += "" if self.noise is None else ", noisy"
        return text + ("" if self.shots is None else f", shots={self.shots}")


def finite(angles: Tensor) -> bool:
    """Return whether no angle is NaN or infinite; one sum, looked into only if it is not finite."""
    return math.isfinite(angles.sum().item()) or bool(torch.isfinite(angles).all())
