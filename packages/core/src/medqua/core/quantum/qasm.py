"""The circuit as an OpenQASM 3 program, for other compilers, simulators and machines.

Angles that are not given stay inputs of the program: a trained `theta` can be written into it
while every token still brings its own `phi`.
"""

import math
from typing import TYPE_CHECKING

from medqua.core.errors import ShapeError
from medqua.core.quantum.ansatz import Ansatz, Gate

if TYPE_CHECKING:  # a program without values is written without torch
    from torch import Tensor


def to_qasm(
    ansatz: Ansatz,
    depth: int | None = None,
    *,
    angles: "Tensor | None" = None,
    theta: "Tensor | None" = None,
    measure: bool = True,
) -> str:
    """Return an OpenQASM 3 program of the circuit with `depth` layers.

    Gates are those of `stdgates.inc`, in the order of `Ansatz.gates`; what is left out there is
    left out here. Inputs are `input float[64] phi_i` and `theta_l_i_k` (radian), in the order in
    which the gates use them; `bit[n] c` holds the outcome of qubit i in `c[i]`.

    Args:
        ansatz: The circuit.
        depth: Number of layers; `max_depth` by default.
        angles: phi of one token (radian), `[n_qubits]`; inputs of the program if None.
        theta: Parameters (radian), `[max_depth, n_qubits, 3]`; inputs of the program if None.
        measure: Whether the program ends by measuring every qubit.

    Raises:
        ConfigError: `depth` is out of range.
        ShapeError: Angles of a wrong shape, or not finite.

    Source: OpenQASM 3.0 live specification, sections "Standard library" and "Input/output".
    """
    phi = _checked("angles", angles, (ansatz.n_qubits,))
    parameters = _checked("theta", theta, ansatz.theta_shape)
    gates = ansatz.gates(depth)
    inputs = [
        f"input float[64] {_symbol(gate)};"
        for gate in gates
        if gate.parameter and (phi if len(gate.parameter) == 1 else parameters) is None
    ]
    return "\n".join(
        (
            "OPENQASM 3.0;",
            'include "stdgates.inc";',
            f"// encoding {ansatz.encoding}, entangler {ansatz.entangler}, "
            f"layers {ansatz.max_depth if depth is None else depth}",
            *inputs,
            f"qubit[{ansatz.n_qubits}] q;",
            *([f"bit[{ansatz.n_qubits}] c;"] if measure else []),
            *(_statement(gate, phi, parameters) for gate in gates),
            *(["c = measure q;"] if measure else []),
            "",
        )
    )


def _statement(gate: Gate, phi: "Tensor | None", theta: "Tensor | None") -> str:
    """Return the statement of one gate."""
    wires = ", ".join(f"q[{qubit}]" for qubit in gate.qubits)
    if gate.parameter is None:
        return f"{gate.name} {wires};"
    source = phi if len(gate.parameter) == 1 else theta
    value = _symbol(gate) if source is None else repr(source[gate.parameter].item())
    return f"{gate.name}({value}) {wires};"


def _symbol(gate: Gate) -> str:
    """Return the name of the input that a gate's angle is: `phi_0` or `theta_1_0_2`."""
    where = gate.parameter or ()
    return "_".join(("phi" if len(where) == 1 else "theta", *map(str, where)))


def _checked(name: str, values: "Tensor | None", shape: tuple[int, ...]) -> "Tensor | None":
    """Return values in float64 on the host, or refuse them."""
    if values is None:
        return None
    import torch

    if tuple(values.shape) != shape or not values.is_floating_point():
        raise ShapeError(
            f"{name} are {values.dtype} of shape {list(values.shape)}: this circuit needs "
            f"floating point {list(shape)}"
        )
    values = values.detach().to("cpu", torch.float64)
    if not math.isfinite(values.sum().item()) and not torch.isfinite(values).all():
        raise ShapeError(f"{name} hold NaN or infinity: a program needs finite angles")
    return values
