"""Pictures of a run and of an experiment."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medqua.train.data.manifest import IGNORED
from medqua.train.evaluation.metrics import auroc
from medqua.train.statistics.paired import Difference


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
    save_figure(figure, path)


def draw_learning(
    path: Path, history: Sequence[Mapping[str, Any]], title: str, chosen: int | None = None
) -> None:
    """Training loss, validation macro AUROC and activation ratios over optimiser steps.

    Args:
        path: PNG file.
        history: Lines of the training log (`log_history` of transformers' trainer state).
        title: Over the plot.
        chosen: Step of the checkpoint that was kept, marked; None marks nothing.
    """
    figure = Figure(figsize=(8.0, 6.0), layout="constrained")
    loss, score, routes = figure.subplots(3, 1, sharex=True)
    loss.plot(*_series(history, "loss"), color="tab:blue", label="training")
    loss.plot(*_series(history, "eval_loss"), "o-", color="tab:orange", label="validation, BCE")
    loss.set(ylabel="loss (nats)", title=title)
    loss.legend(frameon=False, fontsize=8)
    score.plot(*_series(history, "eval_macro_auroc"), "o-", color="tab:orange")
    score.set(ylabel="validation\nmacro AUROC")
    if chosen is not None:
        for axes in (loss, score, routes):
            axes.axvline(chosen, color="0.6", linewidth=0.9, linestyle="--", zorder=0)
        low = score.get_ylim()[0]
        score.annotate("kept ", (chosen, low), ha="right", va="bottom", fontsize=8, color="0.4")
    names = sorted({name for line in history for name in line if name.endswith("activation_ratio")})
    for name in names:
        layer = name.removeprefix("router/").removesuffix("/activation_ratio")
        routes.plot(*_series(history, name), label=layer.rpartition("layers.")[2])
    routes.set(ylabel="activation ratio", xlabel="optimiser step", ylim=(0, 1))
    if names:
        routes.legend(title="layer", frameon=False, fontsize=8, title_fontsize=8)
    save_figure(figure, path)


def draw_differences(
    path: Path, found: Sequence[tuple[str, Difference]], against: str, confidence: float
) -> None:
    """Forest plot: one arm minus each of the others, with both intervals.

    Args:
        path: PNG file.
        found: Title of each other arm, and the difference; the declared endpoint first.
        against: Title of the arm that they are taken from.
        confidence: Coverage of the intervals.
    """
    figure = Figure(figsize=(8.0, 1.6 + 0.36 * len(found)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="0.6", linewidth=0.9)
    limit = _limit([difference for _, difference in found])
    for row, (_, difference) in enumerate(found):
        colour = "tab:red" if row == 0 else "tab:blue"
        if difference.estimate is None:
            continue
        if abs(difference.estimate) > limit:
            side = 1 if difference.estimate > 0 else -1
            axes.plot([side * 0.97 * limit], [row], ">" if side > 0 else "<", color=colour)
            axes.annotate(
                f"{difference.estimate:+.3f}, beyond the axis",
                (side * 0.93 * limit, row),
                ha="right" if side > 0 else "left",
                va="center",
                fontsize=8,
            )
            continue
        for interval, width, alpha in (
            (difference.seeds_interval, 1.2, 0.9),
            (difference.interval, 4.5, 0.45),
        ):
            if interval.bounds is not None:
                axes.plot(interval.bounds, [row, row], color=colour, linewidth=width, alpha=alpha)
        axes.plot([difference.estimate], [row], "o", color=colour, markersize=5)
    axes.set_xlim(-limit, limit)
    axes.axhline(0.5, color="0.85", linewidth=0.8)
    axes.set(ylim=(len(found) - 0.4, -0.6), xlabel=f"macro AUROC of {against} minus the arm's")
    axes.set_yticks(range(len(found)), [title for title, _ in found])
    axes.set_title(
        f"{confidence:.0%} intervals: broad over patients, thin over patients and seeds.\n"
        "Red: the declared endpoint",
        fontsize=9,
        loc="left",
    )
    save_figure(figure, path)


def draw_reliability(
    path: Path,
    arms: Sequence[tuple[str, Float64[np.ndarray, "s n l"]]],
    targets: Int8[np.ndarray, "n l"],
    bins: int = 10,
) -> None:
    """Reliability diagram of all labels and seeds together, in bins of equally many answers.

    Below it: how many answers there are by probability. Most are small, for findings are rare.

    Args:
        path: PNG file.
        arms: Title and probabilities `[S, N, L]` of each arm.
        targets: `[N, L]` of 1, 0 and `IGNORED`.
        bins: Points of each arm.
    """
    figure = Figure(figsize=(5.6, 6.8), layout="constrained")
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8, linestyle=":")
    known = targets != IGNORED
    for (title, probabilities), marker in zip(arms, "osD^v", strict=False):
        said = np.concatenate([own[known] for own in probabilities])
        true = np.tile(targets[known] == 1, len(probabilities))
        parts = np.array_split(np.argsort(said, kind="stable"), bins)
        points = [(said[part].mean(), true[part].mean()) for part in parts if len(part)]
        x, y = zip(*points, strict=True)
        axes.plot(x, y, f"{marker}-", linewidth=1.2, markersize=4, label=title)
        counts.hist(said, bins=25, range=(0.0, 1.0), histtype="step", linewidth=1.2)
    axes.set(ylabel="share of images with the finding")
    axes.set(xlim=(0, 1), ylim=(0, 1), title="Calibration, all labels")
    counts.set(xlabel="probability that is told", ylabel="answers", yscale="log")
    axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def draw_curve(path: Path, lines: Mapping[str, Sequence[tuple[float, float, float]]]) -> None:
    """Macro AUROC by share of the training patients.

    Args:
        path: PNG file.
        lines: Title -> (share, mean, standard deviation over seeds).
    """
    figure = Figure(figsize=(8.0, 5.0), layout="constrained")
    axes = figure.subplots()
    styles = ("-", "--", ":")
    for position, (title, points) in enumerate(lines.items()):
        shares, means, spreads = (np.array(column) for column in zip(*points, strict=True))
        nudge = 1 + 0.012 * (position - len(lines) / 2)  # so that bars do not hide each other
        axes.errorbar(
            shares * nudge,
            means,
            spreads,
            fmt=styles[position // 10 % len(styles)],
            marker="o",
            markersize=3,
            linewidth=1.2,
            capsize=2,
            label=title,
        )
    ticks = sorted({share for points in lines.values() for share, _, _ in points})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:.0%}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set(xlabel="share of the training patients", ylabel="test macro AUROC (sd over seeds)")
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.02, 1.0))
    save_figure(figure, path)


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


def _limit(found: Sequence[Difference]) -> float:
    """Half the width of an axis on which most intervals can be read; an outlier may lie beyond."""
    bounds = [one.bounds for d in found for one in (d.interval, d.seeds_interval) if one.bounds]
    reach = np.array([max(abs(low), abs(high)) for low, high in bounds] or [0.0])
    usual = reach[reach <= 8 * np.median(reach)]
    return 1.1 * max(float(usual.max(initial=0.0)), 1e-3)


def _series(history: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    lines = [line for line in history if name in line]
    return [int(line["step"]) for line in lines], [float(line[name]) for line in lines]


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG, its folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120)
