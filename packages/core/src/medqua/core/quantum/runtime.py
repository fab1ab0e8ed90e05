"""CUDA-Q as an engine: the kernels of `kernels.py` on one of its targets."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from medqua.core.quantum.ansatz import Ansatz


class CudaqEngine:
    """Evaluates <Z_i> by `cudaq.observe`, one token after the other; parameter-shift gradients.

    Raises:
        QuantumError: CUDA-Q is not installed.
    """

    def __init__(self, ansatz: Ansatz) -> None:
        from medqua.core.quantum import kernels  # importing CUDA-Q takes half a second

        self.ansatz = ansatz
        self._kernels = kernels

    def compile(
        self, theta: Float[Tensor, "max_depth n_qubits 3"], depths: Sequence[int]
    ) -> "dict[int, CudaqProgram]":
        """Return a program for each depth: see `Engine`."""
        return {d: CudaqProgram(self, theta, d) for d in depths}

    def observe(self, phi: Sequence[float], theta: Sequence[float], depth: int) -> list[float]:
        """Return <Z_i> of one token; `theta` flat in C order."""
        cudaq, n = self._kernels.cudaq, self.ansatz.n_qubits
        observables = [cudaq.spin.z(i) for i in range(n)]
        encoding, entangler = self._kernels.codes(self.ansatz)
        result = cudaq.observe(
            self._kernels.circuit, sum(observables), n, phi, theta, depth, encoding, entangler
        )
        return [result.expectation(z) for z in observables]

    def unitary(self, theta: Float[np.ndarray, "max_depth n_qubits 3"], depth: int) -> np.ndarray:
        """Return the unitary of the first `depth` layers, complex `[2^n, 2^n]`, qubit 0 first."""
        n = self.ansatz.n_qubits
        if depth == 0:  # a kernel without gates has a 1 x 1 unitary
            return np.eye(2**n, dtype=np.complex128)
        _, entangler = self._kernels.codes(self.ansatz)
        flat = np.asarray(theta, dtype=np.float64).ravel().tolist()
        return np.array(
            self._kernels.cudaq.get_unitary(self._kernels.ansatz_only, n, flat, depth, entangler)
        )


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


class _Observe(torch.autograd.Function):
    """<Z_i> with the parameter-shift rule, exact for a rotation `exp(-i v P / 2)`.

    `df/dv = (f(v + pi/2) - f(v - pi/2)) / 2`.
    """

    @staticmethod
    def forward(ctx: Any, angles: Tensor, theta: Tensor, engine: CudaqEngine, depth: int) -> Tensor:
        ctx.save_for_backward(angles, theta)
        ctx.engine, ctx.depth = engine, depth
        flat = theta.detach().double().flatten().tolist()
        rows = [engine.observe(phi, flat, depth) for phi in angles.detach().double().tolist()]
        return angles.new_tensor(rows).reshape(angles.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        angles, theta = ctx.saved_tensors
        engine, depth = ctx.engine, ctx.depth
        flat = theta.detach().double().flatten().numpy(force=True)
        dead = {np.ravel_multi_index(index, theta.shape) for index in engine.ansatz.dead(depth)}
        live = [k for k in range(flat.size) if k not in dead]
        weights = grad.detach().double().numpy(force=True)
        grad_angles = np.zeros(angles.shape)
        grad_theta = np.zeros(flat.shape)
        for row, phi in enumerate(angles.detach().double().numpy(force=True)):

            def shifted(values: np.ndarray, k: int, phi: np.ndarray = phi) -> np.ndarray:
                difference = np.zeros(len(phi))
                for step in (np.pi / 2, -np.pi / 2):
                    moved = values.copy()
                    moved[k] += step
                    bound = (moved, flat) if values is phi else (phi, moved)
                    z = engine.observe(bound[0].tolist(), bound[1].tolist(), depth)
                    difference += np.sign(step) * np.array(z) / 2
                return difference

            for k in range(len(phi)):
                grad_angles[row, k] = shifted(phi, k) @ weights[row]
            for k in live:
                grad_theta[k] += shifted(flat, k) @ weights[row]
        return (
            angles.new_tensor(grad_angles),
            theta.new_tensor(grad_theta).view_as(theta),
            None,
            None,
        )
