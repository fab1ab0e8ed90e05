"""Pictures of a run: ROC curves and how it learned."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medqua.train.data.manifest import IGNORED
from medqua.train.metrics import auroc


def draw_roc(
    path: Path,
    logits: Float64[np.ndarray, "n l"],
    targets: Int8[np.ndarray, "n l"],
    labels: Sequence[str],
    title: str,
) -> None:
    """ROC curve of each label that has one, best first.

    Args:
        path: PNG file.
        logits: `[N, L]`.
        targets: `[N, L]` of 1, 0 and `IGNORED`.
        labels: L names.
        title: Over the plot.
    """
    figure = Figure(figsize=(8.0, 5.2), layout="constrained")
    axes = figure.subplots()
    areas = [auroc(logits[:, i], targets[:, i]) for i in range(len(labels))]
    order = sorted(
        (i for i, a in enumerate(areas) if a is not None), key=lambda i: -(areas[i] or 0)
    )
    for position, i in enumerate(order):
        known = targets[:, i] != IGNORED
        false, true = roc_curve(logits[known, i], targets[known, i])
        style = "-" if position < 10 else "--"
        axes.plot(false, true, style, linewidth=1.3, label=f"{labels[i]}  {areas[i]:.3f}")
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8, linestyle=":")
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", title=title, aspect="equal")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    if order:
        axes.legend(
            title="AUROC", fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.02, 1.0)
        )
    _save(figure, path)


def draw_learning(path: Path, history: Sequence[Mapping[str, Any]], title: str) -> None:
    """Training loss, validation macro AUROC and activation ratios over optimiser steps.

    Args:
        path: PNG file.
        history: Lines of the training log (`log_history` of transformers' trainer state).
        title: Over the plot.
    """
    figure = Figure(figsize=(8.0, 6.0), layout="constrained")
    loss, score, routes = figure.subplots(3, 1, sharex=True)
    loss.plot(*_series(history, "loss"), color="tab:blue", label="training")
    loss.plot(*_series(history, "eval_loss"), "o-", color="tab:orange", label="validation, BCE")
    loss.set(ylabel="loss (nats)", title=title)
    loss.legend(frameon=False, fontsize=8)
    score.plot(*_series(history, "eval_macro_auroc"), "o-", color="tab:orange")
    score.set(ylabel="validation\nmacro AUROC")
    names = sorted({name for line in history for name in line if name.endswith("activation_ratio")})
    for name in names:
        layer = name.removeprefix("router/").removesuffix("/activation_ratio")
        routes.plot(*_series(history, name), label=layer.rpartition("layers.")[2])
    routes.set(ylabel="activation ratio", xlabel="optimiser step", ylim=(0, 1))
    if names:
        routes.legend(title="layer", frameon=False, fontsize=8, title_fontsize=8)
    _save(figure, path)


def roc_curve(
    scores: Float64[np.ndarray, " n"], targets: Int8[np.ndarray, " n"]
) -> tuple[Float64[np.ndarray, " p"], Float64[np.ndarray, " p"]]:
    """False and true positive rates at every threshold, from (0, 0) to (1, 1).

    Args:
        scores: `[N]`.
        targets: `[N]` of 1 and 0, both present.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, present = scores[order], targets[order] == 1
    last = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])  # end of each group of ties
    true = np.r_[0.0, np.cumsum(present)[last] / present.sum()]
    false = np.r_[0.0, np.cumsum(~present)[last] / (~present).sum()]
    return false, true


def _series(history: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    lines = [line for line in history if name in line]
    return [int(line["step"]) for line in lines], [float(line[name]) for line in lines]


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120)
