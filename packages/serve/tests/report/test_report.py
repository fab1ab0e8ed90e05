"""A report says what it must, where it must, the same each time, and another finds it valid."""

import shutil
import subprocess
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset, dcmread

from medqua.core.errors import ImageError
from medqua.core.findings import CHEXPERT_NAMES, Calibration, name_findings
from medqua.serve.objects.identity import derive_uid, is_own, is_own_uid, is_uid
from medqua.serve.objects.reference import read_reference, reference
from medqua.serve.report.options import ReportOptions
from medqua.serve.report.sr import DISCLAIMER, build_report, to_bytes

LABELS = (*CHEXPERT_NAMES, "Our own label")
FINDINGS = name_findings(
    np.linspace(-3, 3, 15, dtype=np.float32)[None], LABELS, Calibration.identity(15)
)[0]
OPTIONS = ReportOptions(
    {
        "bundle": "ab" * 32, "export": "cd" * 32, "profile": "mimic-cxr-jpg", "version": "0.1.0",
        "quantum_target": "qpp-cpu", "shots": 1000, "seed": 3, "engines": ("exact",),
        "intended_use": "Research use only, not for diagnosis.",
    },
    content="ef" * 32,
)  # fmt: skip
WHEN = datetime(2026, 1, 2, 3, 4, 5)


def source(**values: object) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3.1", "1.2.3", "1.2.3.2"
    ds.PatientName, ds.PatientID = "Fictitious^Ada", "X1"
    ds.Rows = ds.Columns = 8
    ds.Modality = "CR"
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def test_every_finding_is_coded_with_its_probability_in_percent() -> None:
    report = build_report(FINDINGS, reference(source()), OPTIONS, when=WHEN)
    measurements = next(
        item for item in report.ContentSequence
        if item.ConceptNameCodeSequence[0].CodeMeaning == "Imaging Measurements"
    )  # fmt: skip
    assert len(measurements.ContentSequence) == len(FINDINGS)
    for group, finding in zip(measurements.ContentSequence, FINDINGS, strict=True):
        items = {item.ConceptNameCodeSequence[0].CodeValue: item for item in group.ContentSequence}
        number = items["111012"].MeasuredValueSequence[0]
        assert number.MeasurementUnitsCodeSequence[0].CodeValue == "%"
        assert float(number.NumericValue) == pytest.approx(100 * finding.probability, abs=1e-4)
        [code] = [
            item.ConceptNameCodeSequence[0] for item in group.ContentSequence
            if item.ValueType == "CODE" and "ConceptCodeSequence" in item
            and item.ConceptCodeSequence[0].CodeValue == "373068000"  # no operating points
        ]  # fmt: skip
        if finding.code is None:
            assert (code.CodingSchemeDesignator, code.CodeMeaning) == ("99MEDQUA", finding.label)
        else:
            assert (code.CodingSchemeDesignator, code.CodeValue) == (
                finding.code.scheme, finding.code.value,
            )  # fmt: skip
        assert "121071" not in items  # nothing is a finding that is not present
    told = [
        item.TextValue for item in report.ContentSequence
        if item.ConceptNameCodeSequence[0].CodeValue == "111002"
    ]  # fmt: skip
    assert {f"bundle={'ab' * 32}", f"export={'cd' * 32}", "shots=1000", "seed=3"} <= set(told)
    assert {"quantum_target=qpp-cpu", "profile=mimic-cxr-jpg"} <= set(told)
    assert to_bytes(report).count(b"shots=1000") == 1  # once, not once a finding


def test_it_is_in_the_study_unverified_and_not_for_diagnosis() -> None:
    image = source(StudyID="7", AccessionNumber="A1", StudyDate="20200102")
    report = build_report(FINDINGS, reference(image), OPTIONS, when=WHEN)
    for keyword in ("StudyInstanceUID", "PatientName", "PatientID", "StudyID", "AccessionNumber"):
        assert report[keyword].value == image[keyword].value
    assert (report.CompletionFlag, report.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0]
    refers = evidence.ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert refers.ReferencedSOPInstanceUID == image.SOPInstanceUID
    assert DISCLAIMER in [item.get("TextValue") for item in report.ContentSequence]


def test_a_retry_is_the_same_object_and_other_options_are_another() -> None:
    image = reference(source())
    first = build_report(FINDINGS, image, OPTIONS, when=WHEN)
    assert to_bytes(first) == to_bytes(build_report(FINDINGS, image, OPTIONS, when=WHEN))
    other = replace(OPTIONS, provenance={**OPTIONS.provenance, "shots": 2000})
    assert build_report(FINDINGS, image, other).SOPInstanceUID != first.SOPInstanceUID
    assert is_own(first)
    first.Manufacturer = "Archive"  # coerced on the way
    assert is_own(first)
    assert not is_own(source())


@given(st.lists(st.text(max_size=20), min_size=1, max_size=4))
def test_derived_uids_are_uids_and_known_as_ours(parts: list[str]) -> None:
    uid = derive_uid(*parts)
    assert is_uid(uid)
    assert is_own_uid(uid)
    assert derive_uid(*parts, "") != uid


@given(st.uuids(version=4))
def test_uids_of_others_are_not_ours(other: object) -> None:
    assert not is_own_uid(f"2.25.{int(other)}")  # type: ignore[call-overload]


@pytest.mark.parametrize("uid", ["../../tmp/evil", "", "1..2", "1.02", "1." * 40 + "1", "1.2/3"])
@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
def test_an_image_without_a_true_uid_is_refused_without_quoting_it(uid: str, keyword: str) -> None:
    image = source()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        setattr(image, keyword, uid)
    with pytest.raises(ImageError, match=keyword) as caught:
        reference(image)
    assert not uid or uid not in str(caught.value)


def test_careless_values_are_left_empty_and_names_are_never_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = source(
            PatientName="Single", PatientBirthDate="1.2.1960", PatientSex="female",
            StudyTime="half past ten", ReferringPhysicianName="ward", StudyDate="20210231",
        )  # fmt: skip
    report = build_report(FINDINGS, reference(image), OPTIONS)  # warnings are errors here
    assert [report[k].value for k in ("PatientBirthDate", "PatientSex", "StudyDate")] == [""] * 3
    assert report.PatientName == "Single"


def test_text_of_other_scripts_survives() -> None:
    image = reference(source(SpecificCharacterSet="ISO_IR 192", PatientName="Müller^Özge"))
    report = dcmread(BytesIO(to_bytes(build_report(FINDINGS, image, OPTIONS))))
    assert report.PatientName == "Müller^Özge"


@pytest.mark.parametrize("hostile", [b"", b"\x89PNG", b"DICM" * 50, bytes(200)])
def test_what_is_no_dicom_file_is_refused(hostile: bytes) -> None:
    with pytest.raises(ImageError):
        read_reference(hostile)


def test_three_thousand_nested_sequences_are_refused() -> None:
    head = b"\x08\x00\x16\x00UI\x1a\x001.2.840.10008.5.1.4.1.1.1\x00"
    opening = b"\x40\x00\x75\x02SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    with pytest.raises(ImageError):
        read_reference(head + 3000 * opening)


def test_no_validator_error_for_any_genuine_radiograph(
    shared_data: Path, tmp_path: Path, missing_peer: Callable[[str], NoReturn]
) -> None:
    if shutil.which("dciodvfy") is None:
        missing_peer("dciodvfy is not installed: apt-get install dicom3tools")
    files = [*shared_data.glob("dicom/cxr_*.dcm"), *shared_data.glob("dicom/derived_cxr/*.dcm")]
    assert len(files) > 10
    for file in files:
        report = tmp_path / "report.dcm"
        report.write_bytes(
            to_bytes(build_report(FINDINGS, read_reference(file.read_bytes()), OPTIONS))
        )
        done = subprocess.run(["dciodvfy", report], capture_output=True, check=False)
        told = (done.stdout + done.stderr).decode(errors="replace")
        assert "Comprehensive3DSR" in told
        assert "Error" not in told, (file.name, told)
