"""The report's plots, from its numbers alone. Importing this module imports matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medqua.core.quantum.ansatz import Ansatz
from medqua.core.quantum.study import theory
from medqua.core.quantum.study.cells import INITIALISATIONS

TITLES = {
    "uniform": "θ uniform",
    "initial": "θ as initialised",
    "local": "readouts ⟨Zᵢ⟩",
    "global": "product of all Z",
}

EXACT: dict[str, Any] = {
    "linestyle": "none",
    "marker": "D",
    "markersize": 7,
    "markerfacecolor": "none",
    "markeredgecolor": "black",
    "label": "exact, 1 layer",
}
"""How values of a closed form at single points are shown."""

Summary = dict[str, Any]


def write(summary: Summary, folder: Path) -> None:
    """Write every plot into `folder` as PNG."""
    for name, draw in (
        ("gradient-qubits", gradient_by_qubits),
        ("gradient-depth", gradient_by_depth),
        ("entanglement", entanglement),
        ("expressibility", expressibility),
        ("spectrum", spectrum),
    ):
        draw(summary).savefig(folder / f"{name}.png", dpi=110)


def gradient_by_qubits(summary: Summary) -> Figure:
    """Plot the variance of the derivatives against the number of qubits."""
    figure, panels = _panels(2, "number of qubits n", "variance of a derivative")
    qubits = np.array(summary["study"]["qubits"])
    depths = _some(summary["study"]["depths"], 6)
    for row, name in zip(panels, ("local", "global"), strict=True):
        for axes, init in zip(row, INITIALISATIONS, strict=True):
            for colour, depth in zip(_colours(len(depths)), depths, strict=True):
                cells = _cells(summary, init=init, depth=depth)
                _with_errors(axes, qubits, cells, name, colour, f"{depth}")
            formula = [summary["theory"][str(n)]["variance"] for n in qubits]
            axes.plot(qubits, formula, "k--", lw=1.2, label="2-design", zorder=5)
            if 1 in depths:
                exact = [c["variance"][name]["exact"] for c in _cells(summary, init=init, depth=1)]
                axes.plot(qubits, exact, **EXACT)
            axes.set(yscale="log", title=f"{TITLES[init]}, {TITLES[name]}", xticks=qubits[::2])
    _legend(figure, panels[0][0], "layers")
    return figure


def gradient_by_depth(summary: Summary) -> Figure:
    """Plot the variance of the derivatives against the depth, both initialisations side by side."""
    figure, panels = _panels(1, "layers", "variance of a derivative")
    depths = np.array(summary["study"]["depths"])
    qubits = _some(summary["study"]["qubits"], 5)
    for axes, init in zip(panels[0], INITIALISATIONS, strict=True):
        for colour, n in zip(_colours(len(qubits)), qubits, strict=True):
            cells = _cells(summary, init=init, qubits=n)
            _with_errors(axes, depths, cells, "local", colour, f"{n}")
            axes.axhline(summary["theory"][str(n)]["variance"], color=colour, ls="--", lw=0.8)
        axes.set(yscale="log", title=f"{TITLES[init]}, {TITLES['local']}")
        _depth_axis(axes, depths)
    _legend(figure, panels[0][0], "qubits\n(dashed: 2-design)")
    return figure


def entanglement(summary: Summary) -> Figure:
    """Plot the Meyer-Wallach entanglement against the depth, and its mean over Haar states."""
    figure, panels = _panels(1, "layers", "Meyer-Wallach entanglement")
    depths = np.array(summary["study"]["depths"])
    qubits = _some(summary["study"]["qubits"], 5)
    for axes, init in zip(panels[0], INITIALISATIONS, strict=True):
        for colour, n in zip(_colours(len(qubits)), qubits, strict=True):
            values = [c["entanglement"]["mean"] for c in _cells(summary, init=init, qubits=n)]
            axes.plot(depths, values, "o-", color=colour, ms=3.5, lw=1.2, label=f"{n}")
            axes.axhline(summary["theory"][str(n)]["entanglement"], color=colour, ls="--", lw=0.8)
        axes.set(ylim=(0, 1.03), title=TITLES[init])
        _depth_axis(axes, depths)
    _legend(figure, panels[0][0], "qubits\n(dashed: Haar mean)")
    return figure


def expressibility(summary: Summary) -> Figure:
    """Plot the divergence of fidelities from those of Haar states, in bins these fill equally."""
    figure, panels = _panels(1, "layers", "divergence from Haar states (nat)")
    depths = np.array(summary["study"]["depths"])
    qubits = _some(summary["study"]["qubits"], 5)
    floors = [cell["expressibility"]["equal"]["floor"] for cell in summary["cells"]]
    for axes, init in zip(panels[0], INITIALISATIONS, strict=True):
        for colour, n in zip(_colours(len(qubits)), qubits, strict=True):
            cells = _cells(summary, init=init, qubits=n)
            values = [c["expressibility"]["equal"]["divergence"] for c in cells]
            axes.plot(depths, values, "o-", color=colour, ms=3.5, lw=1.2, label=f"{n}")
        axes.axhspan(min(floors), max(floors), color="0.85", zorder=0, label="Haar sample")
        axes.set(yscale="log", title=TITLES[init])
        _depth_axis(axes, depths)
    _legend(figure, panels[0][0], "qubits")
    return figure


def spectrum(summary: Summary) -> Figure:
    """Plot the power of <Z_i> at each degree, for the most qubits it was taken of."""
    figure, panels = _panels(1, "degree: angles that a term depends on", "mean power of ⟨Zᵢ⟩")
    study = summary["study"]
    sizes = [n for n in study["qubits"] if n <= study["spectrum_qubits"]]
    depths = _some(study["depths"], 6)
    for axes, init in zip(panels[0], INITIALISATIONS, strict=True):
        if not sizes:
            axes.text(0.5, 0.5, "not taken at these sizes", ha="center", transform=axes.transAxes)
            continue
        n = max(sizes)
        degrees = np.arange(1, n + 1)
        for colour, depth in zip(_colours(len(depths)), depths, strict=True):
            (cell,) = _cells(summary, init=init, qubits=n, depth=depth)
            power = _positive(cell["spectrum"][1:])
            axes.plot(degrees, power, "o-", color=colour, ms=3.5, lw=1.2, label=f"{depth}")
        formula = summary["theory"][str(n)]["spectrum"][1:]
        axes.plot(degrees, formula, "k--", lw=1.2, label="2-design", zorder=5)
        if 1 in depths:
            ansatz = Ansatz(n, 1, encoding=study["encoding"], entangler=study["entangler"])
            exact = theory.depth_one_spectrum(
                ansatz, None if init == "uniform" else study["initial_std"]
            )
            axes.plot(degrees, _positive(exact[1:]), **EXACT)
        axes.set(yscale="log", title=f"{TITLES[init]}, {n} qubits", xticks=degrees)
    if sizes:  # what is all but nothing runs off the plot
        panels[0][0].set_ylim(bottom=summary["theory"][str(max(sizes))]["spectrum"][-1] / 30)
    _legend(figure, panels[0][0], "layers")
    return figure


def _panels(rows: int, x: str, y: str) -> tuple[Figure, np.ndarray]:
    """Return a figure of `rows` x 2 panels that share their axes."""
    figure = Figure((9.0, 0.6 + 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False)
    for axes in panels.flat:
        axes.grid(visible=True, which="major", color="0.9", lw=0.6)
        axes.title.set_fontsize(10)
    figure.supxlabel(x, fontsize=10)
    figure.supylabel(y, fontsize=10)
    return figure, panels


def _legend(figure: Figure, axes: Axes, title: str) -> None:
    """Put the legend of one panel to the right of all."""
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda k: not labels[k].isdigit())  # theory comes last
    legend = figure.legend(
        [handles[k] for k in order],
        [labels[k] for k in order],
        title=title,
        loc="outside right upper",
        fontsize=9,
        frameon=False,
    )
    legend.get_title().set_fontsize(9)


def _depth_axis(axes: Axes, depths: np.ndarray) -> None:
    """Count layers in doublings."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(depths, [str(depth) for depth in depths], fontsize=9)
    axes.minorticks_off()


def _with_errors(
    axes: Axes, x: np.ndarray, cells: list[Summary], name: str, colour: Any, label: str
) -> None:
    """Plot variances with bars of two standard errors."""
    means = [cell["variance"][name]["mean"] for cell in cells]
    errors = [2 * cell["variance"][name]["error"] for cell in cells]
    axes.errorbar(x, means, errors, fmt="o-", color=colour, ms=3.5, lw=1.2, capsize=2, label=label)


def _positive(power: Any) -> np.ndarray:
    """Return powers with NaN where they are 0 up to rounding: a logarithm leaves those out."""
    values = np.asarray(power, dtype=float)
    return np.where(values > 1e-20, values, np.nan)


def _cells(summary: Summary, **wanted: Any) -> list[Summary]:
    """Return the cells with these values, in the order of the grid."""
    return [c for c in summary["cells"] if all(c[key] == value for key, value in wanted.items())]


def _some(values: Sequence[int], count: int) -> list[int]:
    """Return at most `count` of the values, spread evenly, the first and the last among them."""
    places = np.unique(np.linspace(0, len(values) - 1, count).round().astype(int))
    return [values[k] for k in places]


def _colours(count: int) -> np.ndarray:
    """Return colours from dark to light."""
    return np.asarray(mpl.colormaps["viridis"](np.linspace(0.05, 0.88, count)))
