"""Noise as channels on Bloch coordinates, for the exact engines and for CUDA-Q alike.

Every channel follows a gate of the kind it is attached to. In the Heisenberg picture it acts on
the observables while the table is built, so that a noisy token costs what a noiseless one does.
"""

import difflib
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medqua.core.errors import ConfigError

CHANNELS = ("depolarising", "amplitude_damping", "phase_damping", "bit_flip", "phase_flip")
GATES = ("rx", "ry", "rz", "cx")

TIMES = ("t1", "t2", "one_qubit_time", "two_qubit_time")
PLAIN = ("one_qubit", "two_qubit", *CHANNELS[1:], *TIMES, "readout", "readout_0", "readout_1")
"""Names that `NoiseModel.from_dict` knows."""

PAULIS = (
    np.eye(2, dtype=complex),
    np.array([[0, 1], [1, 0]], dtype=complex),
    np.array([[0, -1j], [1j, 0]]),
    np.diag([1, -1]).astype(complex),
)

Strength = float | tuple[float, ...] | Tensor


@dataclass(frozen=True)
class Channel:
    """One channel after every gate of some kinds.

    Raises:
        ConfigError: An unknown kind or gate, or a strength that is no probability.
    """

    kind: str
    """`depolarising`: every Pauli but the identity with equal probability, `strength` in all (X, Y
    and Z after a rotation; the 15 of both qubits after a CNOT). `amplitude_damping`: decay to zero
    with probability `strength`. `phase_damping`: Kraus operators diag(1, sqrt(1 - s)) and
    diag(0, sqrt(s)). `bit_flip`, `phase_flip`: X or Z with probability `strength`. All but the
    first act on each qubit of a CNOT by itself."""

    strength: Strength
    """A probability; one number, or one for each qubit (for `depolarising` after `cx`: one for
    each CNOT of a layer, in the order of `Ansatz.pairs`). A tensor is differentiated."""

    gates: tuple[str, ...] = GATES
    """Kinds of gate: `rx`, `ry` (which is the encoding too), `rz`, `cx`."""

    def __post_init__(self) -> None:
        """Refuse what is no channel."""
        if self.kind not in CHANNELS:
            raise ConfigError(f"noise channel {self.kind!r}: choose one of {', '.join(CHANNELS)}")
        unknown = [gate for gate in self.gates if gate not in GATES]
        if unknown or not self.gates:
            raise ConfigError(f"noise after gates {unknown}: choose among {', '.join(GATES)}")
        values = torch.as_tensor(self.strength, dtype=torch.float64).detach()
        if values.ndim > 1 or not ((values >= 0) & (values <= 1)).all():
            raise ConfigError(
                f"strength of {self.kind} is {values.tolist()}: it must be a probability, or one "
                "for each qubit"
            )
        if "cx" in self.gates and len(self.gates) > 1 and values.ndim and self.depolarises:
            raise ConfigError(
                "depolarising strengths are for each qubit after rotations but for each CNOT "
                "after 'cx': give them as two channels"
            )

    @property
    def depolarises(self) -> bool:
        """Whether this is the channel that acts on both qubits of a CNOT at once."""
        return self.kind == "depolarising"

    def strengths(self, count: int, like: Tensor) -> Tensor:
        """Return one strength for each of `count` qubits or CNOTs, `[count]`."""
        values = torch.as_tensor(self.strength, dtype=like.dtype, device=like.device)
        if values.ndim and values.shape[0] != count:
            raise ConfigError(
                f"{self.kind} has {values.shape[0]} strengths: the circuit needs one or {count}"
            )
        return values.expand(count)

    def bloch(self, strengths: Tensor) -> Tensor:
        """Return the action on one qubit's coordinates (I, Z, X, Y), `[count, 4, 4]`."""
        s, one = strengths, torch.ones_like(strengths)
        shift = torch.zeros_like(s)
        match self.kind:
            case "depolarising":
                z = x = y = 1 - 4 * s / 3
            case "amplitude_damping":
                shift, z, x, y = s, 1 - s, (1 - s).sqrt(), (1 - s).sqrt()
            case "phase_damping":
                z, x, y = one, (1 - s).sqrt(), (1 - s).sqrt()
            case "bit_flip":
                z, x, y = 1 - 2 * s, one, 1 - 2 * s
            case _:
                z, x, y = one, 1 - 2 * s, 1 - 2 * s
        matrix = torch.diag_embed(torch.stack((one, z, x, y), -1))
        matrix[:, 1, 0] = shift
        return matrix

    def kraus(self, strength: float, qubits: int = 1) -> list[np.ndarray]:
        """Return the Kraus operators, complex; `qubits` is 2 for `depolarising` after a CNOT."""
        s = strength
        if self.depolarises:
            paulis = [
                functools.reduce(np.kron, p) for p in itertools.product(PAULIS, repeat=qubits)
            ]
            errors = len(paulis) - 1
            return [math.sqrt(s / errors if k else 1 - s) * pauli for k, pauli in enumerate(paulis)]
        identity, x, _, z = PAULIS
        match self.kind:
            case "amplitude_damping":
                pair = [np.diag([1, math.sqrt(1 - s)]), math.sqrt(s) * np.eye(2, k=1)]
            case "phase_damping":
                pair = [np.diag([1, math.sqrt(1 - s)]), np.diag([0, math.sqrt(s)])]
            case "bit_flip":
                pair = [math.sqrt(1 - s) * identity, math.sqrt(s) * x]
            case _:
                pair = [math.sqrt(1 - s) * identity, math.sqrt(s) * z]
        return [operator.astype(np.complex128) for operator in pair]


@dataclass(frozen=True)
class NoiseModel:
    """Channels after gates, and errors of the readout.

    Raises:
        ConfigError: A strength that is no probability.
    """

    channels: tuple[Channel, ...] = ()
    """Applied after each gate of their kinds, in this order."""

    readout: tuple[Strength, Strength] = (0.0, 0.0)
    """Probability to read 1 where the qubit is 0, and to read 0 where it is 1; each one number, or
    one for each qubit."""

    def __post_init__(self) -> None:
        """Refuse readout errors that are no probabilities."""
        for value in self.readout:
            values = torch.as_tensor(value, dtype=torch.float64).detach()
            if values.ndim > 1 or not ((values >= 0) & (values <= 1)).all():
                raise ConfigError(f"readout error is {values.tolist()}: it must be a probability")

    @staticmethod
    def depolarising(
        one_qubit: float, two_qubit: float, readout: tuple[float, float] = (0.0, 0.0)
    ) -> "NoiseModel":
        """Return depolarising noise after every gate.

        Args:
            one_qubit: Probability of an error after a rotation.
            two_qubit: Probability of an error after a CNOT.
            readout: See `readout`.
        """
        return NoiseModel(
            (
                Channel("depolarising", one_qubit, ("rx", "ry", "rz")),
                Channel("depolarising", two_qubit, ("cx",)),
            ),
            readout,
        )

    @staticmethod
    def thermal(
        t1: float | Sequence[float],
        t2: float | Sequence[float],
        gate_times: Mapping[str, float],
        readout: tuple[float, float] = (0.0, 0.0),
    ) -> "NoiseModel":
        """Return relaxation during the gates: amplitude damping, then pure dephasing.

        A gate of duration t leaves `exp(-t / T1)` of the excited population and `exp(-t / T2)` of
        the coherence. Qubits that wait are not damped.

        Args:
            t1: Relaxation time T1, one or one for each qubit.
            t2: Dephasing time T2 at most 2 T1, in the unit of `t1`.
            gate_times: Duration of each kind of gate in the same unit; a kind left out is instant.
            readout: See `readout`.

        Raises:
            ConfigError: A time that is not positive, or T2 above 2 T1.
        """
        one = torch.as_tensor(t1, dtype=torch.float64).reshape(-1)
        two = torch.as_tensor(t2, dtype=torch.float64).reshape(-1)
        if not ((one > 0) & (two > 0) & (two <= 2 * one)).all():
            raise ConfigError(f"T1 is {t1} and T2 is {t2}: both positive, and T2 at most 2 T1")
        channels = []
        for gate, time in gate_times.items():
            if not time >= 0:
                raise ConfigError(f"time of {gate} is {time}: it must not be negative")
            decay = 1 - torch.exp(-time / one)
            dephasing = 1 - torch.exp(-2 * time / two + time / one)
            for kind, value in (("amplitude_damping", decay), ("phase_damping", dephasing)):
                each = tuple(value.clamp_min(0.0).tolist())  # T2 = 2 T1 rounds to -1e-17
                channels.append(Channel(kind, each if len(each) > 1 else each[0], (gate,)))
        return NoiseModel(tuple(channels), readout)

    @staticmethod
    def from_dict(strengths: Mapping[str, float]) -> "NoiseModel":
        """Return the noise that a recipe names by plain numbers.

        Args:
            strengths: Any of `one_qubit`, `two_qubit` (probability of a depolarising error after a
                rotation, after a CNOT); `amplitude_damping`, `phase_damping`, `bit_flip`,
                `phase_flip` (probability after every gate, on each of its qubits); `t1` with `t2`
                and `one_qubit_time`, `two_qubit_time` (relaxation, all in one unit); `readout`
                (probability to misread either value), or `readout_0` and `readout_1` (to misread
                a 0, a 1).

        Raises:
            ConfigError: An unknown name, times that are incomplete, both kinds of readout error,
                or a strength that is no probability.
        """
        for name in strengths:
            if name not in PLAIN:
                near = difflib.get_close_matches(name, PLAIN, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ConfigError(f"noise sets {name!r}: needed any of {', '.join(PLAIN)}{hint}")
        channels: tuple[Channel, ...] = ()
        given = [name for name in TIMES if name in strengths]
        if given:
            missing = [name for name in TIMES if name not in strengths]
            if missing:
                raise ConfigError(
                    f"noise sets {', '.join(given)} without {', '.join(missing)}: relaxation needs "
                    "all four"
                )
            one, two = strengths["one_qubit_time"], strengths["two_qubit_time"]
            times = {"rx": one, "ry": one, "rz": one, "cx": two}
            channels += NoiseModel.thermal(strengths["t1"], strengths["t2"], times).channels
        for name, gates in (("one_qubit", ("rx", "ry", "rz")), ("two_qubit", ("cx",))):
            if name in strengths:
                channels += (Channel("depolarising", strengths[name], gates),)
        channels += tuple(
            Channel(name, strengths[name]) for name in CHANNELS[1:] if name in strengths
        )
        if "readout" in strengths and {"readout_0", "readout_1"} & set(strengths):
            raise ConfigError("noise sets readout beside readout_0 or readout_1: give one or two")
        both = strengths.get("readout", 0.0)
        readout = (strengths.get("readout_0", both), strengths.get("readout_1", both))
        return NoiseModel(channels, readout)

    def after(self, gate: str) -> tuple[Channel, ...]:
        """Return the channels that follow gates of one kind."""
        return tuple(channel for channel in self.channels if gate in channel.gates)

    def bloch(self, gate: str, n_qubits: int, like: Tensor) -> Tensor | None:
        """Return what follows a rotation on each qubit, `[n_qubits, 4, 4]`, or None."""
        result = None
        for channel in self.after(gate):
            matrix = channel.bloch(channel.strengths(n_qubits, like))
            result = matrix if result is None else matrix @ result
        return result

    def readout_affine(self, n_qubits: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return (scale, shift), `[n_qubits]`: a readout of <Z_i> is `scale * <Z_i> + shift`."""
        up, down = (
            torch.as_tensor(p, dtype=like.dtype, device=like.device).expand(n_qubits)
            for p in self.readout
        )
        return 1 - up - down, down - up

    @property
    def holds_tensors(self) -> bool:
        """Whether a strength is a tensor, which may be trained."""
        strengths = (*(channel.strength for channel in self.channels), *self.readout)
        return any(isinstance(strength, Tensor) for strength in strengths)

    @property
    def noiseless_readout(self) -> bool:
        """Whether the readout is exact."""
        return not any(torch.as_tensor(p).any() for p in self.readout)
