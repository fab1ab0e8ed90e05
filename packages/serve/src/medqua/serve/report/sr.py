"""Findings as a DICOM structured report in the study of their image.

A Comprehensive 3D SR by TID 1500 (PS3.16): one measurement group (TID 1501) a label, with its code,
its site and the calibrated probability as "Certainty of Finding" (DCM 111012: the likelihood that
the finding is of the type named) in percent, as the chest CAD templates give it (TID 4104); the
algorithm with its parameters (TID 4019); the device as observer. It is never verified, and says
what it is not for. A report of the same image, model and options has the same UIDs.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from io import BytesIO
from typing import Any

from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian

from medqua.core.findings.labels import ALIASES, CHEXPERT, NIH, Observation
from medqua.core.findings.result import Finding, Findings
from medqua.serve.inference.results import Served
from medqua.serve.objects.identity import MANUFACTURER, derive_uid
from medqua.serve.objects.reference import TAKEN

DISCLAIMER = "Research use only. Not for diagnostic use."
"""Stands in the content of every report."""

PRIVATE_SCHEME = "99MEDQUA"
"""Coding scheme of labels of the user's own."""

SERIES_NUMBER = 9901
"""Series Number (0020,0011), away from those of modalities."""

_KNOWN = {known.name: known for known in (*NIH, *CHEXPERT)}


@dataclass(frozen=True)
class ReportOptions:
    """What a report is made from besides findings and image."""

    provenance: Mapping[str, Any]
    """What produced the findings, as `Provenance` or `ServingSession.provenance()` tells it."""
    device: str = MANUFACTURER
    """Name of this device as observer; a site may name its installation."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Provenance as `key=value`, in order of keys; what is empty is left out."""
        told = {key: value for key, value in self.provenance.items() if key != "version"}
        return tuple(
            f"{key}={_plain(value)}"
            for key, value in sorted(told.items())
            if value not in (None, "", (), [])
        )


def build_report(
    findings: Findings, image: Dataset, options: ReportOptions, *, when: datetime | None = None
) -> Dataset:
    """Write findings as a structured report.

    Args:
        findings: What a model says of the image.
        image: Its attributes, from `medqua.serve.objects.reference`.
        options: Provenance.
        when: Time of the content; now by default. The UIDs do not depend on it.

    Returns:
        A Comprehensive 3D SR with file meta information, explicit VR little endian.
    """
    when = when or datetime.now()
    parameters = (*options.parameters, "probability=calibrated")
    if isinstance(findings, Served):
        parameters += tuple(_of_result(findings))
    parts = decisive(image, options, "SR")
    algorithm = sr.AlgorithmIdentification(
        name=MANUFACTURER, version=_version(options), parameters=parameters
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer(options)),
        procedure_reported=Code("399208008", "SCT", "Plain chest X-ray"),
        imaging_measurements=[_group(finding, image, algorithm, parts) for finding in findings],
        title=codes.DCM.ImagingMeasurementReport,
    )
    content[0].ContentSequence.append(
        sr.TextContentItem(codes.DCM.Comment, DISCLAIMER, sr.RelationshipTypeValues.CONTAINS)
    )
    if stated := str(options.provenance.get("intended_use", "")):
        content[0].ContentSequence.append(
            sr.TextContentItem(codes.DCM.Comment, stated, sr.RelationshipTypeValues.CONTAINS)
        )
    report = sr.Comprehensive3DSR(
        evidence=[nameless(image)],
        content=content[0],
        series_instance_uid=derive_uid("series", *parts),
        series_number=SERIES_NUMBER,
        sop_instance_uid=derive_uid("instance", *parts),
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=True,
        is_final=False,
        is_verified=False,
        series_description="Findings by MedQua: research use only",
        manufacturer_model_name="medqua-serve",
        software_versions=version("medqua-serve"),
        device_serial_number=str(options.provenance.get("bundle", "unknown"))[:16],
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    return finish(report, image, when)


def nameless(image: Dataset) -> Dataset:
    """Return a copy without names: highdicom warns of unusual ones, and would quote them."""
    copy = deepcopy(image)
    copy.PatientName = copy.ReferringPhysicianName = ""
    return copy


def observer(options: ReportOptions) -> sr.ObserverContext:
    """Return this device as observer."""
    return sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=derive_uid("device", options.device, str(options.provenance.get("bundle"))),
            name=options.device,
            manufacturer_name=MANUFACTURER,
            model_name="medqua-serve",
        ),
    )


def finish(ds: Dataset, image: Dataset, when: datetime) -> Dataset:
    """Give an object the study's attributes, the character set of its text, and its times."""
    for keyword in TAKEN:
        if keyword in image:
            setattr(ds, keyword, image[keyword].value)
    ds.SpecificCharacterSet = "ISO_IR 192"
    date, time = when.strftime("%Y%m%d"), when.strftime("%H%M%S")
    for name in ("InstanceCreation", "Content", "Series"):
        setattr(ds, f"{name}Date", date)
        setattr(ds, f"{name}Time", time)
    if "DateOfSecondaryCapture" in ds:
        ds.DateOfSecondaryCapture, ds.TimeOfSecondaryCapture = date, time
    for equipment in ds.get("ContributingEquipmentSequence", ()):
        equipment.ContributionDateTime = date + time
    return ds


def to_bytes(ds: Dataset) -> bytes:
    """Return an object as a DICOM file (PS3.10)."""
    stream = BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _group(
    finding: Finding, image: Dataset, algorithm: sr.AlgorithmIdentification, parts: Iterable[str]
) -> sr.MeasurementsAndQualitativeEvaluations:
    known = _KNOWN.get(ALIASES.get(finding.label, finding.label))
    site = None if known is None or known.site is None else _code(known.site)
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=derive_uid("finding", finding.label, *parts), identifier=finding.label
        ),
        finding_type=_type(finding, known),
        algorithm_id=algorithm,
        finding_sites=None if site is None else [sr.FindingSite(site)],
        measurements=[
            sr.Measurement(
                name=codes.DCM.CertaintyOfFinding,
                value=round(100 * finding.probability, 4),
                unit=codes.UCUM.Percent,
            )
        ],
        source_images=[sr.SourceImageForMeasurementGroup(image.SOPClassUID, image.SOPInstanceUID)],
    )


def _type(finding: Finding, known: Observation | None) -> Code:
    if finding.code is not None:
        return _code(finding.code)
    if known is not None:
        return _code(known.code)
    value = f"L{derive_uid('label', finding.label)[-12:]}"
    return Code(value, PRIVATE_SCHEME, finding.label[:64])


def _code(code: Any) -> Code:
    return Code(code.value, code.scheme, code.meaning)


def decisive(image: Dataset, options: ReportOptions, kind: str) -> tuple[str, ...]:
    """Return what the UIDs follow from: image, model, options, kind of object."""
    return (str(image.SOPInstanceUID), kind, options.device, *options.parameters)


def _of_result(findings: Served) -> Iterable[str]:
    record = findings.quantum
    yield f"quantum_paths={_plain(record.paths) or 'none'}"
    if record.reason:
        yield f"quantum_fallback={record.reason}"


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)


def _version(options: ReportOptions) -> str:
    return str(options.provenance.get("version") or version("medqua-core"))
