"""What reports are made from besides findings and image, and the UIDs that follow from it.

A UID names one object (PS3.5 9.1). So ours follow from all that decides an object: the content of
the image's file, the model and its parameters, the time, the report before it. The same again gives
the same UID; anything else gives another one. Findings follow from content and model up to the last
digits; where reports are sent, `medqua.serve.jobs.ledger` keeps those of the first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydicom.dataset import Dataset

from medqua.core.findings.result import Findings
from medqua.serve.inference.results import Served
from medqua.serve.objects.identity import MANUFACTURER, derive_uid

Kind = Literal["SR", "SC", "KO"]
"""Structured report, secondary capture, key object selection."""


@dataclass(frozen=True)
class Predecessor:
    """The report that another one follows, of the same image."""

    study: str
    """Its study instance UID."""
    series: str
    """Its series instance UID."""
    instance: str
    """Its SOP instance UID."""


@dataclass(frozen=True)
class ReportOptions:
    """What a report is made from besides findings and the image's attributes."""

    provenance: Mapping[str, Any]
    """What produced the findings, as `Provenance` or `ServingSession.provenance()` tells it."""
    content: str
    """Hash of the image's file, `medqua.serve.objects.identity.content_of`."""
    device: str = MANUFACTURER
    """Name of this device as observer; a site may name its installation."""
    predecessor: Predecessor | None = None
    """The report that this one follows; None for an image's first."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Provenance as `key=value`, in order of keys; what is empty is left out."""
        told = {key: value for key, value in self.provenance.items() if key != "version"}
        return tuple(
            f"{key}={plain(value)}"
            for key, value in sorted(told.items())
            if value not in (None, "", (), [])
        )


def parameters_of(findings: Findings, options: ReportOptions) -> tuple[str, ...]:
    """Return the parameters of the algorithm that a report tells, as `key=value`."""
    told = (*options.parameters, "probability=calibrated")
    if isinstance(findings, Served):
        record = findings.quantum
        told += (f"quantum_paths={plain(record.paths) or 'none'}",)
        if record.reason:
            told += (f"quantum_fallback={record.reason}",)
    return told


def decisive(
    findings: Findings, image: Dataset, options: ReportOptions, kind: Kind, when: datetime
) -> tuple[str, ...]:
    """Return what the UIDs of an object follow from."""
    before = options.predecessor
    return (
        str(image.SOPInstanceUID),
        options.content,
        kind,
        options.device,
        "" if before is None else before.instance,
        when.isoformat(),
        *parameters_of(findings, options),
    )


def report_uids(
    findings: Findings, image: Dataset, options: ReportOptions, when: datetime
) -> Predecessor:
    """Return the UIDs of a structured report, as those who follow it name it."""
    parts = decisive(findings, image, options, "SR", when)
    series, instance = derive_uid("series", *parts), derive_uid("instance", *parts)
    return Predecessor(str(image.StudyInstanceUID), series, instance)


def plain(value: object) -> str:
    """Return a value of the provenance as text."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)
