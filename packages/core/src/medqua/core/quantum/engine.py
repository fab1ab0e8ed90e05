"""What an engine is: parameters in, one program for each depth out.

    compile(theta, depths) -> {depth: program};  program(angles) -> <Z_i>

What depends on the parameters alone (a table, a unitary) is worked out once by `compile`, however
many tokens follow. To add an engine, implement `Engine`, name it in `ENGINES`, and pass the
conformance suite, which runs over that table.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from medqua.core.errors import ConfigError
from medqua.core.quantum.ansatz import Ansatz
from medqua.core.quantum.cost import LARGEST
from medqua.core.quantum.noise import NoiseModel


@runtime_checkable
class Program(Protocol):
    """The circuit of one depth with its parameters bound."""

    def __call__(self, angles: Float[Tensor, "tokens n_qubits"], /) -> Tensor:
        """Return <Z_i>, `[tokens, n_qubits]`, in the dtype and on the device of `angles`.

        `angles` (radian) are float32 or float64. Differentiable once in them and in the
        parameters.
        """


@runtime_checkable
class Engine(Protocol):
    """A way to evaluate the circuit exactly."""

    def compile(
        self, theta: Float[Tensor, "max_depth n_qubits 3"], depths: Sequence[int]
    ) -> Mapping[int, Program]:
        """Return a program for each of `depths`, in the dtype and on the device of `theta`."""


ENGINES = {
    "fourier": "medqua.core.quantum.exact.fourier:FourierEngine",
    "dense": "medqua.core.quantum.exact.dense:DenseEngine",
    "gates": "medqua.core.quantum.exact.gates:GatesEngine",
    "triton": "medqua.core.quantum.exact.triton_fourier:TritonEngine",
    "cudaq": "medqua.core.quantum.runtime.engine:CudaqEngine",
}
"""Engine name -> where it is defined; loaded when first asked for."""

NOISY = ("fourier", "triton", "cudaq")
"""Engines that take a noise model."""


def make_engine(
    name: str,
    ansatz: Ansatz,
    noise: NoiseModel | None = None,
    target: str = "qpp-cpu",
    shots: int | None = None,
    seed: int | None = None,
) -> Engine:
    """Return the engine called `name` for one circuit.

    Args:
        name: One of `ENGINES`.
        ansatz: The circuit.
        noise: Channels and readout errors.
        target: CUDA-Q target of the `cudaq` engine.
        shots: Number of measurements, for targets that answer by measurements alone.
        seed: Seed of those measurements.

    Raises:
        ConfigError: No engine has this name, or it cannot do what is asked.
        QuantumError: CUDA-Q or its target is absent, or lacks a capability.
    """
    if name not in ENGINES:
        names = ", ".join(map(repr, ("auto", *ENGINES)))
        raise ConfigError(f"engine is {name!r}: choose one of {names}")
    if ansatz.n_qubits > LARGEST.get(name, ansatz.n_qubits):
        raise ConfigError(
            f"engine {name!r} takes up to {LARGEST[name]} qubits, not {ansatz.n_qubits}: choose "
            "'auto' or 'cudaq'"
        )
    if noise is not None and name not in NOISY:
        raise ConfigError(f"engine {name!r} is noiseless: choose one of {', '.join(NOISY)}")
    if target != "qpp-cpu" and name != "cudaq":
        raise ConfigError(f"target {target!r} is for engine='cudaq', not for engine={name!r}")
    module, _, attribute = ENGINES[name].partition(":")
    factory = getattr(import_module(module), attribute)
    engine: Engine
    if name == "cudaq":
        engine = factory(ansatz, noise, target, shots=shots, seed=seed)
    else:
        engine = factory(ansatz, noise) if name in NOISY else factory(ansatz)
    return engine
