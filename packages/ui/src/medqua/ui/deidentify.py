"""De-identified copies by the Basic Application Level Confidentiality Profile (PS3.15 E.1).

The table of attributes and their actions is dicom-anonymizer's (edition 2026c). It is applied to
items of sequences as well, removes where the profile says so (dates too), and what is left is
searched for the patient's own values. Pixels are not changed: text in the picture stays.
"""

import warnings
from copy import deepcopy
from io import BytesIO

from dicomanonymizer import simpledicomanonymizer as basic  # type: ignore[import-untyped]
from dicomanonymizer.dicomfields_selector import (  # type: ignore[import-untyped]
    dicom_anonymization_database_selector,
)
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence

from medqua.core.errors import ImageError
from medqua.core.vision.dicom import distrust, is_dicom, parse
from medqua.core.vision.limits import Limits, read_bytes

EDITION = "dicomfields_2026c"
METHOD = "Basic Profile of PS3.15 E.1, 2026c; pixels unchanged"

_TELLING = (
    "PatientName", "PatientID", "OtherPatientNames", "OtherPatientIDs", "PatientBirthDate",
    "AccessionNumber", "ReferringPhysicianName", "PatientAddress", "PatientTelephoneNumbers",
    "PatientMotherBirthName", "PatientBirthName", "IssuerOfPatientID", "AdmissionID", "StudyID",
)  # fmt: skip
_SHORTEST = 4
"""Letters of a value that is searched for in what is left."""

Tag = tuple[int, int]


def deidentify(content: bytes, limits: Limits | None = None) -> bytes:
    """Return a de-identified copy of a DICOM file.

    Args:
        content: The whole file.
        limits: Caps on what is inflated.

    Raises:
        UnreadableImageError: It cannot be parsed.
        ImageError: It is no DICOM file, or holds a value that the profile cannot be applied to.
    """
    data = read_bytes(content, limits or Limits())
    if not is_dicom(data):
        raise ImageError("only a DICOM image has a header to de-identify; this file has none")
    with distrust(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that break their VR, which may be quoted
        ds, _ = parse(data, limits or Limits())
        try:
            return _copy(ds)
        except ImageError:
            raise
        except Exception as error:
            raise ImageError(
                "the header holds values that the profile cannot be applied to "
                f"({type(error).__name__}): export it de-identified from the archive instead"
            ) from None


def _copy(source: Dataset) -> bytes:
    ds, syntax = deepcopy(source), source.file_meta.TransferSyntaxUID
    secrets = _secrets(ds)
    _apply(ds)
    _search(ds, secrets)
    ds.PatientIdentityRemoved = "YES"
    ds.DeidentificationMethod = METHOD
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator = "113100", "DCM"
    code.CodeMeaning = "Basic Application Confidentiality Profile"
    ds.DeidentificationMethodCodeSequence = Sequence([code])
    ds.LongitudinalTemporalInformationModified = "REMOVED"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ds.SOPClassUID
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    meta.TransferSyntaxUID = syntax
    ds.file_meta, ds.preamble = meta, bytes(128)
    stream = BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _apply(ds: Dataset) -> None:
    """Apply the profile to a data set and to all items that stay, the innermost first."""
    tags = dicom_anonymization_database_selector(EDITION)
    rules = {tag: _remove for tag in tags["X_TAGS"] if len(tag) == 2}
    rules |= {tag: _clear for tag in tags["Z_TAGS"] if len(tag) == 2}
    for element in ds:
        if element.VR == "SQ" and (element.tag.group, element.tag.element) not in rules:
            for item in element.value:
                _apply(item)
    basic.anonymize_dataset(
        ds,
        rules,
        delete_private_tags=True,
        base_rules_gen=lambda: basic.initialize_actions(EDITION),
    )


def _remove(ds: Dataset, tag: Tag) -> None:
    if tag in ds:
        del ds[tag]


def _clear(ds: Dataset, tag: Tag) -> None:
    if tag in ds:
        ds[tag].value = Sequence() if ds[tag].VR == "SQ" else ""


def _secrets(ds: Dataset) -> set[str]:
    """Return the patient's own values, to be found where nobody expects them."""
    found: set[str] = set()
    for keyword in _TELLING:
        for word in str(ds.get(keyword, "") or "").replace("^", " ").replace("\\", " ").split():
            if len(word) >= _SHORTEST:
                found.add(word.casefold())
    return found


def _search(ds: Dataset, secrets: set[str]) -> None:
    """Remove any text that still holds one of the patient's values."""
    for element in list(ds):
        if element.VR == "SQ":
            for item in element.value:
                _search(item, secrets)
        elif element.VR in ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT", "DA", "DT"):
            text = str(element.value).casefold()
            if any(secret in text for secret in secrets):
                del ds[element.tag]
