"""The report of a sweep: its trials by their validation figure, and one picture."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from medqua.train.figures import save_figure
from medqua.train.markdown import number, table
from medqua.train.search.space import Space

if TYPE_CHECKING:
    import optuna

PANELS = 3
"""Pictures of keys in a row."""


def write_sweep_report(study: "optuna.Study", space: Space, output: Path, recipe: str) -> Path:
    """Write `report.md` and `sweep.png`.

    Args:
        study: With at least one trial that has a figure.
        space: What was varied.
        output: Folder of the sweep.
        recipe: What the trials share.

    Returns:
        The report.
    """
    draw_sweep(output / "sweep.png", study, space)
    keys = list(space.space)
    known = [trial for trial in study.trials if trial.value is not None]
    ranked = sorted(known, key=lambda trial: -(trial.value or 0.0))
    rows = [
        (str(t.number), number(t.value), *(_shown(t.params.get(key)) for key in keys))
        for t in ranked[:20]
    ]
    best = " ".join(f"{key}={_shown(value)}" for key, value in study.best_trial.params.items())
    failed = len(study.trials) - len(known)
    lines = [
        f"# Sweep of {recipe}",
        "",
        f"{len(known)} trials of {len(study.trials)} have a figure; {failed} failed. The figure is "
        "the macro AUROC of the validation split at the chosen checkpoint. It is the greatest of "
        "many and so flatters: what the recipe is worth, a run of it tells on the test split, "
        "which no trial has shown.",
        "",
        f"Best: trial {study.best_trial.number}, {number(study.best_value)}:",
        "",
        "```",
        best,
        "```",
        "",
        *table(("trial", "validation macro AUROC", *(f"`{key}`" for key in keys)), rows),
        "![Trials, and their figure by each key](sweep.png)",
    ]
    path = output / "report.md"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def draw_sweep(path: Path, study: "optuna.Study", space: Space) -> None:
    """The figure of each trial and the best so far; and the figure by each key.

    Args:
        path: PNG file.
        study: With at least one trial that has a figure.
        space: What was varied.
    """
    known = [trial for trial in study.trials if trial.value is not None]
    values = np.array([float(trial.value or 0.0) for trial in known])
    numbers = [trial.number for trial in known]
    dimensions = space.dimensions
    rows = 1 + -(-len(dimensions) // PANELS)
    figure = Figure(figsize=(9.0, 2.8 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, PANELS)
    first = figure.add_subplot(grid[0, :])
    first.plot(numbers, values, "o", color="tab:blue", markersize=4, label="trial")
    first.step(
        numbers, np.maximum.accumulate(values), where="post", color="tab:orange", label="best"
    )
    first.set(xlabel="trial", ylabel="validation\nmacro AUROC")
    first.xaxis.set_major_locator(MaxNLocator(integer=True))
    first.legend(frameon=False, fontsize=8, loc="lower right")
    for place, (key, dimension) in enumerate(dimensions.items()):
        axes = figure.add_subplot(grid[1 + place // PANELS, place % PANELS])
        drawn: list[Any] = [trial.params[key] for trial in known]
        if dimension.choices:
            names = [str(choice) for choice in dimension.choices]
            axes.plot([names.index(str(value)) for value in drawn], values, "o", markersize=4)
            axes.set_xticks(range(len(names)), names)
            axes.set_xlim(-0.5, len(names) - 0.5)
        else:
            axes.plot(drawn, values, "o", markersize=4)
            axes.set_xscale("log" if dimension.log else "linear")
            low, high = float(dimension.low or 0), float(dimension.high or 0)
            edge = 0.05 * (high - low)
            axes.set_xlim((low / 1.2, high * 1.2) if dimension.log else (low - edge, high + edge))
            if dimension.whole:
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(key, fontsize=9)
        axes.tick_params(labelsize=8)
    save_figure(figure, path)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
