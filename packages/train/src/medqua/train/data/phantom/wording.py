"""The report of a phantom study: several phrasings of each finding, consistent with its labels.

Every label that is not blank gets a sentence: present, absent (`No ...`) or uncertain (`Possible
...`). The layout is that of MIMIC-CXR's reports: FINAL REPORT, then sections whose names are in
capitals and end with a colon.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from medqua.train.data.phantom.causes import Cause

PHRASES: Mapping[str, tuple[str, ...]] = {
    "Atelectasis": ("atelectasis", "plate-like atelectasis", "atelectatic change"),
    "Cardiomegaly": ("cardiomegaly", "enlargement of the heart", "an enlarged heart"),
    "Consolidation": ("consolidation", "airspace consolidation"),
    "Edema": ("pulmonary edema", "interstitial edema", "edema"),
    "Enlarged Cardiomediastinum": ("mediastinal widening", "widening of the mediastinum"),
    "Fracture": ("rib fracture", "displaced rib fracture"),
    "Lung Lesion": ("lung lesion", "pulmonary nodule"),
    "Lung Opacity": ("lung opacity", "hazy opacity"),
    "Pleural Effusion": ("pleural effusion", "pleural fluid"),
    "Pleural Other": ("pleural thickening", "pleural scarring"),
    "Pneumonia": ("pneumonia", "pneumonic infiltrate"),
    "Pneumothorax": ("pneumothorax", "pleural air"),
    "Support Devices": ("support hardware", "indwelling tubing"),
}
"""Finding -> how reports call it."""

PRESENT = ("{x} is present.", "{x} is seen.", "{x}.")
ABSENT = ("no {x}.", "no evidence of {x}.", "no {x} is seen.")
UNCERTAIN = ("possible {x}.", "{x} cannot be excluded.", "questionable {x}.")
NORMAL = (
    "no acute cardiopulmonary process.",
    "no acute abnormality of the chest.",
    "unremarkable chest radiograph.",
)
"""Sentences of present, absent and uncertain findings, and of a study without any."""

CENTRAL = ("Cardiomegaly", "Edema", "Enlarged Cardiomediastinum", "Support Devices")
"""Findings without a side."""


def report(
    labels: Mapping[str, float | None], causes: Mapping[str, Cause], rng: np.random.Generator
) -> str:
    """Write the report of one study.

    Args:
        labels: Finding -> 1.0, 0.0, -1.0 or None, as `chexpert.csv` has them.
        causes: Finding -> cause, for the sides.
        rng: Chooses among phrasings; the report's own, so that no image depends on it.

    Returns:
        The text of `sNNNNNNNN.txt`. Every label can be read from it, and no other.
    """

    def sided(name: str) -> str:
        cause = causes.get(name)
        if cause is None or name in CENTRAL or rng.random() < 0.3:
            return _chosen(PHRASES[name], rng)
        return f"{_chosen(PHRASES[name], rng)} on the {'right' if cause.side < 0 else 'left'}"

    groups = {value: [n for n in PHRASES if labels[n] == value] for value in (1.0, -1.0, 0.0)}
    findings = [_chosen(PRESENT, rng).format(x=sided(name)) for name in groups[1.0]]
    findings += [_chosen(UNCERTAIN, rng).format(x=sided(name)) for name in groups[-1.0]]
    absent = list(groups[0.0])
    while absent:
        taken = absent[: int(rng.integers(1, 3))]
        del absent[: len(taken)]
        names = " or ".join(_chosen(PHRASES[name], rng) for name in taken)
        findings.append(_chosen(ABSENT, rng).format(x=names))
    impression = [f"{' and '.join(PHRASES[n][0] for n in groups[1.0])}."] if groups[1.0] else []
    if labels["No Finding"] == 1.0:
        findings.append(_chosen(NORMAL, rng))
        impression.append(NORMAL[0])
    elif not impression:
        impression = [f"possible {' or '.join(PHRASES[n][0] for n in groups[-1.0])}."]
    return (
        " " * 33 + "FINAL REPORT\n SYNTHETIC PHANTOM, NOT A PATIENT.\n \n"
        f" FINDINGS: \n \n {_sentences(findings)}\n \n"
        f" IMPRESSION: \n \n {_sentences(impression)}\n"
    )


def _chosen(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _sentences(parts: Sequence[str]) -> str:
    return " ".join(part[0].upper() + part[1:] for part in parts)
