"""What a person sees of the texts: before a run, and after it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.table import Table

from medqua.train.inputs import open_data_set
from medqua.train.model import open_backbone
from medqua.train.recipe import ReportRecipe
from medqua.train.reports.figures import WAYS, WRITERS
from medqua.train.reports.prepare import find_texts


def report_table(recipe: ReportRecipe) -> Table:
    """How many reports there are and how long they are; nothing is written.

    Raises:
        DataError: Reports are missing or damaged.
    """
    texts = find_texts(recipe, open_data_set(recipe.data, lambda _: None))
    tokenizer = open_backbone(recipe).processor.tokenizer
    table = Table(title="Reports", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("split", "images", "different texts", "tokens, median", "longest", "cut"):
        table.add_column(name, justify="left" if name == "split" else "right")
    limit = recipe.report.max_tokens
    for split, reports in texts.of.items():
        different = sorted(set(reports))
        length = {
            text: len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1
            for text in different
        }
        counts = np.array([length[text] for text in reports])
        table.add_row(
            split,
            f"{len(reports):,}",
            f"{len(different):,}",
            f"{np.median(counts):.0f}",
            str(counts.max()),
            f"{(counts > limit).mean():.1%}",
        )
    if texts.without:
        table.caption = f"{texts.without:,} studies have no such section and are left out"
    return table


def result_table(metrics: Mapping[str, Any]) -> Table:
    """The figures of `metrics.json` for people."""
    test, found = metrics["test"], metrics["retrieval"]
    table = Table(
        title=f"Test split: {test['images']:,} images of {metrics['data']['source']}",
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
    )
    for name in ("text", "macro F1", "95 % CI", "micro F1"):
        table.add_column(name, justify="left" if name == "text" else "right")
    for name, words in WRITERS.items():
        if name in metrics["writers"]:
            row = metrics["writers"][name]
            macro, micro = f"{row['macro_f1']:.3f}", f"{row['micro_f1']:.3f}"
            table.add_row(words, macro, _span(row["macro_f1_ci95"]), micro)
    table.add_row()
    table.add_row(f"own report among {found['texts']}, by", "recall@5", "", "mean 1/rank")
    for name, words in {**WAYS, "chance": "chance"}.items():
        if name in found["equal_text"]:
            row = found["equal_text"][name]
            table.add_row(
                words,
                f"{row['recall_at_5']:.3f}",
                _span(row.get("recall_at_5_ci95")),
                f"{row['mean_reciprocal_rank']:.3f}",
            )
    table.caption = f"nats a token {test['report_nats_a_token']:.4f}"
    return table


def _span(bounds: list[float] | None) -> str:
    return "" if bounds is None else f"{bounds[0]:.2f}-{bounds[1]:.2f}"
