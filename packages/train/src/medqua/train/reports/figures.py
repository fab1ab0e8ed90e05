"""What is measured of a writer, as plain values for `metrics.json`."""

from collections.abc import Mapping, Sequence
from typing import Any

from medqua.train.evaluation.metrics import Figures, macro_auroc
from medqua.train.reports.agreement import Agreement
from medqua.train.reports.measure import ENDPOINT, Judged
from medqua.train.reports.retrieval import CUTS, Chance, Found
from medqua.train.statistics.resampling import Interval

WRITERS: Mapping[str, str] = {
    "written": "written by the model",
    "classical_only": "written with no token routed",
    "nearest": "report of the nearest training image, bare backbone",
    "best_constant": "always the training report with the best F1 (blind)",
    "most_frequent": "always the most frequent training report (blind)",
    "random": "report of a random training study (blind)",
    "all_negative": "nothing stated (blind)",
    "classifier": "no text: the classifier's labels at 0.5",
    "classifier_tuned": "no text: the classifier's labels, thresholds from validation",
    "reference": "the study's own report",
}
"""Who wrote -> in words."""

WAYS: Mapping[str, str] = {
    "beyond": "likelihood over that of the text alone",
    "classical_only": "the same with no token routed",
    "likelihood": "likelihood",
    "findings": "the classifier's findings, no text read by the model",
}
"""Way of scoring -> in words."""


def figures_of(labels: Sequence[str], judged: Judged) -> Figures:
    """The figures of a run; intervals over patients under names that end with `_ci95`.

    Args:
        labels: Names of the findings, in the order of the logits.
        judged: What was measured.
    """
    written, retrieved = judged.written, judged.retrieved
    own = written.agreements["written"]
    per_label = {
        name: {
            "f1": value,
            "f1_ci95": _bounds(interval),
            **{f"f1_{other}": written.agreements[other].per_label[i] for other in _beside(judged)},
        }
        for i, (name, value, interval) in enumerate(
            zip(labels, own.per_label, own.per_label_intervals, strict=True)
        )
    }
    texts = written.texts["written"]
    equal = sum(a == b for a, b in zip(texts, written.texts["reference"], strict=True))
    test: dict[str, Any] = {
        "images": len(texts),
        "patients": written.rows["patient_id"].n_unique(),
        **_agreement(own),
        "report_nats_a_token": judged.scored.nats_a_token,
        "distinct_texts": len(set(texts)),
        "equal_to_reference": equal,
        "macro_auroc": macro_auroc(judged.scored.logits, judged.scored.targets),
        "per_label": per_label,
    }
    return {
        "test": test,
        "validate": {
            "report_nats_a_token": judged.validated.nats_a_token,
            "macro_auroc": macro_auroc(judged.validated.logits, judged.validated.targets),
        },
        "endpoint": f"macro F1 of what is written minus that of {ENDPOINT}",
        "writers": {name: _agreement(found) for name, found in written.agreements.items()},
        "macro_f1_gain_over": {
            name: {"difference": value, "ci95": _bounds(interval)}
            for name, (value, interval) in written.gains.items()
        },
        "retrieval": {
            "images": retrieved.images,
            "texts": retrieved.texts,
            "nats_told_by_the_image": retrieved.told[0],
            "nats_told_by_the_image_ci95": _bounds(retrieved.told[1]),
            "equal_text": {n: _found(f) for n, f in retrieved.by_text.items()}
            | {"chance": _chance(retrieved.chance_text)},
            "equal_labels": {n: _found(f) for n, f in retrieved.by_labels.items()}
            | {"chance": _chance(retrieved.chance_labels)},
        },
    }


def _beside(judged: Judged) -> list[str]:
    wanted = ("classical_only", "nearest", "best_constant", "classifier_tuned")
    return [name for name in wanted if name in judged.written.agreements]


def _agreement(found: Agreement) -> dict[str, Any]:
    return {
        "macro_f1": found.macro,
        "macro_f1_ci95": _bounds(found.macro_interval),
        "micro_f1": found.micro,
        "micro_f1_ci95": _bounds(found.micro_interval),
    }


def _found(found: Found) -> dict[str, Any]:
    recall = zip(CUTS, found.recall, found.recall_intervals, strict=True)
    return {
        **{f"recall_at_{cut}": value for cut, value, _ in recall},
        **{
            f"recall_at_{cut}_ci95": _bounds(interval)
            for cut, interval in zip(CUTS, found.recall_intervals, strict=True)
        },
        "mean_reciprocal_rank": found.reciprocal,
        "mean_reciprocal_rank_ci95": _bounds(found.reciprocal_interval),
        "median_rank": found.median,
        "median_rank_ci95": _bounds(found.median_interval),
    }


def _chance(found: Chance) -> dict[str, Any]:
    recall = zip(CUTS, found.recall, strict=True)
    return {
        **{f"recall_at_{cut}": value for cut, value in recall},
        "mean_reciprocal_rank": found.reciprocal,
        "median_rank": found.median,
    }


def _bounds(interval: Interval) -> list[float] | None:
    return None if interval.bounds is None else list(interval.bounds)
