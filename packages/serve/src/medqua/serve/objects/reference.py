"""The image that a report speaks of: the few attributes of its file that a report takes over.

Values come from files that nobody has checked. What the standard does not allow is left empty, so
that a report of a careless file is still valid; what a report cannot do without is asked for.
"""

import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

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
    "AccessionNumber", "StudyDescription", "TimezoneOffsetFromUTC", "PatientIdentityRemoved",
    "DeidentificationMethod", "LongitudinalTemporalInformationModified",
)  # fmt: skip
"""Attributes of patient and study that are taken over (PS3.3 C.7.1.1, C.7.2.1, C.7.2.2), and what
holds for all of the object's values: the zone of its times (C.12.1.1), whether identity and times
were removed (C.7.1.1)."""

NEVER_EMPTY = (
    "IssuerOfPatientID", "PatientAge", "StudyDescription", "TimezoneOffsetFromUTC",
    "PatientIdentityRemoved", "DeidentificationMethod", "LongitudinalTemporalInformationModified",
)  # fmt: skip
"""Those of them that are left out where they are not known."""

TERMS = {
    "PatientSex": ("M", "F", "O"),
    "PatientIdentityRemoved": ("YES", "NO"),
    "LongitudinalTemporalInformationModified": ("UNMODIFIED", "MODIFIED", "REMOVED"),
}
"""Attributes with enumerated values."""

REQUESTED = (
    "AccessionNumber", "PlacerOrderNumberImagingServiceRequest",
    "FillerOrderNumberImagingServiceRequest", "RequestedProcedureID",
    "RequestedProcedureDescription",
)  # fmt: skip
"""Of a request for the procedure (PS3.3 C.17.2, type 2)."""

MOST_REQUESTS = 16
"""Requests that a report names at most."""

LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000, HTJ2K)
"""Transfer syntaxes that lose; an object may say so itself too."""

_ZONE = re.compile(r"[+-](0[0-9]|1[0-4])[0-5][0-9]")


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
        if text or keyword not in NEVER_EMPTY:
            setattr(taken, keyword, text)
    if taken.get("PatientIdentityRemoved") == "YES" and "DeidentificationMethod" not in taken:
        taken.DeidentificationMethod = "as the image states it"  # required beside it
    if requests := list(_requests(ds, taken)):
        taken.ReferencedRequestSequence = requests
    frames = str(ds.get("NumberOfFrames", "") or "1")
    taken.Rows, taken.Columns = int(ds.get("Rows") or 0), int(ds.get("Columns") or 0)
    taken.NumberOfFrames = int(frames) if frames.isdigit() else 1
    taken.Modality = _valid("Modality", ds.get("Modality")) or "OT"
    if ds.get("LossyImageCompression") == "01" or _syntax(ds) in LOSSY:
        taken.LossyImageCompression = "01"
    taken.SpecificCharacterSet = "ISO_IR 192"
    return taken


def _requests(ds: Dataset, taken: Dataset) -> Iterator[Dataset]:
    """Yield the requests that an image answers (Request Attributes Sequence, PS3.3 10.6)."""
    asked: Any = ds.get("RequestAttributesSequence") or ()
    for item in list(asked)[:MOST_REQUESTS]:
        request = Dataset()
        for keyword in REQUESTED:
            setattr(request, keyword, _valid(keyword, item.get(keyword) or ds.get(keyword)))
        if not (request.RequestedProcedureID or request.AccessionNumber):
            continue  # nothing by which anyone could find it
        study = str(item.get("StudyInstanceUID", "") or "").strip("\0 ")
        request.StudyInstanceUID = study if is_uid(study) else taken.StudyInstanceUID
        request.ReferencedStudySequence = []
        coded: Any = item.get("RequestedProcedureCodeSequence") or ()
        request.RequestedProcedureCodeSequence = list(_codes(coded))
        yield request


def _codes(sequence: Iterable[Dataset]) -> Iterator[Dataset]:
    """Yield the codes of a sequence that are whole (PS3.3 8.8)."""
    for item in sequence:
        code = Dataset()
        for keyword in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning"):
            setattr(code, keyword, _valid(keyword, item.get(keyword)))
        if code.CodeValue and code.CodingSchemeDesignator and code.CodeMeaning:
            yield code


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
    if text not in TERMS.get(keyword, (text,)):
        return ""
    if keyword == "TimezoneOffsetFromUTC" and (not _ZONE.fullmatch(text) or text == "-0000"):
        return ""
    return text
