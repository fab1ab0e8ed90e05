"""The circuit as a picture: text for a terminal, or a matplotlib figure.

q0: ─┤RY φ0├─┤RX θ000├─┤RY θ001├─●─⊕──⟨Z⟩
│ │
q1: ─┤RY φ1├─┤RX θ010├─┤RY θ011├─⊕─●──⟨Z⟩
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medqua.core.errors import ConfigError
from medqua.core.quantum.ansatz import Ansatz, Gate

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    Theta = Float[Tensor, "max_depth n_qubits 3"] | Float[np.ndarray, "max_depth n_qubits 3"]

COLOURS = {"rx": "#d8e6f5", "ry": "#dcefdc", "rz": "#f5e6d3", "phi": "#ece4f5"}
"""Fill of a gate's box in a figure; `phi` is the encoding."""

ROW = 18
"""Columns of gates in one row of a figure: longer circuits are folded."""


def diagram(
    ansatz: Ansatz,
    depth: int | None = None,
    *,
    theta: "Theta | None" = None,
    width: int = 100,
) -> str:
    """Return the circuit drawn in text, folded to the width of a terminal.

    Args:
        ansatz: The circuit.
        depth: Number of layers; `max_depth` by default.
        theta: Values to show in the place of names (radian), `[max_depth, n_qubits, 3]`.
        width: Number of characters in a line; one column of gates is drawn however narrow it is.

    Raises:
        ConfigError: `depth` is out of range.
    """
    n = ansatz.n_qubits
    margin = len(f"q{n - 1}: ─")
    columns = [_text_column(gates, n, theta) for gates in moments(ansatz, depth)]
    columns.append([line for _ in range(n) for line in ("─⟨Z⟩", "    ")])
    rows: list[list[list[str]]] = [[]]
    for column in columns:
        used = margin + sum(len(drawn[0]) for drawn in rows[-1])
        if rows[-1] and used + len(column[0]) > width:
            rows.append([])
        rows[-1].append(column)
    blocks = []
    for row in rows:
        lines = []
        for k in range(2 * n - 1):
            label = f"q{k // 2}: ".ljust(margin - 1) + "─" if k % 2 == 0 else ""
            lines.append((label.ljust(margin) + "".join(c[k] for c in row)).rstrip())
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def figure(
    ansatz: Ansatz,
    depth: int | None = None,
    *,
    theta: "Theta | None" = None,
) -> "Figure":
    """Return the circuit as a matplotlib figure, to be saved as PNG, SVG or PDF.

    Args:
        ansatz: The circuit.
        depth: Number of layers; `max_depth` by default.
        theta: Values to show in the place of names (radian), `[max_depth, n_qubits, 3]`.

    Raises:
        ConfigError: `depth` is out of range, or matplotlib is absent.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            f"a picture of the circuit needs matplotlib ({error}): install medqua-core[plots], or "
            "choose the format text"
        ) from error
    n, columns = ansatz.n_qubits, moments(ansatz, depth)
    rows = [columns[k : k + ROW] for k in range(0, len(columns), ROW)]
    wide = max(map(len, rows)) + 1.6
    high = len(rows) * (n + 0.6)
    result = Figure((0.62 * wide + 0.3, 0.62 * high + 0.5), dpi=150, layout="constrained")
    axes = result.subplots()
    axes.set(xlim=(-1.1, wide - 0.5), ylim=(high - 0.8, -0.8), aspect="equal")
    axes.axis("off")
    layers = ansatz.max_depth if depth is None else depth
    axes.set_title(
        f"{n} qubits, {layers} layer{'s' * (layers != 1)}, encoding {ansatz.encoding}, "
        f"entangler {ansatz.entangler}",
        fontsize=9,
    )
    for k, row in enumerate(rows):
        top = k * (n + 0.6)
        ends = k == len(rows) - 1
        for q in range(n):
            end = len(row) - 0.4
            axes.plot([-0.6, end], [top + q] * 2, color="0.35", linewidth=0.8, zorder=1)
            axes.text(-0.7, top + q, f"q{q}", ha="right", va="center", fontsize=8)
            if ends:
                readout = f"$\\langle Z_{{{q}}} \\rangle$"
                axes.text(end + 0.05, top + q, readout, va="center", fontsize=8)
        for x, gates in enumerate(row):
            for gate in gates:
                _paint(axes, gate, x, top, theta)
    return result


def moments(ansatz: Ansatz, depth: int | None = None) -> list[list[Gate]]:
    """Return the gates in columns: each as early as no wire between its qubits is taken.

    Args:
        ansatz: The circuit.
        depth: Number of layers; `max_depth` by default.
    """
    columns: list[list[Gate]] = []
    free = [0] * ansatz.n_qubits
    for gate in ansatz.gates(depth):
        span = range(min(gate.qubits), max(gate.qubits) + 1)
        column = max(free[q] for q in span)
        if column == len(columns):
            columns.append([])
        columns[column].append(gate)
        for q in span:
            free[q] = column + 1
    return columns


def _label(gate: Gate, theta: "Theta | None") -> tuple[str, str]:
    """Return the name of a rotation and that of its angle."""
    where = gate.parameter or ()
    if len(where) > 1 and theta is not None:
        return gate.name.upper(), f"{theta[where].item():.3g}"
    wide = any(index > 9 for index in where)
    index = ("," if wide else "").join(map(str, where))
    return gate.name.upper(), ("φ" if len(where) == 1 else "θ") + index


def _text_column(gates: Sequence[Gate], n: int, theta: "Theta | None") -> list[str]:
    """Return the lines of one column: even ones are wires, odd ones the space below them."""
    cells, below = ["─"] * n, [" "] * n
    for gate in gates:
        if gate.parameter is not None:
            cells[gate.qubits[0]] = f"┤{' '.join(_label(gate, theta))}├"
            continue
        for q in range(min(gate.qubits), max(gate.qubits)):
            below[q] = "│"
            cells[q] = "┼"
        for q, mark in zip(gate.qubits, "●⊕", strict=True):
            cells[q] = mark
    width = max(map(len, cells)) + 1
    lines = []
    for cell, space in zip(cells, below, strict=True):
        lines += [_centred(cell, width, "─"), _centred(space, width, " ")]
    return lines


def _centred(cell: str, width: int, fill: str) -> str:
    """Return a cell filled up to `width`; one character always stands at the same place."""
    left = max(0, (width - len(cell)) // 2)
    return fill * left + cell + fill * (width - len(cell) - left)


def _paint(axes: "Axes", gate: Gate, x: int, top: float, theta: "Theta | None") -> None:
    """Paint one gate into a figure."""
    from matplotlib.patches import Circle, FancyBboxPatch

    if gate.parameter is None:
        control, target = (top + q for q in gate.qubits)
        ink = "#2b4c7e"
        axes.plot([x, x], [control, target], color=ink, linewidth=1.1, zorder=2)
        axes.add_patch(Circle((x, control), 0.09, color=ink, zorder=3))
        axes.add_patch(Circle((x, target), 0.19, facecolor="white", edgecolor=ink, zorder=3))
        for dx, dy in ((0.19, 0.0), (0.0, 0.19)):
            axes.plot([x - dx, x + dx], [target - dy, target + dy], color=ink, lw=1.1, zorder=4)
        return
    y = top + gate.qubits[0]
    fill = COLOURS["phi" if len(gate.parameter) == 1 else gate.name]
    box = FancyBboxPatch(
        (x - 0.36, y - 0.3), 0.72, 0.6, "round,pad=0,rounding_size=0.08", lw=0.7, zorder=3
    )
    box.set(facecolor=fill, edgecolor="0.35")
    axes.add_patch(box)
    name, angle = _label(gate, theta)
    axes.text(x, y - 0.1, name, ha="center", va="center", fontsize=6.5, zorder=4)
    axes.text(x, y + 0.14, angle, ha="center", va="center", fontsize=5.5, zorder=4)
