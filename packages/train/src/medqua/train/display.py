"""What a person sees of a run: progress, then the table."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from medqua.train.experiment.arms import ARMS

SECONDS_BETWEEN_LINES = 15.0
"""How often progress is printed where there is no terminal to redraw."""


@contextmanager
def progress(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar in a terminal; a line now and then elsewhere.

    Yields:
        To be called with what was done since its last call.
    """
    if console.is_terminal and not console.quiet:
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        with bar:
            task = bar.add_task(what, total=total)
            yield lambda count: bar.advance(task, count)
        return
    done, spoken = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, spoken
        done += count
        if time.monotonic() - spoken >= SECONDS_BETWEEN_LINES:
            spoken = time.monotonic()
            console.print(f"{what}: {min(done, total):,} of {total:,}", highlight=False)

    yield advance


def log_line(console: Console, total: int, line: Mapping[str, Any]) -> None:
    """One line of the training log."""
    at = f"step {line.get('step', 0):>5}/{total}"
    if "loss" in line:
        ratios = [v for k, v in line.items() if k.endswith("activation_ratio")]
        routed = f"  routed {sum(ratios) / len(ratios):.2f}" if ratios else ""
        console.print(f"{at}  loss {line['loss']:.4f}{routed}", highlight=False)
    elif "eval_macro_auroc" in line:
        score = f"{line['eval_macro_auroc']:.4f}"
        text = ""
        if "eval_report_loss" in line:
            text = f", {line['eval_report_loss']:.4f} nats a token"
        console.print(f"{at}  validation macro AUROC [bold]{score}[/]{text}", highlight=False)


def arm_table(counts: Mapping[str, int]) -> Table:
    """The arms, with the trainable parameters of each by its name."""
    table = Table(title="Arms", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("arm", "", "trains", "parameters"):
        table.add_column(name, justify="right" if name == "parameters" else "left", no_wrap=True)
    for before, arm in zip((ARMS[0], *ARMS), ARMS, strict=False):
        if arm.kind != before.kind:
            table.add_row()
        table.add_row(arm.name, arm.title, arm.trains, f"{counts[arm.name]:,}")
    return table


def result_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """The figures of `metrics.json` for people."""
    test, untrained = metrics["test"], metrics.get("untrained") or {}
    labels = Table(
        title=f"Test split: {test['images']:,} images of {metrics['data']['source']}",
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for name in ("label", "pos.", "AUROC", "95 % CI", "AUPRC", "acc./all no", "untrained"):
        labels.add_column(name, justify="left" if name == "label" else "right", no_wrap=True)
    for name, row in test["per_label"].items():
        before = untrained.get("per_label", {}).get(name, {}).get("auroc")
        labels.add_row(*_label_cells(name, row), _number(before))
    means = {**test, "auroc": test["macro_auroc"], "auprc": test["macro_auprc"], "positives": ""}
    means["auroc_ci95"] = test["macro_auroc_ci95"]
    cells = _label_cells(f"mean of {test['labels']}", means)
    labels.add_row(*cells, _number(untrained.get("macro_auroc")), style="bold")
    reasons: dict[str, list[str]] = {}
    for name, row in test["per_label"].items():
        if row["auroc"] is None:
            reasons.setdefault(row["reason"], []).append(name)
    labels.caption = "; ".join(f"{why}: {', '.join(names)}" for why, names in reasons.items())
    routers = Table(title="Adapter")
    for name in ("layer", "activation ratio", "threshold", "mean depth"):
        routers.add_column(name, justify="left" if name == "layer" else "right")
    for layer, row in metrics["router"].items():
        routers.add_row(
            layer, *(_number(row[key]) for key in ("activation_ratio", "threshold", "mean_depth"))
        )
    run = Table(title="Run", show_header=False)
    run.add_column(justify="left")
    run.add_column(justify="right")
    for name, value in (
        ("ECE / Brier", f"{_number(test['ece'])} / {_number(test['brier'])}"),
        ("seconds per image", _number(metrics["seconds_per_image"], 5)),
        ("trainable parameters", f"{metrics['trainable_parameters']:,}"),
        ("training, seconds", _number(metrics["training_seconds"], 1)),
        ("peak memory, MiB", _number(metrics["peak_memory_mib"], 0)),
        ("images skipped", str(metrics["data"]["skipped"])),
    ):
        run.add_row(name, value)
    return [labels, routers, run] if metrics["router"] else [labels, run]


def _label_cells(name: str, row: Mapping[str, Any]) -> list[str]:
    """Label, positives, AUROC and interval, AUPRC, accuracy beside that of always saying no."""
    interval = row["auroc_ci95"]
    return [
        name,
        str(row["positives"]),
        _number(row["auroc"]) or "none",
        "" if interval is None else f"{interval[0]:.2f}-{interval[1]:.2f}",
        _number(row["auprc"]),
        f"{_number(row['accuracy'])}/{_number(row['all_negative_accuracy'])}",
    ]


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"
