"""Findings as a DICOM structured report in the study of their image.

A Comprehensive 3D SR by TID 1500 (PS3.16): one measurement group (TID 1501) a label. In each stands
whether the label is Present, Absent or Undetermined (CID 240) by the model's operating points, and
the calibrated probability as "Certainty of Finding" (DCM 111012: the likelihood that the finding is
of the type named) in percent, as the chest CAD templates give it (TID 4104). Only what is present
is a "Finding", so that a reader who shows findings alone shows no other. The algorithm's parameters
(TID 4019) stand once, at the root. A report is never verified, and says what it is not for. One
that follows another of the same image names it as its predecessor.
"""

from collections.abc import Iterable
from copy import deepcopy
from datetime import datetime, timedelta, timezone
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
from medqua.core.findings.validation import Call
from medqua.serve.objects.identity import MANUFACTURER, derive_uid
from medqua.serve.objects.reference import TAKEN
from medqua.serve.report.options import (
    Predecessor,
    ReportOptions,
    decisive,
    parameters_of,
)

DISCLAIMER = "Research use only. Not for diagnostic use."
"""Stands in the content of every report."""

PRIVATE_SCHEME = "99MEDQUA"
"""Coding scheme of labels of the user's own."""

SERIES_NUMBER = 9901
"""Series Number (0020,0011), away from those of modalities."""

_KNOWN = {known.name: known for known in (*NIH, *CHEXPERT)}


CALLS: dict[Call, Code] = {
    "likely": codes.SCT.Present,
    "unlikely": codes.SCT.Absent,
    "uncertain": codes.SCT.Undetermined,
    "not judged": codes.SCT.Undetermined,
}
"""What a finding is worth at the operating points -> its code in CID 240 Present-Absent."""

NO_FINDING, DEVICES = "No Finding", "Support Devices"


def build_report(
    findings: Findings, image: Dataset, options: ReportOptions, *, when: datetime | None = None
) -> Dataset:
    """Write findings as a structured report.

    Args:
        findings: What a model says of the image.
        image: Its attributes, from `medqua.serve.objects.reference`.
        options: Provenance.
        when: Time of the content; now by default.

    Returns:
        A Comprehensive 3D SR with file meta information, explicit VR little endian.
    """
    when = when or datetime.now().astimezone()
    parts = decisive(findings, image, options, "SR", when)
    told = options.provenance.get("version") or version("medqua-core")
    algorithm = sr.AlgorithmIdentification(name=MANUFACTURER, version=str(told))
    groups = [
        _group(finding, value, image, algorithm, parts)
        for finding, value in zip(findings, presence(findings), strict=True)
    ]
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer(options)),
        procedure_reported=Code("399208008", "SCT", "Plain chest X-ray"),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    content[0].ContentSequence.extend(
        sr.TextContentItem(
            codes.DCM.AlgorithmParameters, told, sr.RelationshipTypeValues.HAS_CONCEPT_MOD
        )
        for told in parameters_of(findings, options)
    )
    content[0].ContentSequence.append(
        sr.TextContentItem(codes.DCM.Comment, DISCLAIMER, sr.RelationshipTypeValues.CONTAINS)
    )
    domain = str(options.provenance.get("domain", ""))
    for stated in (
        str(options.provenance.get("intended_use", "")),
        f"The model was trained on: {domain}." if domain else "",
    ):
        if stated:
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
    if options.predecessor is not None:
        report.PredecessorDocumentsSequence = [_hierarchy(options.predecessor, report.SOPClassUID)]
    return finish(report, image, when)


def presence(findings: Findings) -> list[Code]:
    """Return for each finding whether it is present: its code in CID 240.

    *No Finding* beside a finding that is present contradicts it, and is undetermined.
    """
    present = any(
        finding.call == "likely" and finding.label not in (NO_FINDING, DEVICES)
        for finding in findings
    )
    return [
        codes.SCT.Undetermined
        if present and finding.label == NO_FINDING and finding.call == "likely"
        else CALLS[finding.call]
        for finding in findings
    ]


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
    """Give an object the study's attributes, the character set of its text, and its times.

    All dates and times of an object are in one zone (PS3.3 C.12.1.1.8): the image's if it states
    one, since the study's date and time come from there; else that of `when`, or the system's.
    """
    for keyword in TAKEN:
        if keyword in image:
            setattr(ds, keyword, image[keyword].value)
    requests = image.get("ReferencedRequestSequence")
    if requests and ds.Modality in ("SR", "KO"):  # PS3.3 C.17.2, C.17.6.2
        ds.ReferencedRequestSequence = deepcopy(requests)
    ds.SpecificCharacterSet = "ISO_IR 192"
    when = when.astimezone(_zone(image))
    ds.TimezoneOffsetFromUTC = when.strftime("%z")[:5]
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
    finding: Finding,
    value: Code,
    image: Dataset,
    algorithm: sr.AlgorithmIdentification,
    parts: Iterable[str],
) -> sr.MeasurementsAndQualitativeEvaluations:
    known = _KNOWN.get(ALIASES.get(finding.label, finding.label))
    site = None if known is None or known.site is None else _code(known.site)
    observed = _type(finding, known)
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=derive_uid("finding", finding.label, *parts), identifier=finding.label
        ),
        finding_type=observed if value == codes.SCT.Present else None,
        algorithm_id=algorithm,
        finding_sites=None if site is None else [sr.FindingSite(site)],
        measurements=[
            sr.Measurement(
                name=codes.DCM.CertaintyOfFinding,
                value=round(100 * finding.probability, 4),
                unit=codes.UCUM.Percent,
            )
        ],
        qualitative_evaluations=[sr.QualitativeEvaluation(observed, value)],
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


def _zone(image: Dataset) -> timezone | None:
    """Return the zone that an image states; None stands for the system's."""
    stated = str(image.get("TimezoneOffsetFromUTC", ""))
    if not stated:
        return None
    minutes = 60 * int(stated[1:3]) + int(stated[3:])
    return timezone(timedelta(minutes=-minutes if stated[0] == "-" else minutes))


def _hierarchy(before: Predecessor, sop_class: str) -> Dataset:
    """Return a reference to a report (PS3.3 table C.17-3, Hierarchical SOP Instance Reference)."""
    item, series, study = Dataset(), Dataset(), Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, before.instance
    series.SeriesInstanceUID, series.ReferencedSOPSequence = before.series, [item]
    study.StudyInstanceUID, study.ReferencedSeriesSequence = before.study, [series]
    return study
