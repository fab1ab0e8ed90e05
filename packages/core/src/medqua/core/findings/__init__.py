"""What the models look for, and probabilities that mean what they say."""

from medqua.core.findings.calibration import (
    Calibration,
    expected_calibration_error,
    mean_calibration_error,
)
from medqua.core.findings.labels import (
    CHEXPERT,
    CHEXPERT_NAMES,
    CHEXPERT_TO_NIH,
    NIH,
    NIH_NAMES,
    NIH_TO_CHEXPERT,
    Code,
    Mapping,
    Observation,
    observation,
)
from medqua.core.findings.result import Finding, Findings, name_findings
from medqua.core.findings.validation import Validation

__all__ = [
    "CHEXPERT",
    "CHEXPERT_NAMES",
    "CHEXPERT_TO_NIH",
    "NIH",
    "NIH_NAMES",
    "NIH_TO_CHEXPERT",
    "Calibration",
    "Code",
    "Finding",
    "Findings",
    "Mapping",
    "Observation",
    "Validation",
    "expected_calibration_error",
    "mean_calibration_error",
    "name_findings",
    "observation",
]
