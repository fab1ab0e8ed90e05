"""The bottlenecks of an export that torch evaluates: noise, shots, targets, classical controls."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from medqua.core.quantum.bottleneck import VariationalBottleneck
from medqua.core.quantum.noise import NoiseModel
from medqua.serve.inference.manifest import AdapterSpec

if TYPE_CHECKING:
    from medqua.serve.inference.quantum import QuantumOptions


class TorchBottleneck:
    """A bottleneck as torch evaluates it: arrays in, arrays out.

    Args:
        adapter: What it is.
        options: How its circuits are evaluated.
        asked: As `options` ask; else exactly, with the same noise.

    Raises:
        ConfigError: Options that contradict each other.
        QuantumError: CUDA-Q or the target is absent, or lacks a capability.
    """

    def __init__(self, adapter: AdapterSpec, options: "QuantumOptions", *, asked: bool) -> None:
        self._module = _make(adapter, options, asked=asked).eval()

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Take parameters by name.

        Raises:
            RuntimeError: They do not fit.
        """
        self._module.load_state_dict({name: torch.from_numpy(v) for name, v in state.items()})

    @torch.inference_mode()
    def __call__(self, angles: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """Return the values of tokens, `[N, n_qubits]` float32.

        Args:
            angles: phi `[N, n_qubits]` (radian).
            depth: Circuit layers of each token, `[N]` int64.

        Raises:
            QuantumError: The target is lost.
            ShapeError: Angles that are not finite.
        """
        values = self._module(torch.from_numpy(angles), torch.from_numpy(depth))
        numbers: np.ndarray = values.float().numpy()
        return numbers


def _make(adapter: AdapterSpec, options: "QuantumOptions", *, asked: bool) -> nn.Module:
    """Build a bottleneck: what is asked for, or the exact one with the same noise."""
    n, depth = adapter.n_qubits, adapter.max_depth
    if adapter.kind != "circuit":
        from medqua.core.adapter import controls  # brings PEFT, which circuits do without

        made = controls.MLPBottleneck if adapter.kind == "mlp" else controls.FourierBottleneck
        return made(n, depth)
    strengths = adapter.noise if options.noise is None else options.noise
    noise = NoiseModel.from_dict(strengths) if strengths else None
    if not asked:
        return VariationalBottleneck(n, depth, entangler=adapter.entangler, noise=noise)
    return VariationalBottleneck(
        n,
        depth,
        entangler=adapter.entangler,
        noise=noise,
        engine="auto" if options.target is None else "cudaq",
        target=options.target or "qpp-cpu",
        shots=options.shots,
        seed=options.seed,
    )
