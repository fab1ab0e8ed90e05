"""The variational bottleneck: angles of the routed tokens in, expectation values out."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medqua.core.errors import ConfigError, ShapeError
from medqua.core.quantum.ansatz import Ansatz
from medqua.core.quantum.engine import Program, make_engine

INITIAL_STD = 0.4
"""Standard deviation of the initial rotation angles (radian): far enough from zero, where the
derivatives of the products of cosines vanish, and from uniform angles, where they concentrate."""


class VariationalBottleneck(nn.Module):
    r"""The circuit of Eq. 1 as a layer, `<Z_i> = <0| E(phi)^+ U(theta)^+ Z_i U(theta) E(phi) |0>`.

    Every token brings its own angles and its own depth; all share `theta`. Arithmetic is float32
    inside autocast and beside a bfloat16 backbone, and float64 when `angles` are.

    Args:
        n_qubits: Number of qubits n, at least 2.
        max_depth: Largest number of layers, at least 1.
        encoding: Rotation that encodes an angle: `ry` or `rx`.
        entangler: `ring`, `line`, `all` or `none`: see `Ansatz`.
        engine: `auto`, or the name of one of `medqua.core.quantum.engine.ENGINES`.
        noise: Not offered by this version.
        shots: Not offered by this version: expectation values are exact.
        seed: Seed of the shots.
        target: CUDA-Q target of the `cudaq` engine; `qpp-cpu` is the one of this version.

    Raises:
        ConfigError: A size or a name that does not exist.
        QuantumError: An engine or a target that is not installed.
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
        noise: None = None,
        shots: int | None = None,
        seed: int | None = None,
        target: str = "qpp-cpu",
    ) -> None:
        super().__init__()
        self.ansatz = Ansatz(n_qubits, max_depth, encoding=encoding, entangler=entangler)
        for name, value in (("noise", noise), ("shots", shots), ("seed", seed)):
            if value is not None:
                raise ConfigError(f"{name} is {value!r}: this version is exact; leave {name} out")
        if target != "qpp-cpu":
            raise ConfigError(f"target is {target!r}: this version runs on 'qpp-cpu'")
        self.engine = ("fourier" if n_qubits <= 9 else "dense") if engine == "auto" else engine
        self.target = target
        self._engine = make_engine(self.engine, self.ansatz)
        self.theta = nn.Parameter(torch.empty(self.ansatz.theta_shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new angles from the global generator; the dead ones are set to 0."""
        with torch.no_grad():
            self.theta.normal_(std=INITIAL_STD)
            self.theta[-1, :, 2] = 0.0

    def forward(self, angles: Tensor, depth: int | Tensor) -> Float[Tensor, "tokens n_qubits"]:
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
        """
        n, limit = self.ansatz.n_qubits, self.ansatz.max_depth
        if angles.ndim != 2 or angles.shape[1] != n or not angles.is_floating_point():
            raise ShapeError(
                f"angles are {angles.dtype} of shape {list(angles.shape)}: the bottleneck needs "
                f"floating point [tokens, {n}], one angle for each of its {n} qubits"
            )
        dtype = torch.float64 if angles.dtype == torch.float64 else torch.float32
        with torch.autocast(angles.device.type, enabled=False):
            angles, theta = angles.to(dtype), self.theta.to(dtype)
            counts: list[int] | None = None
            if isinstance(depth, Tensor):
                counts = self._count(angles, depth)
            elif not 0 <= depth <= limit:
                raise ShapeError(f"depth is {depth}: the bottleneck has circuits of 0..{limit}")
            elif angles.device.type == "cpu" and not torch.isfinite(angles.detach()).all():
                raise ShapeError(NOT_FINITE)
            if not angles.shape[0]:
                return angles.cos() + 0.0 * theta.sum()
            if not isinstance(depth, Tensor):
                return self._run(self._compile(theta, (depth,)), depth, angles) + 0.0 * theta.sum()
            assert counts is not None
            programs = self._compile(theta, tuple(d for d, c in enumerate(counts) if c))
            order = depth.argsort(stable=True)
            buckets = torch.split(angles[order], counts)
            values = [self._run(programs, d, b) for d, b in enumerate(buckets) if b.shape[0]]
            return torch.cat(values)[order.argsort()] + 0.0 * theta.sum()

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

    def _compile(self, theta: Tensor, depths: tuple[int, ...]) -> Mapping[int, Program]:
        """Return the programs of the depths that need one."""
        return self._engine.compile(theta, tuple(d for d in depths if d))

    @staticmethod
    def _run(programs: Mapping[int, Program], depth: int, angles: Tensor) -> Tensor:
        """Return <Z_i> of tokens of one depth."""
        return programs[depth](angles) if depth else angles.cos()

    def extra_repr(self) -> str:
        """Show the circuit and the engine that was chosen."""
        a = self.ansatz
        return (
            f"n_qubits={a.n_qubits}, max_depth={a.max_depth}, encoding={a.encoding!r}, "
            f"entangler={a.entangler!r}, engine={self.engine!r}"
        )


NOT_FINITE = (
    "angles hold NaN or infinity: look for a loss that diverged or a layer that overflowed "
    "before the bottleneck"
)
