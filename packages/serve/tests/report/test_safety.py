"""A report cannot be taken for another, and says no more than the model does."""

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from io import BytesIO
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from highdicom import sr
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread

from medqua.core.findings import CHEXPERT_NAMES, Calibration, name_findings
from medqua.core.findings.validation import Validation
from medqua.serve.objects.identity import content_of
from medqua.serve.objects.reference import read_reference, reference
from medqua.serve.report.options import Predecessor, ReportOptions, report_uids
from medqua.serve.report.sr import build_report, to_bytes

WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LOGITS = np.linspace(-3, 3, 14, dtype=np.float32)[None]
GRID = np.repeat(np.linspace(0, 1, 101)[:, None], 14, axis=1)
EVEN = np.arange(101)[:, None] % 2 == 0
LEVELS = Validation.measure(GRID, (GRID >= 0.7) | ((GRID >= 0.3) & EVEN))
"""Below 0.3 no image has it, above 0.7 every one, between them every other one."""
BEFORE = Predecessor("1.2.3", "2.25.7", "2.25.8")
OPTIONS = ReportOptions({"bundle": "ab" * 32, "version": "0.1.0"}, "ef" * 32, predecessor=BEFORE)


def found(logits: np.ndarray = LOGITS, validation: Validation | None = LEVELS) -> Any:
    return name_findings(logits, CHEXPERT_NAMES, Calibration.identity(14), validation)[0]


def source(**values: object) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3.1", "1.2.3", "1.2.3.2"
    ds.PatientName, ds.PatientID, ds.Modality = "Fictitious^Ada", "X1", "CR"
    ds.Rows = ds.Columns = 8
    ds.StudyDate, ds.StudyTime = "20260102", "120000"
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def requested(**values: object) -> Dataset:
    item = Dataset()
    item.RequestedProcedureID, item.AccessionNumber = "RP7", "A1"
    item.RequestedProcedureDescription = "Chest PA"
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def groups(report: Dataset) -> dict[str, dict[str, Any]]:
    """Label -> concept name's code value -> content item, of each measurement group."""
    [container] = [
        item for item in report.ContentSequence
        if item.ConceptNameCodeSequence[0].CodeValue == "126010"
    ]  # fmt: skip
    told = {}
    for group in container.ContentSequence:
        items = {item.ConceptNameCodeSequence[0].CodeValue: item for item in group.ContentSequence}
        told[items["112039"].TextValue] = items
    return told


def value(items: dict[str, Any], code: str) -> str:
    return str(items[code].ConceptCodeSequence[0].CodeMeaning)


def test_present_absent_or_undetermined_by_the_operating_points() -> None:
    findings = found()
    told = groups(build_report(findings, reference(source()), OPTIONS, when=WHEN))
    meanings = {"likely": "Present", "unlikely": "Absent", "uncertain": "Undetermined"}
    assert {finding.call for finding in findings} == set(meanings)
    for finding in findings:
        items = told[finding.label]
        if finding.label == "No Finding":  # it has a test of its own
            continue
        assert value(items, finding.code.value) == meanings[finding.call], finding.label
        assert ("121071" in items) == (finding.call == "likely")  # what is absent is no Finding
        if finding.call == "likely":
            assert items["121071"].ConceptCodeSequence[0].CodeValue == finding.code.value


def test_without_operating_points_nothing_is_a_finding() -> None:
    told = groups(build_report(found(validation=None), reference(source()), OPTIONS, when=WHEN))
    for finding in found():
        assert value(told[finding.label], finding.code.value) == "Undetermined"
        assert "121071" not in told[finding.label]


def test_no_finding_never_stands_beside_one() -> None:
    logits = np.full_like(LOGITS, -3.0)
    logits[0, CHEXPERT_NAMES.index("No Finding")] = 3.0
    code = "373572006"
    alone = groups(build_report(found(logits), reference(source()), OPTIONS, when=WHEN))
    assert value(alone["No Finding"], code) == "Present"
    logits[0, CHEXPERT_NAMES.index("Pneumothorax")] = 3.0
    beside = groups(build_report(found(logits), reference(source()), OPTIONS, when=WHEN))
    assert value(beside["No Finding"], code) == "Undetermined"
    assert "121071" not in beside["No Finding"]
    assert value(beside["Pneumothorax"], "36118008") == "Present"


@pytest.mark.parametrize(
    ("stated", "time", "zone"),
    [
        ("+0900", "120405", "+0900"), ("-0330", "233405", "-0330"), ("+0000", "030405", "+0000"),
        ("", "", ""), ("-0000", "", ""), ("+9900", "", ""), ("CET", "", ""),
    ],
)  # fmt: skip
def test_times_are_in_the_zone_that_the_object_states(stated: str, time: str, zone: str) -> None:
    image = reference(source(TimezoneOffsetFromUTC=stated))
    report = build_report(found(), image, OPTIONS, when=WHEN)
    local = WHEN.astimezone()  # the system's, where the image says nothing that is one
    assert report.TimezoneOffsetFromUTC == (zone or local.strftime("%z"))
    assert report.ContentTime == (time or local.strftime("%H%M%S"))
    there = timezone(
        timedelta(hours=int(report.TimezoneOffsetFromUTC[:3]),
                  minutes=int(report.TimezoneOffsetFromUTC[0] + report.TimezoneOffsetFromUTC[3:]))
    )  # fmt: skip
    told = datetime.strptime(report.ContentDate + report.ContentTime, "%Y%m%d%H%M%S")
    assert told.replace(tzinfo=there) == WHEN


def test_the_request_and_the_removal_of_identity_are_carried_over() -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "36643-5", "LN", "Chest 2 views"
    careless = requested(RequestedProcedureID="", AccessionNumber="")
    image = source(
        RequestAttributesSequence=[requested(RequestedProcedureCodeSequence=[code]), careless],
        PatientIdentityRemoved="YES", DeidentificationMethod="table of PS3.15",
        LongitudinalTemporalInformationModified="MODIFIED",
    )  # fmt: skip
    report = build_report(found(), reference(image), OPTIONS, when=WHEN)
    [request] = report.ReferencedRequestSequence
    assert (request.RequestedProcedureID, request.AccessionNumber) == ("RP7", "A1")
    assert request.StudyInstanceUID == image.StudyInstanceUID
    assert request.RequestedProcedureCodeSequence[0].CodeValue == "36643-5"
    assert request.PlacerOrderNumberImagingServiceRequest == ""
    assert report.PatientIdentityRemoved == "YES"
    assert report.DeidentificationMethod == "table of PS3.15"
    assert report.LongitudinalTemporalInformationModified == "MODIFIED"
    plain = build_report(found(), reference(source()), OPTIONS, when=WHEN)
    for keyword in ("ReferencedRequestSequence", "PatientIdentityRemoved"):
        assert keyword not in plain


_CHANGES: dict[str, Callable[[Any, Dataset, ReportOptions, datetime], tuple[Any, ...]]] = {
    "nothing": lambda f, i, o, w: (f, i, o, w),
    "content": lambda f, i, o, w: (f, i, replace(o, content="aa" * 32), w),
    "model": lambda f, i, o, w: (f, i, replace(o, provenance={"bundle": "cd" * 32}), w),
    "device": lambda f, i, o, w: (f, i, replace(o, device="Ward 3"), w),
    "predecessor": lambda f, i, o, w: (f, i, replace(o, predecessor=None), w),
    "time": lambda f, i, o, w: (f, i, o, w + timedelta(seconds=1)),
    "image": lambda f, i, o, w: (f, reference(source(SOPInstanceUID="1.2.3.9")), o, w),
}


@settings(max_examples=12)
@given(st.sampled_from(sorted(_CHANGES)), st.sampled_from(sorted(_CHANGES)))
def test_one_uid_is_one_object(one: str, other: str) -> None:
    made = []
    for change in (one, other):
        findings, image, options, when = _CHANGES[change](
            found(), reference(source()), OPTIONS, WHEN
        )
        report = build_report(findings, image, options, when=when)
        uids = report_uids(findings, image, options, when)
        assert (uids.series, uids.instance) == (report.SeriesInstanceUID, report.SOPInstanceUID)
        made.append((report.SOPInstanceUID, to_bytes(report)))
    assert (made[0][0] == made[1][0]) == (made[0][1] == made[1][1]) == (one == other)


def test_the_content_of_a_file_is_the_same_whoever_wrote_its_meta_information(
    shared_data: Path,
) -> None:
    data = (shared_data / "dicom" / "cxr_NIH_DX_implicit_nofinding.dcm").read_bytes()
    image = dcmread(BytesIO(data))
    image.file_meta.ImplementationVersionName = "ANOTHER"
    image.file_meta.SourceApplicationEntityTitle = "PACS"
    stream = BytesIO()
    image.save_as(stream, enforce_file_format=True)
    assert stream.getvalue() != data
    assert content_of(stream.getvalue()) == content_of(data)
    assert content_of(data[:-2] + b"xx") != content_of(data)
    assert content_of(b"") != content_of(bytes(200))  # anything has one


def test_other_readers_and_validators_take_it(
    shared_data: Path, tmp_path: Path, missing_peer: Callable[[str], NoReturn]
) -> None:
    for program, package in (("dciodvfy", "dicom3tools"), ("dsrdump", "dcmtk")):
        if shutil.which(program) is None:
            missing_peer(f"{program} is not installed: apt-get install {package}")
    image = dcmread(shared_data / "dicom" / "cxr_NIH_DX_implicit_nofinding.dcm")
    image.TimezoneOffsetFromUTC = "+0900"
    image.PatientIdentityRemoved = "YES"
    image.RequestAttributesSequence = [requested()]
    stream = BytesIO()
    image.save_as(stream, enforce_file_format=True)
    report = build_report(found(), read_reference(stream.getvalue()), OPTIONS, when=WHEN)
    file = tmp_path / "report.dcm"
    file.write_bytes(to_bytes(report))
    done = subprocess.run(["dciodvfy", file], capture_output=True, check=False)
    told = (done.stdout + done.stderr).decode(errors="replace")
    assert "Comprehensive3DSR" in told
    assert "Error" not in told, told
    done = subprocess.run(["dsrdump", file], capture_output=True, check=True)
    tree = done.stdout.decode(errors="replace")
    assert tree.count("Algorithm Parameters") == len(OPTIONS.parameters) + 1
    present = [f for f in found() if f.call == "likely" and f.label != "No Finding"]
    assert tree.count('"Present"') == len(present)
    assert tree.count('"Absent"') == [f.call for f in found()].count("unlikely")
    assert tree.count('"Undetermined"') > 0
    measured = sr.srread(file).content.get_image_measurement_groups()
    assert len(measured) == 14
    shown = [group.finding_type.value for group in measured if group.finding_type is not None]
    assert shown == [finding.code.value for finding in present]
