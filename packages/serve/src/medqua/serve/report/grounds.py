"""What a report is made from beside the findings, kept as plain values until it is wanted.

A report costs a good part of a second; what it follows from is a kilobyte. The same grounds and
the same findings give the same bytes, whenever and however often the report is written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from pydicom.dataset import Dataset

from medqua.core.findings.labels import Code
from medqua.core.findings.result import Finding, Findings
from medqua.serve.inference.results import QuantumRecord, Served
from medqua.serve.objects.identity import content_of
from medqua.serve.objects.reference import read_reference
from medqua.serve.report.options import Predecessor, ReportOptions


@dataclass(frozen=True)
class Grounds:
    """Of one file's report."""

    image: dict[str, Any]
    """The image, as `medqua.serve.objects.reference` gives it, in DICOM's JSON."""
    when: str
    """Time of the report's content, ISO 8601."""
    provenance: dict[str, Any]
    """What produced the findings."""
    device: str
    """Name of this installation."""
    content: str
    """Hash of the image's file, `medqua.serve.objects.identity.content_of`."""
    predecessor: dict[str, str] | None = None
    """UIDs of the report that this one follows, as `Predecessor` has them."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> "Grounds":
        """Take back what `to_dict` gave."""
        return cls(**{field.name: told[field.name] for field in fields(cls) if field.name in told})

    def reference(self) -> Dataset:
        """Return the image's attributes."""
        return Dataset.from_json(self.image)

    def options(self) -> ReportOptions:
        """Return what the report is made from besides findings and image."""
        before = None if self.predecessor is None else Predecessor(**self.predecessor)
        return ReportOptions(self.provenance, self.content, self.device, before)

    @property
    def time(self) -> datetime:
        """Time of the report's content, in its zone."""
        told = datetime.fromisoformat(self.when)
        return told if told.tzinfo else told.astimezone()


def read_grounds(
    content: bytes, provenance: Mapping[str, Any], device: str, when: datetime
) -> Grounds:
    """Take from a file what its report needs.

    Raises:
        ImageError: It is no DICOM file, or lacks a UID.
    """
    image = read_reference(content).to_json_dict()
    return Grounds(image, when.isoformat(), dict(provenance), device, content_of(content))


def findings_of(answer: Mapping[str, Any]) -> Findings:
    """Return the findings of an answer with status 200, as `Answer.to_dict` gives it."""
    found = tuple(
        Finding(
            entry["label"],
            None if entry["code"] is None else Code(**entry["code"]),
            entry["logit"],
            entry["probability"],
            entry.get("call", "not judged"),
        )
        for entry in answer["findings"]
    )
    if (told := answer["quantum"]) is None:
        return Findings(found)
    record = {**told, "paths": tuple(told["paths"]), "routed": tuple(told["routed"])}
    return Served(found, QuantumRecord(**record))
