"""What a referee would put in the circuit's place: classical bottlenecks of as many parameters.

Each takes the angles of the routed tokens and returns n_q numbers for each, as the circuit does,
so that router, shadow, projections, tokens and training stay what they are and one thing changes.
"""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medqua.core.errors import ConfigError, ShapeError
from medqua.core.quantum.bottleneck import VariationalBottleneck


def live_angles(n_qubits: int, max_depth: int) -> int:
    """Number of rotation angles of the circuit that act on its values.

    Three for each qubit and layer, but for the RZ of the last layer: it commutes with the readout.
    """
    return (3 * max_depth - 1) * n_qubits


class ClassicalBottleneck(nn.Module, ABC):
    """The interface of the circuit: angles and depths in, n_q numbers out.

    Blind to depth: a token's depth is taken, so that the depth policy runs beside a control as it
    does beside the circuit, and changes nothing. Arithmetic is float32, in autocast too, and
    float64 when `angles` are. Every parameter takes part in the graph of an empty batch.

    Args:
        n_qubits: n_q, width of the interface, at least 2.
        max_depth: L_max of the circuit whose number of parameters is matched, at least 1.

    Raises:
        ConfigError: A size below those.
    """

    def __init__(self, n_qubits: int, max_depth: int) -> None:
        super().__init__()
        if n_qubits < 2 or max_depth < 1:
            raise ConfigError(
                f"n_qubits = {n_qubits}, max_depth = {max_depth}: needed at least 2 and 1"
            )
        self.n_qubits, self.max_depth = n_qubits, max_depth

    def forward(self, angles: Tensor, depth: int | Tensor) -> Float[Tensor, "tokens n_qubits"]:
        """Return the values of every token.

        Args:
            angles: phi, `[tokens, n_qubits]` (radian), any float dtype; `tokens` may be 0.
            depth: As the circuit takes it, one `int` or int64 `[tokens]`; not used.

        Returns:
            `[tokens, n_qubits]`; float64 if `angles` are, else float32.

        Raises:
            ShapeError: A wrong shape.
        """
        n = self.n_qubits
        if angles.ndim != 2 or angles.shape[1] != n or not angles.is_floating_point():
            raise ShapeError(
                f"angles are {angles.dtype} of shape {list(angles.shape)}: the bottleneck needs "
                f"floating point [tokens, {n}]"
            )
        if isinstance(depth, Tensor) and depth.shape != angles.shape[:1]:
            raise ShapeError(
                f"depth is of shape {list(depth.shape)}: needed one for each of the "
                f"{angles.shape[0]} tokens, or a single int"
            )
        with torch.autocast(angles.device.type, enabled=False):
            return self.values(angles if angles.dtype == torch.float64 else angles.float())

    @abstractmethod
    def values(self, angles: Float[Tensor, "tokens n_qubits"]) -> Float[Tensor, "tokens n_qubits"]:
        """The function of the angles that a control is."""

    def extra_repr(self) -> str:
        """Show the sizes, and the parameters beside those of the circuit that they match."""
        own = sum(p.numel() for p in self.parameters())
        return (
            f"n_qubits={self.n_qubits}, parameters={own}, "
            f"circuit={live_angles(self.n_qubits, self.max_depth)}"
        )


class MLPBottleneck(ClassicalBottleneck):
    """A perceptron of one hidden layer: `tanh(W2 tanh(W1 phi + b1) + b2)`.

    Bounded as expectation values are. The hidden width h >= 1 is that whose number of parameters,
    h (2 n_q + 1) + n_q, comes nearest to the circuit's; the smaller of two equally near.

    Args:
        n_qubits: n_q.
        max_depth: L_max of the circuit that it stands for.
    """

    def __init__(self, n_qubits: int, max_depth: int) -> None:
        super().__init__(n_qubits, max_depth)
        exact = (live_angles(n_qubits, max_depth) - n_qubits) / (2 * n_qubits + 1)
        width = max(1, math.ceil(exact - 0.5))
        self.hidden = nn.Linear(n_qubits, width)
        self.readout = nn.Linear(width, n_qubits)

    def values(self, angles: Float[Tensor, "tokens n_qubits"]) -> Float[Tensor, "tokens n_qubits"]:
        """Values in (-1, 1)."""
        return _apply(self.readout, _apply(self.hidden, angles).tanh()).tanh()


class FourierBottleneck(ClassicalBottleneck):
    r"""Random Fourier features with a trained linear read-out: `W cos(Omega phi + b) + c`.

    The circuit encodes every angle once, so its values are a Fourier series in phi with frequencies
    in {-1, 0, 1}^n_q. The control draws 3 L_max - 2 of those, uniformly and none of them zero, with
    phases uniform in [0, 2 pi); they are buffers, saved and never trained. W and c then have as
    many parameters as the circuit has live angles, exactly. Values are not bounded.

    Rahimi and Recht 2007; for quantum models Landman et al. 2022, https://arxiv.org/abs/2210.13200.

    Args:
        n_qubits: n_q.
        max_depth: L_max of the circuit that it stands for.
    """

    frequencies: Tensor
    """Omega, `[features, n_qubits]` of -1, 0 and 1."""

    phases: Tensor
    """b, `[features]` (radian)."""

    def __init__(self, n_qubits: int, max_depth: int) -> None:
        super().__init__(n_qubits, max_depth)
        features = 3 * max_depth - 2
        code = torch.randint(1, 3**n_qubits, (features, 1))  # 0 is the frequency zero
        digits = code // 3 ** torch.arange(n_qubits) % 3
        self.register_buffer("frequencies", (digits - 3 * (digits == 2)).float())
        self.register_buffer("phases", torch.rand(features) * 2 * math.pi)
        self.readout = nn.Linear(features, n_qubits)

    def values(self, angles: Float[Tensor, "tokens n_qubits"]) -> Float[Tensor, "tokens n_qubits"]:
        """Values of the series; at the start at most `sqrt(features) + 1` in size."""
        dtype = angles.dtype
        waves = (angles @ self.frequencies.to(dtype).T + self.phases.to(dtype)).cos()
        return _apply(self.readout, waves)


def freeze(circuit: VariationalBottleneck) -> VariationalBottleneck:
    """Make a circuit's angles a buffer: saved and moved with it, and never trained.

    Args:
        circuit: Changed in place.

    Returns:
        The same circuit, without a parameter.
    """
    theta = circuit.theta.detach()
    del circuit.theta
    circuit.register_buffer("theta", theta)
    return circuit


def _apply(linear: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer in the dtype of its input."""
    return nn.functional.linear(x, linear.weight.to(x.dtype), linear.bias.to(x.dtype))
