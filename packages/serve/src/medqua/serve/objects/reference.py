"""The image that a report speaks of: the few attributes of its file that a report takes over.

Values come from files that nobody has checked. What the standard does not allow is left empty, so
that a report of a careless file is still valid; what a report cannot do without is asked for.
"""

from datetime import datetime

from pydicom.config import RAISE
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
)
from pydicom.valuerep import validate_value

from medqua.core.errors import ImageError
from medqua.core.vision.dicom import distrust, is_dicom, parse
from medqua.core.vision.limits import Limits, read_bytes
from medqua.serve.objects.identity import is_uid

NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
"""Without these nothing can refer to the image."""

TAKEN = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex",
    "PatientAge", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID",
    "AccessionNumber", "StudyDescription",
)  # fmt: skip
"""Patient and study attributes that are taken over (PS3.3 C.7.1.1, C.7.2.1, C.7.2.2)."""

LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000, HTJ2K)
"""Transfer syntaxes that lose; an object may say so itself too."""

SEXES = ("M", "F", "O")


def read_reference(source: bytes, limits: Limits | None = None) -> Dataset:
    """Read what a report needs of an image's file; no pixel is decoded.

    Args:
        source: The whole DICOM file.
        limits: Caps on what is inflated.

    Returns:
        See `reference`.

    Raises:
        UnreadableImageError: If it cannot be parsed.
        ImageError: If it is no DICOM file, or lacks a UID.
    """
    limits = limits or Limits()
    data = read_bytes(source, limits)
    if not is_dicom(data):
        raise ImageError("a report belongs to a DICOM image; this file is none")
    with distrust():
        ds, _ = parse(data, limits)
        return reference(ds)


def reference(ds: Dataset) -> Dataset:
    """Copy what a report takes over from an image.

    Returns:
        The image's UIDs, and the attributes `TAKEN` with valid values or none; text as UTF-8.

    Raises:
        ImageError: If a UID is missing or none by PS3.5 9.1.
    """
    taken = Dataset()
    for keyword in NEEDED:
        value = str(ds.get(keyword, "") or "").strip("\0 ")
        if not is_uid(value):
            raise ImageError(
                f"the image has no valid {keyword}: a report refers to images by their UIDs; "
                "export it again from the archive"
            )
        setattr(taken, keyword, value)
    for keyword in TAKEN:
        text = _valid(keyword, ds.get(keyword))
        if text or keyword not in ("IssuerOfPatientID", "PatientAge", "StudyDescription"):
            setattr(taken, keyword, text)
    frames = str(ds.get("NumberOfFrames", "") or "1")
    taken.Rows, taken.Columns = int(ds.get("Rows") or 0), int(ds.get("Columns") or 0)
    taken.NumberOfFrames = int(frames) if frames.isdigit() else 1
    taken.Modality = _valid("Modality", ds.get("Modality")) or "OT"
    if ds.get("LossyImageCompression") == "01" or _syntax(ds) in LOSSY:
        taken.LossyImageCompression = "01"
    taken.SpecificCharacterSet = "ISO_IR 192"
    return taken


def _syntax(ds: Dataset) -> str:
    return str(getattr(ds, "file_meta", {}).get("TransferSyntaxUID", ""))


def _valid(keyword: str, value: object) -> str:
    """Return a value as text where its VR allows it, else nothing."""
    text = "" if value is None else str(value).strip("\0 ")
    if "\\" in text or any(ord(letter) < 32 for letter in text):
        return ""
    tag = tag_for_keyword(keyword)
    vr = dictionary_VR(tag) if tag is not None else "LO"
    try:
        validate_value(vr, text, RAISE)
        if vr == "DA" and text:
            datetime.strptime(text, "%Y%m%d")  # 2019.02.31 and 20190231 are none
    except ValueError:
        return ""
    if keyword == "PatientSex" and text not in SEXES:
        return ""
    return text
