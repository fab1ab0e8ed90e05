"""The report of a run that writes reports: Markdown and pictures, whatever they say."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from medqua.train.evaluation.metrics import Figures
from medqua.train.figures import save_figure
from medqua.train.markdown import number, signed, span, table
from medqua.train.reports.figures import WAYS, WRITERS
from medqua.train.reports.measure import ENDPOINT, Judged
from medqua.train.reports.prepare import report_recipe
from medqua.train.reports.retrieval import CUTS, Chance, Found
from medqua.train.stages.prepare import Run

SAMPLES = 5
"""Texts shown beside their references; of phantoms alone."""


def write_page(
    path: Path, run: Run, judged: Judged, metrics: Figures, record: Mapping[str, Any]
) -> str:
    """Write `report.md`. Texts of patients are never in it: samples are shown of phantoms alone.

    Args:
        path: The file.
        run: The run.
        judged: What was measured.
        metrics: What `metrics.json` holds.
        record: What `run.json` holds.

    Returns:
        The text.
    """
    lines = [
        f"# Reports written and found: {run.recipe.name}",
        "",
        *_endpoint(judged),
        *_what(run, metrics, record),
        *_writers(judged),
        *_per_label(run, judged),
        *_retrieval(judged),
    ]
    if run.recipe.evaluation.plots:
        lines += ["## Learning", "", "![Loss and nats a token](plots/learning.png)", ""]
    if run.data.synthetic:
        lines += _samples(judged)
    text = "\n".join(lines).rstrip() + "\n"
    path.write_text(text, "utf-8")
    return text


def _endpoint(judged: Judged) -> list[str]:
    value, interval = judged.written.gains[ENDPOINT]
    low, high = interval.bounds or (-1.0, 1.0)
    verdict = (
        "the texts say more than a writer that never looks"
        if low > 0
        else "a writer that never looks does better"
        if high < 0
        else "the texts are not shown to say more than a writer that never looks"
    )
    return [
        f"**Declared comparison.** Macro F1 of the labels of what is written, minus that of "
        f"{WRITERS[ENDPOINT]}: {signed(value)} {span(interval)}: {verdict}.",
        "",
    ]


def _what(run: Run, metrics: Figures, record: Mapping[str, Any]) -> list[str]:
    recipe, section = run.recipe, report_recipe(run.recipe).report
    counts = ", ".join(
        f"{split} {row['images']:,} images of {row['patients']:,} patients"
        for split, row in run.data.manifest.counts().items()
    )
    device = record["device"]
    lines = [
        f"Data: {run.data.manifest.source}; {counts}. Text: {' and '.join(section.sections)}, at "
        f"most {section.max_tokens} tokens. Backbone: `{recipe.backbone.source}`, trained: "
        f"`{recipe.backbone.tuned}` ({metrics['trainable_parameters']:,} of "
        f"{metrics['parameters']:,} parameters), {metrics['steps']:,} steps of "
        f"{recipe.optim.batch_size} images, {metrics['training_seconds'] / 60:.1f} minutes on "
        f"{device['processes']} x {device['name']} with {device['threads']} threads. Loss: nats a "
        f"token, plus {section.findings_weight:g} times the classifier's, plus Eq. 11. The "
        "checkpoint with the fewest nats a token on validation is judged. Intervals are 95 % "
        f"percentile intervals of {recipe.evaluation.bootstrap:,} resamples of patients, not "
        "adjusted for their number."
        if recipe.evaluation.confidence == 0.95
        else f"Data: {run.data.manifest.source}; {counts}. Intervals are "
        f"{recipe.evaluation.confidence:.0%} percentile intervals over patients.",
        "",
    ]
    if run.data.synthetic:
        lines += [
            "The images are phantoms and their reports are put together from a short list of "
            "phrases: a score on them shows that the parts work and what this small model learns, "
            "and nothing about clinical reports.",
            "",
        ]
    return lines


def _writers(judged: Judged) -> list[str]:
    rows = []
    for name, title in WRITERS.items():
        if name in judged.written.agreements:
            own = judged.written.agreements[name]
            gain = judged.written.gains.get(name)
            rows.append(
                [
                    title,
                    f"{number(own.macro, 3)} {span(own.macro_interval)}",
                    f"{number(own.micro, 3)} {span(own.micro_interval)}",
                    "" if gain is None else f"{signed(gain[0])} {span(gain[1])}",
                ]
            )
    texts = judged.written.texts["written"]
    return [
        "## What the texts say",
        "",
        "Labels are read from every text by the same rules and compared with the labels of the "
        "study. The last column is the model's macro F1 minus that of the row, on the same "
        "patients.",
        "",
        *table(["text", "macro F1", "micro F1", "model minus this"], rows),
        f"Of {len(texts):,} written texts {len(set(texts)):,} are different. The model gives the "
        f"studies' own reports {judged.scored.nats_a_token:.4f} nats a token.",
        "",
        "![F1 of each writer](plots/writers.png)",
        "",
    ]


def _per_label(run: Run, judged: Judged) -> list[str]:
    agreements = judged.written.agreements
    own = agreements["written"]
    others = [n for n in ("nearest", "best_constant", "classifier_tuned") if n in agreements]
    rows = []
    for i, label in enumerate(run.labels):
        interval = own.per_label_intervals[i]
        cell = number(own.per_label[i], 3)
        if own.per_label[i] is not None:
            cell += f" {span(interval)}"
        rows.append([label, cell, *(number(agreements[n].per_label[i], 3) for n in others)])
    short = {"nearest": "nearest image", "best_constant": "best constant"}
    head = ["finding", "written", *(short.get(n, "classifier, tuned") for n in others)]
    return ["F1 of each finding:", "", *table(head, rows)]


def _retrieval(judged: Judged) -> list[str]:
    found = judged.retrieved
    told, interval = found.told
    lines = [
        "## Reports found by their image",
        "",
        f"{found.images:,} test images each rank {found.texts:,} different reports. Equal scores "
        "count against the hit. An image makes its own report likelier than the text is by itself "
        f"by {signed(told)} nats {span(interval)}, in the mean.",
        "",
    ]
    for title, ways, chance in (
        ("A hit is the image's own text:", found.by_text, found.chance_text),
        ("A hit is any text with the same labels:", found.by_labels, found.chance_labels),
    ):
        rows = [[words, *_cells(ways[name])] for name, words in WAYS.items() if name in ways]
        rows.append(["chance", *_chance_cells(chance)])
        head = ["scored by", *(f"recall@{cut}" for cut in CUTS), "mean 1/rank", "median rank"]
        lines += [title, "", *table(head, rows)]
    return [*lines, "![Recall by rank](plots/retrieval.png)", ""]


def _cells(found: Found) -> list[str]:
    recall = zip(found.recall, found.recall_intervals, strict=True)
    low, high = found.median_interval.bounds or (found.median, found.median)
    return [
        *(f"{number(value, 3)} {span(interval)}" for value, interval in recall),
        f"{number(found.reciprocal, 3)} {span(found.reciprocal_interval)}",
        f"{found.median:.0f} [{low:.0f}, {high:.0f}]",
    ]


def _chance_cells(found: Chance) -> list[str]:
    shares = [number(value, 3) for value in found.recall]
    return [*shares, number(found.reciprocal, 3), f"{found.median:.0f}"]


def _samples(judged: Judged) -> list[str]:
    texts = judged.written.texts
    places = np.unique(np.linspace(0, len(texts["written"]) - 1, SAMPLES).astype(int))
    lines = ["## Samples", "", "Phantoms, evenly spaced in the test split, not chosen.", ""]
    rows = [[texts["written"][i], texts["reference"][i]] for i in places]
    return [*lines, *table(["written", "the study's own"], rows)]


def draw_report(
    folder: Path, labels: Sequence[str], judged: Judged, history: Sequence[Mapping[str, Any]]
) -> None:
    """Draw `writers.png`, `retrieval.png` and `learning.png`.

    Args:
        folder: Where to.
        labels: Names of the findings.
        judged: What was measured.
        history: Lines of the training log.
    """
    _draw_writers(folder / "writers.png", labels, judged)
    _draw_retrieval(folder / "retrieval.png", judged)
    _draw_learning(folder / "learning.png", history)


def _draw_writers(path: Path, labels: Sequence[str], judged: Judged) -> None:
    agreements = judged.written.agreements
    figure = Figure(figsize=(9.6, 7.6), layout="constrained")
    whole, each = figure.subplots(2, 1, height_ratios=[1, 1.35])
    names = [n for n in WRITERS if n in agreements and n not in ("reference", "all_negative")]
    for place, name in enumerate(reversed(names)):
        found = agreements[name]
        low, high = found.macro_interval.bounds or (found.macro, found.macro)
        colour = "tab:blue" if name == "written" else "0.45"
        whole.plot([low, high], [place, place], color=colour, linewidth=1.6)
        whole.plot([found.macro], [place], "o", color=colour, markersize=5)
    whole.set_yticks(range(len(names)), [WRITERS[n] for n in reversed(names)], fontsize=8)
    whole.set(xlabel="macro F1 of the labels, 95 % interval over patients", xlim=(0, None))
    places = np.arange(len(labels))
    shown = [n for n in ("written", "best_constant", "classifier_tuned") if n in agreements]
    colours = {"written": "tab:blue", "best_constant": "0.7", "classifier_tuned": "tab:orange"}
    for k, name in enumerate(shown):
        heights = [value or 0.0 for value in agreements[name].per_label]
        each.bar(places + 0.27 * (k - 1), heights, 0.27, color=colours[name], label=WRITERS[name])
    each.set_xticks(places, labels, rotation=40, ha="right", fontsize=8)
    each.set(ylabel="F1")
    each.legend(frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(-0.35, 1.0))
    save_figure(figure, path)


def _draw_retrieval(path: Path, judged: Judged) -> None:
    found = judged.retrieved
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    pair = figure.subplots(1, 2, sharey=True)
    for axes, title, ways, chance in (
        (pair[0], "a hit is the own text", found.by_text, found.chance_text),
        (pair[1], "a hit has the same labels", found.by_labels, found.chance_labels),
    ):
        ranks = np.arange(len(CUTS))
        for k, name in enumerate(n for n in WAYS if n in ways):
            own = ways[name]
            value = np.array(own.recall)
            low, high = _limits(own).T
            around = np.maximum([value - low, high - value], 0)
            beside = ranks + 0.08 * (k - 1.5)
            axes.errorbar(beside, value, around, fmt="o", markersize=4, label=WAYS[name])
        axes.plot(ranks, chance.recall, "k_", markersize=26, label="chance")
        axes.set_xticks(ranks, [f"recall@{cut}" for cut in CUTS])
        axes.set(title=title, ylim=(0, None))
    handles, names = pair[0].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, fontsize=8, ncols=3, loc="outside lower center")
    save_figure(figure, path)


def _limits(found: Found) -> np.ndarray:
    """`[cuts, 2]` bounds of recall, the value itself where there are none."""
    both = zip(found.recall_intervals, found.recall, strict=True)
    return np.array([interval.bounds or (value, value) for interval, value in both])


def _draw_learning(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    figure = Figure(figsize=(8.0, 3.4), layout="constrained")
    axes = figure.subplots()
    for name, label, style in (
        ("loss", "training, whole loss", "-"),
        ("eval_report_loss", "validation, nats a token", "o-"),
    ):
        points = [(line["step"], line[name]) for line in history if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label)
    axes.set(xlabel="optimiser step", ylabel="nats")
    axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)
