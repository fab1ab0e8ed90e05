"""What comes with a report is marked as ours and for research, and another finds it valid."""

import shutil
import subprocess
from collections.abc import Callable
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from medqua.core.findings import CHEXPERT_NAMES, Calibration, name_findings
from medqua.core.findings.validation import Validation
from medqua.serve.objects.heads import read_head
from medqua.serve.objects.reference import read_reference
from medqua.serve.processes.clerk import picture_of
from medqua.serve.report.capture import BAND, PANEL, SIDE, build_capture, draw
from medqua.serve.report.key_object import build_key_object
from medqua.serve.report.options import ReportOptions
from medqua.serve.report.sr import DISCLAIMER, to_bytes

LOGITS = np.linspace(-3, 3, 14, dtype=np.float32)[None]
GRID = np.repeat(np.linspace(0, 1, 101)[:, None], 14, axis=1)
HALF = Validation.measure(GRID, GRID >= 0.5)  # a model that is right at 0.5
IDENTITY = Calibration.identity(14)
FINDINGS = name_findings(LOGITS, CHEXPERT_NAMES, IDENTITY, HALF)[0]
UNLIKELY = name_findings(np.full_like(LOGITS, -3), CHEXPERT_NAMES, IDENTITY, HALF)[0]
UNJUDGED = name_findings(LOGITS, CHEXPERT_NAMES, IDENTITY)[0]
OPTIONS = ReportOptions({"bundle": "ab" * 32, "profile": "mimic-cxr-jpg"}, content="ef" * 32)
WHEN = datetime(2026, 1, 2, 3, 4, 5)


@pytest.fixture
def genuine(shared_data: Path) -> list[bytes]:
    files = [*shared_data.glob("dicom/cxr_*.dcm"), *shared_data.glob("dicom/derived_cxr/*.dcm")]
    assert len(files) > 10
    return [file.read_bytes() for file in files]


def test_findings_are_drawn_beside_the_picture_and_between_two_bands() -> None:
    picture = np.full((SIDE, SIDE), 100, np.uint8)
    drawn = draw(picture, FINDINGS, "bundle")
    assert drawn.shape == (SIDE + 2 * BAND, SIDE + PANEL)
    assert (drawn[BAND : BAND + SIDE, :SIDE] == picture).all()
    panel = drawn[BAND : BAND + SIDE, SIDE:]
    other = draw(picture, UNLIKELY, "bundle")[BAND : BAND + SIDE, SIDE:]
    assert (panel != other).any()
    for band in (drawn[:BAND], drawn[BAND + SIDE :]):
        assert 0.02 < (band == 0).mean() < 0.5  # dark letters on light ground


def test_a_capture_is_marked_and_known_as_ours(genuine: list[bytes]) -> None:
    image = read_reference(genuine[0])
    picture = np.asarray(Image.open(BytesIO(picture_of(genuine[0]))))
    capture = build_capture(FINDINGS, image, picture, OPTIONS, when=WHEN)
    assert capture.BurnedInAnnotation == "YES"
    assert capture.ImageType == ["DERIVED", "SECONDARY"]
    assert DISCLAIMER in capture.ImageComments
    assert "research" in capture.SeriesDescription
    assert capture.StudyInstanceUID == image.StudyInstanceUID
    assert capture.SourceImageSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID
    data = to_bytes(capture)
    assert read_head(data).own
    assert (dcmread(BytesIO(data)).pixel_array[BAND : BAND + SIDE, :SIDE] == picture).all()
    again = build_capture(FINDINGS, image, picture, OPTIONS, when=WHEN)
    assert to_bytes(again) == data


def test_a_key_object_names_likely_findings_only(genuine: list[bytes]) -> None:
    image = read_reference(genuine[0])
    assert build_key_object(UNLIKELY, image, OPTIONS, when=WHEN) is None
    assert build_key_object(UNJUDGED, image, OPTIONS, when=WHEN) is None
    selection = build_key_object(FINDINGS, image, OPTIONS, when=WHEN)
    assert selection is not None
    texts = [item.get("TextValue", "") for item in selection.ContentSequence]
    text = next(text for text in texts if DISCLAIMER in text)
    again = build_key_object(FINDINGS, image, OPTIONS, when=WHEN)
    assert again is not None
    assert to_bytes(again) == to_bytes(selection)
    for finding in FINDINGS:
        counts = finding.label not in ("No Finding", "Support Devices")
        likely = finding.probability >= 0.5 and counts
        assert (f"{finding.label} {100 * finding.probability:.0f} %" in text) == likely
    assert read_head(to_bytes(selection)).own


def test_no_validator_error_for_any_genuine_radiograph(
    genuine: list[bytes], tmp_path: Path, missing_peer: Callable[[str], NoReturn]
) -> None:
    if shutil.which("dciodvfy") is None:
        missing_peer("dciodvfy is not installed: apt-get install dicom3tools")
    picture = np.zeros((SIDE, SIDE), np.uint8)
    for source in genuine:
        image = read_reference(source)
        for ds, kind in (
            (build_capture(FINDINGS, image, picture, OPTIONS, when=WHEN), "SCImage"),
            (build_key_object(FINDINGS, image, OPTIONS, when=WHEN), "KeyObjectSelectionDocument"),
        ):
            assert ds is not None
            file = tmp_path / "object.dcm"
            file.write_bytes(to_bytes(ds))
            done = subprocess.run(["dciodvfy", file], capture_output=True, check=False)
            told = (done.stdout + done.stderr).decode(errors="replace")
            assert kind in told, told
            assert "Error" not in told, told
