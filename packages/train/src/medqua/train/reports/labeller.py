"""Labels of a text: which of the 14 observations it states, denies, or leaves open.

A short list of rules for the wording of phantoms and what is close to it. It is no CheXpert
labeller: on clinical reports its recall is unknown, so figures made with it compare texts that
were all read by the same rules.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int8

from medqua.core.findings.labels import CHEXPERT_NAMES

UNMENTIONED = 2
"""Code of a label that a text says nothing of, beside 1, 0 and -1."""

TERMS: Mapping[str, re.Pattern[str]] = {
    name: re.compile(pattern)
    for name, pattern in {
        "Enlarged Cardiomediastinum": r"mediastinal (widening|enlargement)|(widen\w*|enlarge\w*)"
        r" (of )?(the )?(cardio)?mediastinum",
        "Cardiomegaly": r"cardiomegaly|(heart|cardiac silhouette) is enlarged"
        r"|enlarge\w* (of )?(the )?(heart|cardiac)",
        "Lung Opacity": r"opacit(y|ies)|opacification",
        "Lung Lesion": r"lesion|nodule|\bmass(es)?\b",
        "Edema": r"edema",
        "Consolidation": r"consolidation",
        "Pneumonia": r"pneumoni[ac]",
        "Atelectasis": r"atelecta(sis|tic)",
        "Pneumothorax": r"pneumothora(x|ces)|pleural air",
        "Pleural Effusion": r"effusion|pleural fluid",
        "Pleural Other": r"pleural (thickening|scarring)",
        "Fracture": r"fracture",
        "Support Devices": r"support (hardware|devices?)|indwelling tub\w+|pacemaker|\bcatheter",
        "No Finding": r"no acute (cardiopulmonary|abnormality)|unremarkable chest|normal chest",
    }.items()
}
"""Observation -> what names it, in lower case."""

UNSURE = re.compile(
    r"possibl[ey]|questionable|cannot be excluded|can not be excluded|may represent|suspected"
    r"|not excluded|probable|concern for"
)
"""Words that leave open what their clause names."""

DENIED = re.compile(r"\b(no|not|without|absence of|free of|negative for|absent|denies)\b")
"""Words that deny what their clause names."""

CLAUSES = re.compile(r"[.;\n]\s*|,? \b(?:but|however|although|except)\b,? ")
"""Where a denial or a doubt ends."""

RANK = {UNMENTIONED: 0, 0: 1, -1: 2, 1: 3}
"""What wins where clauses differ, the larger the stronger: present, uncertain, absent."""


def label_text(text: str) -> dict[str, int]:
    """Read the labels from a text.

    Args:
        text: Findings, or findings and impression; case and line breaks do not matter.

    Returns:
        For each of the 14 observations 1 (stated), 0 (denied), -1 (left open) or `UNMENTIONED`.
        Where clauses differ, present wins over uncertain and that over absent, as in CheXpert's
        aggregation.
    """
    found = dict.fromkeys(CHEXPERT_NAMES, UNMENTIONED)
    for clause in CLAUSES.split(" ".join(text.lower().replace(".\n", ". ").split())):
        normal = TERMS["No Finding"].search(clause) is not None
        value = -1 if UNSURE.search(clause) else 0 if DENIED.search(clause) else 1
        for name, term in TERMS.items():
            said = 1 if name == "No Finding" and normal else value
            if term.search(clause) and RANK[said] > RANK[found[name]]:
                found[name] = said
    return found


def label_texts(texts: Sequence[str]) -> Int8[np.ndarray, "n l"]:
    """Labels of several texts, `[N, 14]` int8, columns in the order of `CHEXPERT_NAMES`."""
    rows = [[label_text(text)[name] for name in CHEXPERT_NAMES] for text in texts]
    return np.array(rows, np.int8).reshape(len(texts), len(CHEXPERT_NAMES))
