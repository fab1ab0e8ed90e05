"""CUDA-Q as an engine: the kernels of `kernels.py` on one of its simulators."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from medqua.core.errors import QuantumError
from medqua.core.quantum.ansatz import Ansatz
from medqua.core.quantum.exact.dense import DenseProgram, rotations_to_unitary
from medqua.core.quantum.exact.pauli import kron
from medqua.core.quantum.noise import NoiseModel
from medqua.core.quantum.runtime.sampling import Circuit, derived_seed, expectations, sample
from medqua.core.quantum.runtime.targets import TARGETS, check, find, present, select

Array = np.ndarray


class CudaqEngine:
    """The circuit on a CUDA-Q target.

    On a noiseless statevector target up to 10 qubits CUDA-Q makes the unitary of the layers
    (`get_unitary`) and all tokens are multiplied by it; the derivative in an angle is the exact
    `dU/dv = U(v + pi) / 2`. Elsewhere each token is one `observe`, or on a target that answers by
    measurements one run of `shots`; gradients there follow the parameter-shift rule.

    Args:
        ansatz: The circuit.
        noise: Channels and readout errors; needs a target that simulates them.
        target: Name of a target, see `medqua.core.quantum.runtime.targets`.
        observe: Evaluate by `observe` in any case.
        shots: Number of measurements of each circuit, for targets that need it.
        seed: Seed of the measurements: the k-th circuit draws the same again. Without it they
            follow torch's global generator.

    Raises:
        QuantumError: CUDA-Q or the target is absent, needs what is not there, ignores noise,
            needs shots, or is a machine.
    """

    def __init__(
        self,
        ansatz: Ansatz,
        noise: NoiseModel | None = None,
        target: str = "qpp-cpu",
        observe: bool = False,
        shots: int | None = None,
        seed: int | None = None,
    ) -> None:
        self.ansatz = ansatz
        self.noise = noise
        self.target = find(target)
        self.seed = seed
        if self.target.remote:
            raise QuantumError(
                f"CUDA-Q target {target!r} is a machine that bills every circuit: send circuits "
                "through medqua.core.quantum.runtime.queue, which asks the price first, or choose "
                "one of " + ", ".join(name for name in present() if not TARGETS[name].remote)
            )
        check(self.target, noisy=noise is not None, shots=shots)
        self.shots = None if self.target.exact else shots
        self.by_unitary = (
            noise is None and self.target.statevector and ansatz.n_qubits <= 10 and not observe
        )
        self._runs = 0

    @property
    def measures(self) -> bool:
        """Whether values are averages of `shots` measurements already."""
        return self.shots is not None

    def compile(
        self, theta: Float[Tensor, "max_depth n_qubits 3"], depths: Sequence[int]
    ) -> "dict[int, DenseProgram | CudaqProgram]":
        """Return a program for each depth: see `Engine`."""
        if not self.by_unitary:
            return {d: CudaqProgram(self, theta, d) for d in depths}
        n = self.ansatz.n_qubits
        bits = torch.arange(2**n) >> torch.arange(n - 1, -1, -1)[:, None] & 1
        signs = (1.0 - 2.0 * bits).to(theta)
        make: Callable[..., Tensor] = _Unitary.apply
        return {d: DenseProgram(make(theta, self, d), signs) for d in depths}

    def observe(self, phi: Sequence[float], theta: Sequence[float], depth: int) -> list[float]:
        """Return <Z_i> of one token; `theta` flat in C order."""
        n = self.ansatz.n_qubits
        if self.shots is not None:
            circuit = Circuit(self.ansatz, tuple(phi), tuple(theta), depth)
            counts = sample(self.target, circuit, self.shots, self._next_seed())
            averages: list[float] = expectations(counts, n)[0].tolist()
            return averages
        from medqua.core.quantum.runtime import kernels

        cudaq = select(self.target)
        observables = [cudaq.spin.z(i) for i in range(n)]
        options = (
            {} if self.noise is None else {"noise_model": cudaq_noise(self.noise, self.ansatz)}
        )
        codes = kernels.codes(self.ansatz)
        result = cudaq.observe(
            kernels.circuit, sum(observables), n, phi, theta, depth, *codes, **options
        )
        values = [result.expectation(z) for z in observables]
        if self.noise is None or self.noise.noiseless_readout:
            return values
        scale, shift = self.noise.readout_affine(n, torch.zeros((), dtype=torch.float64))
        return (scale * torch.tensor(values, dtype=torch.float64) + shift).tolist()

    def _next_seed(self) -> int:
        """Return the seed of the next circuit's measurements."""
        self._runs += 1
        if self.seed is None:
            return derived_seed(int(torch.randint(2**62, ())))
        return derived_seed(self.seed, self._runs)

    def unitary(self, theta: Array, depth: int) -> Array:
        """Return the unitary of the first `depth` layers, complex `[2^n, 2^n]`, qubit 0 first.

        Args:
            theta: Parameters, `[max_depth, n, 3]`.
            depth: Number of layers.
        """
        from medqua.core.quantum.runtime import kernels

        n = self.ansatz.n_qubits
        select(self.target)
        if depth == 0:  # a kernel without gates has a 1 x 1 unitary
            return np.eye(2**n, dtype=np.complex128)
        _, entangler = kernels.codes(self.ansatz)
        flat = np.asarray(theta, dtype=np.float64).ravel().tolist()
        unitary = kernels.cudaq.get_unitary(kernels.ansatz_only, n, flat, depth, entangler)
        return np.array(unitary)

    def live(self, depth: int) -> list[tuple[int, ...]]:
        """Return the indices of the parameters that a circuit of this depth has."""
        dead: set[tuple[int, ...]] = set(self.ansatz.dead(depth))
        return [k for k in np.ndindex(*self.ansatz.theta_shape) if k not in dead]


class CudaqProgram:
    """The kernel of one depth with its parameters bound."""

    def __init__(self, engine: CudaqEngine, theta: Tensor, depth: int) -> None:
        self.engine = engine
        self.theta = theta
        self.depth = depth

    def __call__(self, angles: Float[Tensor, "tokens n"]) -> Float[Tensor, "tokens n"]:
        """Return <Z_i>: see `Program`."""
        result: Tensor = _Observe.apply(  # type: ignore[no-untyped-call]
            angles, self.theta, self.engine, self.depth
        )
        return result


class _Unitary(torch.autograd.Function):
    """The columns of the unitary, as `DenseProgram` takes them, from CUDA-Q.

    A rotation is `exp(-i v P / 2)`, so that `dU/dv = U(v + pi) / 2`, exactly.
    """

    @staticmethod
    def forward(ctx: Any, theta: Tensor, engine: CudaqEngine, depth: int) -> Tensor:
        ctx.save_for_backward(theta)
        ctx.engine, ctx.depth = engine, depth
        return theta.new_tensor(_columns(engine, _numpy(theta), depth))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (theta,) = ctx.saved_tensors
        values, weights = _numpy(theta), _numpy(grad)
        result = np.zeros_like(values)
        for k in ctx.engine.live(ctx.depth):
            moved = values.copy()
            moved[k] += np.pi
            result[k] = np.vdot(weights, _columns(ctx.engine, moved, ctx.depth)) / 2
        return theta.new_tensor(result), None, None


def _columns(engine: CudaqEngine, theta: Array, depth: int) -> Array:
    """Return the columns of the unitary, re and im apart, `[2^n, 2 * 2^n]`."""
    columns = engine.unitary(theta, depth).T
    if engine.ansatz.encoding == "rx":  # RX(phi) on the zero state is RZ(-pi/2) RY(phi) on it
        turn = rotations_to_unitary(torch.tensor((0.0, 0.0, -torch.pi / 2), dtype=torch.float64))
        columns = kron([turn] * engine.ansatz.n_qubits).numpy().T @ columns
    return np.concatenate((columns.real, columns.imag), 1)


def _numpy(tensor: Tensor) -> Array:
    """Return a float64 copy on the host."""
    return tensor.detach().double().cpu().numpy()


class _Observe(torch.autograd.Function):
    """<Z_i> with the parameter-shift rule, exact for a rotation `exp(-i v P / 2)`.

    `df/dv = (f(v + pi/2) - f(v - pi/2)) / 2`, with noise after the gates too.
    """

    @staticmethod
    def forward(ctx: Any, angles: Tensor, theta: Tensor, engine: CudaqEngine, depth: int) -> Tensor:
        ctx.save_for_backward(angles, theta)
        ctx.engine, ctx.depth = engine, depth
        flat = _numpy(theta).ravel().tolist()
        rows = [engine.observe(phi, flat, depth) for phi in _numpy(angles).tolist()]
        return angles.new_tensor(rows).reshape(angles.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        angles, theta = ctx.saved_tensors
        engine, depth, values = ctx.engine, ctx.depth, _numpy(theta)
        grad_angles, grad_theta = np.zeros(angles.shape), np.zeros(values.shape)
        for row, (phi, weights) in enumerate(zip(_numpy(angles), _numpy(grad), strict=True)):
            for k in range(len(phi)):
                grad_angles[row, k] = weights @ _shifted(engine, (phi, values), 0, (k,), depth)
            for index in engine.live(depth):
                grad_theta[index] += weights @ _shifted(engine, (phi, values), 1, index, depth)
        return angles.new_tensor(grad_angles), theta.new_tensor(grad_theta), None, None


def _shifted(
    engine: CudaqEngine,
    values: tuple[Array, Array],
    which: int,
    index: tuple[int, ...],
    depth: int,
) -> Array:
    """Return the derivative of every <Z_i> in `values[which][index]`, of (phi, theta)."""
    ends = []
    for step in (np.pi / 2, -np.pi / 2):
        moved = [value.copy() for value in values]
        moved[which][index] += step
        phi, theta = (value.ravel().tolist() for value in moved)
        ends.append(np.array(engine.observe(phi, theta, depth)))
    derivative: Array = (ends[0] - ends[1]) / 2
    return derivative


def cudaq_noise(noise: NoiseModel, ansatz: Ansatz) -> Any:
    """Return the channels after gates as a `cudaq.NoiseModel`.

    Readout errors are not in it: `observe` would ignore them; `CudaqEngine` applies them to its
    exact expectation values.

    Args:
        noise: The noise model.
        ansatz: The circuit, for the strengths of single qubits and CNOTs.
    """
    from medqua.core.quantum.runtime.kernels import cudaq

    n, like = ansatz.n_qubits, torch.zeros((), dtype=torch.float64)
    model = cudaq.NoiseModel()
    for name in ("rx", "ry", "rz"):
        for channel in noise.after(name):
            for q, strength in enumerate(channel.strengths(n, like).tolist()):
                model.add_channel(name, [q], cudaq.KrausChannel(channel.kraus(strength)))
    for channel in noise.after("cx"):
        strengths = channel.strengths(len(ansatz.pairs) if channel.depolarises else n, like)
        for k, pair in enumerate(ansatz.pairs):
            if channel.depolarises:
                operators = channel.kraus(float(strengths[k]), qubits=2)
            else:
                each = [channel.kraus(float(strengths[q])) for q in pair]
                operators = [np.kron(a, b) for a in each[0] for b in each[1]]
            model.add_channel("x", list(pair), cudaq.KrausChannel(operators))
    return model


def measured_noise(noise: NoiseModel, ansatz: Ansatz) -> Any:
    """Return the channels after gates and before the readout as a `cudaq.NoiseModel`.

    A readout error is a channel before the explicit measurement:
    `sqrt(1 - a) |0><0|`, `sqrt(a) |1><0|`, `sqrt(1 - b) |1><1|`, `sqrt(b) |0><1|`.
    """
    from medqua.core.quantum.runtime.kernels import cudaq

    model = cudaq_noise(noise, ansatz)
    if noise.noiseless_readout:
        return model
    up, down = (
        torch.as_tensor(p).detach().double().expand(ansatz.n_qubits).tolist() for p in noise.readout
    )
    for q, (a, b) in enumerate(zip(up, down, strict=True)):
        operators = [np.zeros((2, 2), complex) for _ in range(4)]
        for operator, (to, start, p) in zip(
            operators, ((0, 0, 1 - a), (1, 0, a), (1, 1, 1 - b), (0, 1, b)), strict=True
        ):
            operator[to, start] = math.sqrt(p)
        model.add_channel("mz", [q], cudaq.KrausChannel(operators))
    return model
