"""The trainability report: every cell of the grid, fits, closed forms, plots and a page of text."""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from medqua.core.errors import ConfigError
from medqua.core.quantum.study import theory
from medqua.core.quantum.study.cells import (
    INITIALISATIONS,
    Cell,
    Study,
    load_or_measure,
    open_folder,
)

REPEATS = 2000
"""Bootstrap repetitions of a fitted rate."""

OBSERVABLES = ("local", "global")
"""The mean over the readouts Z_i; the product of all Z."""


def run(study: Study, output: Path, console: Console) -> dict[str, Any]:
    """Measure what is not there yet, and write the report.

    Args:
        study: What to measure.
        output: Folder of `report.md`, `report.json`, the plots and the cells. A run that was
            stopped goes on after the last finished cell.
        console: Where progress is shown.

    Returns:
        What `report.json` holds.

    Raises:
        ConfigError: `output` holds another study or cannot be written, or matplotlib is absent.
    """
    try:
        from medqua.core.quantum.study import plots
    except ImportError as error:
        raise ConfigError(
            f"the report's plots need matplotlib ({error}): install medqua-core[plots]"
        ) from error
    folder = open_folder(study, output)
    grid = list(study.grid())
    steps = track(grid, "random circuits", console=console, transient=True)
    cells = [load_or_measure(study, folder, cell) for cell in steps]
    summary = summarise(study, cells)
    (output / "report.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    plots.write(summary, output)
    (output / "report.md").write_text(page(summary), encoding="utf-8")
    return summary


def summarise(study: Study, cells: Sequence[Cell]) -> dict[str, Any]:
    """Return means with standard errors, fitted rates, and ratios to the closed forms."""
    rows = []
    for cell in cells:
        row = {key: value for key, value in cell.items() if key != "squares"}
        std = None if cell["init"] == "uniform" else study.initial_std
        ansatz = study.ansatz(cell["qubits"], cell["depth"])
        exact = theory.depth_one_variances(ansatz, std) if cell["depth"] == 1 else None
        row["variance"] = {}
        for name in OBSERVABLES:
            each = np.array(cell["squares"][name])
            row["variance"][name] = {
                "mean": each.mean(),
                "error": each.std(ddof=1) / len(each) ** 0.5,
                "exact": None if exact is None else exact[name],
            }
        rows.append(row)
    deepest = max(study.depths)
    rates = {}
    for init in INITIALISATIONS if len(study.qubits) > 1 else ():
        deep = [c for c in cells if c["depth"] == deepest and c["init"] == init]
        for name in OBSERVABLES:
            squares = [np.array(cell["squares"][name]) for cell in deep]
            rates[f"{name}, {init}"] = rate(study.qubits, squares, study.seed)
    return {
        "study": asdict(study),
        "made": {
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{_processor()}, {platform.system()} {platform.machine()}",
            "seconds": sum(cell["seconds"] for cell in cells),
            "versions": {name: version(name) for name in ("medqua-core", "torch", "numpy")},
        },
        "rates": rates,
        "theory": {
            str(n): {
                "variance": theory.two_design_variance(n),
                "entanglement": theory.haar_meyer_wallach(n),
                "spectrum": theory.two_design_spectrum(n).tolist(),
            }
            for n in study.qubits
        },
        "cells": rows,
    }


def rate(qubits: Sequence[int], squares: Sequence[np.ndarray], seed: int) -> dict[str, float]:
    """Fit `variance ~ 2^(-rate n)` and give a 95 % percentile bootstrap interval.

    Least squares on the logarithm of the cells' means; the circuits of every cell are resampled.

    Args:
        qubits: Number of qubits of each cell, at least two different ones.
        squares: Squared derivatives of each cell's circuits.
        seed: Of the bootstrap.

    Returns:
        `value`, `low`, `high`, and `two_design`: the same fit to the formula at the same sizes.
    """
    generator = np.random.default_rng(seed)
    resampled = np.stack(
        [
            [generator.choice(values, len(values)).mean() for _ in range(REPEATS)]
            for values in squares
        ]
    )
    means = np.array([values.mean() for values in squares])
    formula = [theory.two_design_variance(n) for n in qubits]
    slopes = -np.polyfit(qubits, np.log2(resampled), 1)[0]
    low, high = np.quantile(slopes, (0.025, 0.975))
    return {
        "value": float(-np.polyfit(qubits, np.log2(means), 1)[0]),
        "low": float(low),
        "high": float(high),
        "two_design": float(-np.polyfit(qubits, np.log2(formula), 1)[0]),
    }


def page(summary: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    study, made, cells = summary["study"], summary["made"], summary["cells"]
    deepest = max(study["depths"])
    lines = [
        "# Trainability of the variational circuit",
        "",
        f"Encoding {study['encoding']}, entangler {study['entangler']}; {study['least']} to "
        f"{study['most']} random circuits a cell, seed {study['seed']}. theta is uniform, or "
        f"normal with standard deviation {study['initial_std']} (`initial`); phi is uniform.",
        "",
        f"Made on {made['date']} in {made['seconds']:.0f} s of one core: {made['machine']}, "
        + ", ".join(f"{name} {number}" for name, number in made["versions"].items())
        + ".",
        "",
        "## Deep circuits: the exponential law",
        "",
        f"Variance of the derivatives at {deepest} layers, fitted to `2^(-rate n)`; the formula is "
        "`d^2 / (2 (d - 1) (d + 1)^2)`, fitted at the same sizes. Intervals are 95 % bootstrap.",
        "",
        "| observable, theta | rate | interval | formula |",
        "| --- | --- | --- | --- |",
        *(
            f"| {name} | {fit['value']:.3f} | {fit['low']:.3f} to {fit['high']:.3f} "
            f"| {fit['two_design']:.3f} |"
            for name, fit in summary["rates"].items()
        ),
        "",
        *_table(
            cells,
            deepest,
            "formula",
            lambda row, _: summary["theory"][str(row["qubits"])]["variance"],
        ),
        "",
        "![Variance against qubits](gradient-qubits.png)",
        "",
        "![Variance against depth](gradient-depth.png)",
        "",
        *_shallow(cells),
        "## Entanglement and expressibility",
        "",
        "![Meyer-Wallach entanglement](entanglement.png)",
        "",
        "![Expressibility](expressibility.png)",
        "",
        "## Fourier spectrum",
        "",
        "![Power at each degree](spectrum.png)",
        "",
    ]
    return "\n".join(lines)


def _shallow(cells: list[Cell]) -> list[str]:
    """Return the section about circuits of one layer."""
    if not any(row["depth"] == 1 for row in cells):
        return []
    return [
        "## One layer: the closed form",
        "",
        *_table(cells, 1, "closed form", lambda row, name: row["variance"][name]["exact"]),
        "",
    ]


def _table(cells: list[Cell], depth: int, title: str, expected: Any) -> list[str]:
    """Return a table of variances at one depth: measured, expected, and their ratio."""
    lines = [
        f"| n | theta | observable | measured | {title} | ratio |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in cells:
        if row["depth"] != depth:
            continue
        for name in OBSERVABLES:
            found, known = row["variance"][name], expected(row, name)
            lines.append(
                f"| {row['qubits']} | {row['init']} | {name} | {found['mean']:.3e} "
                f"| {known:.3e} | {found['mean'] / known:.3f} ± {found['error'] / known:.3f} |"
            )
    return lines


def _processor() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"
