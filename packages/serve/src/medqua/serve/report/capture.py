"""A picture of the image with its findings burnt in, for viewers that show no reports.

A Secondary Capture (PS3.3 A.8) of 8 bits in the study of the image. It says on every side that it
is for research only, holds no patient's name, and is marked as derived, burnt in and ours, so that
it is never read as an input.
"""

from datetime import datetime
from importlib.metadata import version

import numpy as np
from highdicom.sc import SCImage
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from medqua.core.findings.result import Findings
from medqua.serve.objects.identity import MANUFACTURER, derive_uid
from medqua.serve.report.options import ReportOptions, decisive
from medqua.serve.report.sr import DISCLAIMER, finish

SIDE = 1024
"""Side of the picture of the image, in pixels."""

PANEL = 448
"""Width of the list of findings beside it, in pixels."""

BAND = 40
"""Height of the bands above and below, in pixels."""

SERIES_NUMBER = 9902
"""Series Number (0020,0011)."""

BANNER = f"MedQua: {DISCLAIMER.upper()}"


def draw(picture: np.ndarray, findings: Findings, made_by: str) -> np.ndarray:
    """Draw findings beside a picture.

    Args:
        picture: The image `[SIDE, SIDE]` uint8, 0 black.
        findings: What a model says of it.
        made_by: Which model, in a line.

    Returns:
        Grey levels `[SIDE + 2 BAND, SIDE + PANEL]` uint8.
    """
    canvas = Image.new("L", (SIDE + PANEL, SIDE + 2 * BAND), 0)
    canvas.paste(Image.fromarray(picture), (0, BAND))
    ink = ImageDraw.Draw(canvas)
    large, small = ImageFont.load_default(24), ImageFont.load_default(20)
    tiny = ImageFont.load_default(14)
    for top in (0, SIDE + BAND):
        ink.rectangle((0, top, SIDE + PANEL, top + BAND - 1), fill=255)
        ink.text((12, top + 6), BANNER, fill=0, font=large)
    left, line = SIDE + 16, BAND + 16
    ink.text((left, line), "Calibrated probability", fill=255, font=large)
    line += 44
    step = min(44, (SIDE - 160) // max(1, len(findings)))
    for finding in findings:
        ink.text((left, line), finding.label[:28], fill=255, font=small)
        told = f"{100 * finding.probability:.0f} %"
        right = SIDE + PANEL - 16
        ink.text((right - ink.textlength(told, small), line), told, fill=255, font=small)
        width = right - left
        ink.rectangle((left, line + 26, right, line + 30), fill=48)
        ink.rectangle((left, line + 26, left + width * finding.probability, line + 30), fill=200)
        line += step
    ink.text((left, SIDE + BAND - 44), made_by, fill=160, font=tiny)
    ink.text((left, SIDE + BAND - 24), "Not verified by a person.", fill=160, font=tiny)
    return np.asarray(canvas)


def build_capture(
    findings: Findings,
    image: Dataset,
    picture: np.ndarray,
    options: ReportOptions,
    *,
    when: datetime,
) -> Dataset:
    """Write findings as a picture.

    Args:
        findings: What a model says of the image.
        image: Its attributes, from `medqua.serve.objects.reference`.
        picture: The image `[SIDE, SIDE]` uint8, 0 black.
        options: As of the report.
        when: Time of the content.

    Returns:
        A Secondary Capture with file meta information, explicit VR little endian.
    """
    parts = decisive(findings, image, options, "SC", when)
    made_by = f"bundle {str(options.provenance.get('bundle', ''))[:16]}, image {image.Modality}"
    capture = SCImage(
        pixel_array=draw(picture, findings, made_by),
        photometric_interpretation="MONOCHROME2",
        bits_allocated=8,
        coordinate_system="PATIENT",
        study_instance_uid=image.StudyInstanceUID,
        series_instance_uid=derive_uid("series", *parts),
        series_number=SERIES_NUMBER,
        sop_instance_uid=derive_uid("instance", *parts),
        instance_number=1,
        manufacturer=MANUFACTURER,
        patient_orientation=("L", "F"),  # required here, and taken away below
    )
    capture.add_new("PatientOrientation", "CS", "")
    capture.BodyPartExamined = "CHEST"
    capture.ImageType = ["DERIVED", "SECONDARY"]
    capture.BurnedInAnnotation = "YES"
    capture.SeriesDescription = "Findings by MedQua, burnt in: research use only"
    capture.DerivationDescription = "Shrunk, and calibrated findings drawn beside it"
    capture.ImageComments = DISCLAIMER
    capture.ManufacturerModelName = "medqua-serve"
    capture.SoftwareVersions = version("medqua-serve")
    source = Dataset()
    source.ReferencedSOPClassUID = image.SOPClassUID
    source.ReferencedSOPInstanceUID = image.SOPInstanceUID
    purpose = Dataset()
    code = codes.DCM.SourceImageForImageProcessingOperation
    purpose.CodeValue, purpose.CodingSchemeDesignator = code.value, code.scheme_designator
    purpose.CodeMeaning = code.meaning
    source.PurposeOfReferenceCodeSequence = [purpose]
    capture.SourceImageSequence = [source]
    if image.get("LossyImageCompression") == "01":
        capture.LossyImageCompression = "01"
    return finish(capture, image, when)
