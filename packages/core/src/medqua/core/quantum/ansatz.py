"""The variational circuit as data: the one definition that every engine and kernel reads.

    |0> -- encoding(phi_i) -- [ RX RY RZ  on every qubit, then the entangler ] x depth -- <Z_i>

Qubit 0 is the first factor of every tensor product and the first character of every bit string.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from medqua.core.errors import ConfigError

ENCODINGS = ("ry", "rx")
ENTANGLERS = ("ring", "line", "all", "none")

ROTATIONS = ("rx", "ry", "rz")
"""Rotations of one layer in the order they act; the last axis of `theta`."""

NOT_FINITE = (
    "angles hold NaN or infinity: look for a loss that diverged or a layer that overflowed "
    "before the bottleneck"
)
"""What is told of angles that no circuit can be given."""


@dataclass(frozen=True)
class Gate:
    """One gate of the circuit."""

    name: str
    """`rx`, `ry` or `rz`, the rotation `exp(-i angle P / 2)`; or `cx`, the controlled NOT."""

    qubits: tuple[int, ...]
    """The qubit, or (control, target)."""

    parameter: tuple[int, ...] | None = None
    """Where the angle is found: `(i,)` is `phi[i]`, `(l, i, k)` is `theta[l, i, k]`."""

    def __str__(self) -> str:
        """Print as `ry(phi[0]) q0` or `cx q0, q1`."""
        wires = ", ".join(f"q{q}" for q in self.qubits)
        if self.parameter is None:
            return f"{self.name} {wires}"
        source = "phi" if len(self.parameter) == 1 else "theta"
        return f"{self.name}({source}[{', '.join(map(str, self.parameter))}]) {wires}"


@dataclass(frozen=True)
class Ansatz:
    """A hardware-efficient circuit of which every layer prefix is a circuit of its own (Eq. 1).

    A circuit of depth `d` shares the first `d` layers with every deeper one, so that tokens of
    different depth are served by one set of parameters. The RZ of a circuit's last layer turns
    about the axis that is read out, through CNOTs that map products of Z to products of Z: it
    cannot change any <Z_i> and is left out.

    Raises:
        ConfigError: A size or an option outside what is listed below.
    """

    n_qubits: int
    """Number of qubits, 2 to 24."""

    max_depth: int
    """Largest number of layers, at least 1."""

    encoding: str = "ry"
    """Rotation of each zero state by its angle phi (radian)."""

    entangler: str = "ring"
    """CNOTs after each layer's rotations: `ring` (i, i+1 mod n), which for two qubits is (0, 1)
    followed by (1, 0); `line` the same without the last; `all` every pair i < j; `none`."""

    def __post_init__(self) -> None:
        """Refuse what no engine can run."""
        for name, low, high in (("n_qubits", 2, 24), ("max_depth", 1, 1000)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ConfigError(f"{name} is {value!r}: it must be an integer in {low}..{high}")
        for name, options in (("encoding", ENCODINGS), ("entangler", ENTANGLERS)):
            if getattr(self, name) not in options:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}: choose one of "
                    + ", ".join(repr(option) for option in options)
                )

    @property
    def theta_shape(self) -> tuple[int, int, int]:
        """Shape of the parameters, `[max_depth, n_qubits, 3]` (RX, RY, RZ angles, radian)."""
        return (self.max_depth, self.n_qubits, len(ROTATIONS))

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """(control, target) of the CNOTs of one layer, in the order they act."""
        n = self.n_qubits
        match self.entangler:
            case "ring":
                return tuple((i, (i + 1) % n) for i in range(n))
            case "line":
                return tuple((i, i + 1) for i in range(n - 1))
            case "all":
                return tuple((i, j) for i in range(n) for j in range(i + 1, n))
            case _:
                return ()

    def dead(self, depth: int | None = None) -> tuple[tuple[int, int, int], ...]:
        """Return the indices into `theta` that cannot change any <Z_i> at `depth`.

        Args:
            depth: Number of layers; `max_depth` by default, which gives the parameters that are
                dead in every circuit of this ansatz.
        """
        depth = self.max_depth if depth is None else self.checked(depth)
        last = tuple((depth - 1, i, 2) for i in range(self.n_qubits)) if depth else ()
        unused = tuple(
            (layer, i, k)
            for layer in range(depth, self.max_depth)
            for i in range(self.n_qubits)
            for k in range(len(ROTATIONS))
        )
        return last + unused

    def encoder(self) -> tuple[Gate, ...]:
        """Return the encoding gates, one a qubit."""
        return tuple(Gate(self.encoding, (i,), (i,)) for i in range(self.n_qubits))

    def layers(self, depth: int) -> Iterator[Gate]:
        """Yield the gates after the encoding of the circuit with `depth` layers, in order."""
        for layer in range(self.checked(depth)):
            last = layer == depth - 1
            for i in range(self.n_qubits):
                for k, name in enumerate(ROTATIONS[:2] if last else ROTATIONS):
                    yield Gate(name, (i,), (layer, i, k))
            for pair in self.pairs:
                yield Gate("cx", pair)

    def gates(self, depth: int | None = None) -> tuple[Gate, ...]:
        """Return every gate of the circuit with `depth` layers (`max_depth` by default)."""
        return (*self.encoder(), *self.layers(self.max_depth if depth is None else depth))

    def checked(self, depth: int) -> int:
        """Return `depth`, or refuse it.

        Raises:
            ConfigError: `depth` is outside 0..max_depth.
        """
        if not 0 <= depth <= self.max_depth:
            raise ConfigError(
                f"depth is {depth}: this ansatz has circuits of 0..{self.max_depth} layers"
            )
        return depth

    def __str__(self) -> str:
        """Print the deepest circuit, one gate a line, dead parameters named."""
        head = (
            f"Ansatz: {self.n_qubits} qubits, depth 0..{self.max_depth}, encoding {self.encoding}, "
            f"entangler {self.entangler}; readout <Z> of every qubit"
        )
        dead = "dead, left out: " + ", ".join(f"theta{list(index)}" for index in self.dead())
        return "\n".join((head, *(f"  {gate}" for gate in self.gates()), dead))
