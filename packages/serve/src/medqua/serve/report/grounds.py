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
from medqua.serve.objects.reference import read_reference


@dataclass(frozen=True)
class Grounds:
    """Of one file's report."""

    image: dict[str, Any]
    """The image, as `medqua.serve.objects.reference` gives it, in DICOM's JSON."""
    when: str
    """Time of the report's content, ISO 8601, local."""
    provenance: dict[str, Any]
    """What produced the findings."""
    device: str
    """Name of this installation."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> "Grounds":
        """Take back what `to_dict` gave."""
        return cls(**{field.name: told[field.name] for field in fields(cls)})

    def reference(self) -> Dataset:
        """Return the image's attributes."""
        return Dataset.from_json(self.image)


def read_grounds(
    content: bytes, provenance: Mapping[str, Any], device: str, when: datetime
) -> Grounds:
    """Take from a file what its report needs.

    Raises:
        ImageError: It is no DICOM file, or lacks a UID.
    """
    image = read_reference(content).to_json_dict()
    return Grounds(image, when.isoformat(), dict(provenance), device)


def findings_of(answer: Mapping[str, Any]) -> Findings:
    """Return the findings of an answer with status 200, as `Answer.to_dict` gives it."""
    found = tuple(
        Finding(
            entry["label"],
            None if entry["code"] is None else Code(**entry["code"]),
            entry["logit"],
            entry["probability"],
        )
        for entry in answer["findings"]
    )
    if (told := answer["quantum"]) is None:
        return Findings(found)
    record = {**told, "paths": tuple(told["paths"]), "routed": tuple(told["routed"])}
    return Served(found, QuantumRecord(**record))
