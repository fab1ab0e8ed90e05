"""The model card of a bundle, written from what the run recorded: nothing is typed by hand."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from medqua.core.model.bundle import INTENDED_USE
from medqua.train.markdown import number, table
from medqua.train.publish.licences import licence_of

NOT_FOR = (
    "**Research use only. Not for clinical use**: not for diagnosis, triage or any decision "
    "about a patient. It is no medical device, and was not tested as one."
)


def render_card(record: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """The card in Markdown, with the header that model hubs read.

    Args:
        record: What `run.json` holds.
        metrics: What `metrics.json` holds.
    """
    recipe, data = record["recipe"], metrics["data"]
    licence = licence_of(str(recipe["data"].get("kind", "")), synthetic=bool(data["synthetic"]))
    lines = [
        "---",
        "library_name: medqua",
        "license: other",
        "tags: [chest-x-ray, not-for-clinical-use]",
        "---",
        "",
        f"# {recipe['name']}",
        "",
        NOT_FOR,
        "",
        f"Intended use: {INTENDED_USE}",
        "",
        *_data_section(recipe, data),
        "## Licence",
        "",
        f"{licence} The weights are bound by the terms of their training data and of the backbone.",
        "",
        *_model_section(recipe, metrics),
        *_figures_section(recipe, metrics),
        *_limits_section(metrics),
        *_versions_section(record),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _data_section(recipe: Mapping[str, Any], data: Mapping[str, Any]) -> list[str]:
    """What it was trained on, and how labels were read."""
    section = recipe["data"]
    splits = data["splits"]
    rows = [
        (split, f"{count['images']:,}", f"{count['patients']:,}" if count["patients"] else "–")
        for split, count in splits.items()
    ]
    apart = all(count["patients"] for count in splits.values())
    people = "No patient is in two splits." if apart else "Whose images they are is not known."
    what = "Synthetic images (phantoms), no patients." if data["synthetic"] else "Real images."
    return [
        "## Data",
        "",
        f"{data['source']}. {what} Manifest {str(data['fingerprint'])[:12]}; "
        f"{data['skipped']:,} images were skipped. {people}",
        "",
        *table(("split", "images", "patients"), rows),
        f"Label policy: uncertain in training `{section['uncertain']}`, in evaluation "
        f"`{section['uncertain_in_evaluation']}`, not mentioned `{section['blank']}`.",
        "",
    ]


def _bounds(interval: Sequence[float] | None) -> str:
    return "–" if interval is None else f"[{interval[0]:.4f}, {interval[1]:.4f}]"


def _model_section(recipe: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[str]:
    """Backbone, adapter and loss."""
    backbone, adapter, optim = recipe["backbone"], recipe["adapter"], recipe["optim"]
    source = str(backbone["source"]).rstrip("/").split("/")
    name = "/".join(source[-2:]) if len(source) == 2 else source[-1]  # a folder's path stays here
    loss = f"`{optim['loss']}`"
    if optim["loss"] == "focal":
        loss += f" with gamma {optim['gamma']:g}"
    if optim["label_weights"]:
        loss += ", weights " + ", ".join(f"{k} {v:g}" for k, v in optim["label_weights"].items())
    if optim["balance"]:
        loss += ", positives weighed by prevalence"
    calibrated = "Probabilities are not calibrated."
    if recipe["evaluation"]["calibrate"]:
        calibrated = "One temperature a label was fitted on the validation split."
    lines = [
        "## Model",
        "",
        f"Backbone `{name}`; {metrics['trainable_parameters']:,} of {metrics['parameters']:,} "
        f"parameters were trained, in {metrics['steps']:,} steps of {optim['batch_size']} images. "
        f"Loss: {loss}. {calibrated}",
        "",
    ]
    if backbone["adapter"] == "none":
        return [*lines, "No adapter.", ""]
    shown = adapter if backbone["adapter"] == "quasar" else {"lora": adapter["lora"]}
    text = json.dumps(shown, indent=2, sort_keys=True)
    return [*lines, f"Adapter `{backbone['adapter']}`:", "", "```json", text, "```", ""]


def _figures_section(recipe: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[str]:
    """What was measured, beside what no skill gives."""
    test, before = metrics["test"], metrics.get("untrained") or {}
    share = f"{recipe['evaluation']['confidence']:.0%}"
    rows = [
        (
            name,
            str(row["positives"]),
            number(row["auroc"]),
            _bounds(row["auroc_ci95"]),
            number(row["auprc"]),
            number(row["accuracy"]),
            number(row["all_negative_accuracy"]),
        )
        for name, row in test["per_label"].items()
    ]
    rows.append(
        (
            f"mean of {test['labels']}",
            "",
            number(test["macro_auroc"]),
            _bounds(test["macro_auroc_ci95"]),
            number(test["macro_auprc"]),
            number(test["accuracy"]),
            number(test["all_negative_accuracy"]),
        )
    )
    heads = ("label", "positives", "AUROC", f"{share} interval", "AUPRC", "accuracy")
    untrained = number(before.get("macro_auroc"))
    return [
        "## Measured on the test split",
        "",
        f"{test['images']:,} images. Intervals are bootstraps over patients. Baselines: AUROC 0.5 "
        "is chance"
        + (f", {untrained} the model before training" if before else "")
        + "; *all negative* is the accuracy of always saying no.",
        "",
        *table((*heads, "all negative"), rows),
        f"ECE {number(test['ece'])}, Brier {number(test['brier'])}.",
        "",
    ]


def _limits_section(metrics: Mapping[str, Any]) -> list[str]:
    """What the figures do not say."""
    test = metrics["test"]["per_label"]
    dark = [name for name, row in test.items() if row["auroc"] is None or row["auroc_ci95"] is None]
    lines = [
        "## Limits",
        "",
        "Frontal chest radiographs alone. Figures hold for images like those of the test split; "
        "other sites, machines and patients were not tested.",
    ]
    if dark:
        lines += ["", f"Not measured, or without an interval: {', '.join(dark)}."]
    return [*lines, ""]


def _versions_section(record: Mapping[str, Any]) -> list[str]:
    """What made it."""
    found = ", ".join(f"{name} {value}" for name, value in record["versions"].items() if value)
    commit = record.get("git_commit") or "unknown"
    return [
        "## Made by",
        "",
        f"Seed {record['seed']}, source {commit}, begun {record['started']}. {found}.",
        "",
    ]
