"""What a model says about one image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medqua.core.findings.calibration import Calibration
from medqua.core.findings.labels import ALIASES, CHEXPERT, NIH, Code

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

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: one object a label, under `"findings"`."""
        return {
            "findings": [
                {
                    "label": finding.label,
                    "code": None if finding.code is None else vars(finding.code),
                    "logit": finding.logit,
                    "probability": finding.probability,
                }
                for finding in self.findings
            ]
        }


def name_findings(
    logits: np.ndarray, labels: Sequence[str], calibration: Calibration
) -> list[Findings]:
    """Turn scores into calibrated findings.

    Args:
        logits: Scores `[N, n_labels]`.
        labels: Names, in the order of the scores.
        calibration: Temperatures, in the same order.

    Returns:
        One `Findings` a row.
    """
    codes = [_CODES.get(ALIASES.get(label, label)) for label in labels]
    return [
        Findings(
            tuple(
                Finding(label, code, float(z), float(p))
                for label, code, z, p in zip(labels, codes, row, chances, strict=True)
            )
        )
        for row, chances in zip(logits, calibration(logits), strict=True)
    ]
