"""What a model says about one image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medqua.core.findings.calibration import Calibration
from medqua.core.findings.labels import ALIASES, CHEXPERT, NIH, Code
from medqua.core.findings.validation import Call, Validation

_CODES = {known.name: known.code for known in (*NIH, *CHEXPERT)}


@dataclass(frozen=True)
class Finding:
    """One label of one image."""

    label: str
    """Name of the observation, in the model's label set."""
    code: Code | None
    """Its code; None for a label of the user's own."""
    logit: float
    """The head's score."""
    probability: float
    """Calibrated probability that the label holds, in [0, 1]."""
    call: Call = "not judged"
    """What that is worth at the model's operating points."""


@dataclass(frozen=True)
class Findings:
    """All labels of one image, in the order of the model's label set."""

    findings: tuple[Finding, ...]
    """One entry a label."""

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __getitem__(self, label: str) -> Finding:
        """Return the finding of a label.

        Raises:
            KeyError: The model does not know the label.
        """
        for finding in self.findings:
            if finding.label == label:
                return finding
        raise KeyError(label)

    def unjudged(self) -> "Findings":
        """Return the same with nothing called: for an image that is not of the model's domain."""
        plain = tuple(replace(finding, call="not judged") for finding in self.findings)
        return replace(self, findings=plain)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: one object a label, under `"findings"`."""
        return {
            "findings": [
                {
                    "label": finding.label,
                    "code": None if finding.code is None else vars(finding.code),
                    "logit": finding.logit,
                    "probability": finding.probability,
                    "call": finding.call,
                }
                for finding in self.findings
            ]
        }


def name_findings(
    logits: np.ndarray,
    labels: Sequence[str],
    calibration: Calibration,
    validation: Validation | None = None,
) -> list[Findings]:
    """Turn scores into calibrated findings.

    Args:
        logits: Scores `[N, n_labels]`.
        labels: Names, in the order of the scores.
        calibration: Temperatures, in the same order.
        validation: What validation showed of each label, in the same order: the operating points
            by which findings are called. Without it nothing is judged.

    Returns:
        One `Findings` a row.
    """
    codes = [_CODES.get(ALIASES.get(label, label)) for label in labels]
    measured = [None] * len(codes) if validation is None else validation.labels

    def named(row: np.ndarray, chances: np.ndarray) -> Iterator[Finding]:
        for label, code, known, z, p in zip(labels, codes, measured, row, chances, strict=True):
            call: Call = "not judged" if known is None else known.call(float(p))
            yield Finding(label, code, float(z), float(p), call)

    rows = zip(logits, calibration(logits), strict=True)
    return [Findings(tuple(named(row, chances))) for row, chances in rows]
