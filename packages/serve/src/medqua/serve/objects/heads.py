"""What an object says it is, read before anything else is done with it."""

from dataclasses import dataclass

from medqua.core.errors import ImageError, OutOfScopeError, UnreadableImageError
from medqua.core.vision.limits import Limits
from medqua.serve.objects.identity import MANUFACTURER, is_own, is_uid

_DEFLATED = b"1.2.840.10008.1.2.1.99\x00"
_MARKS = (MANUFACTURER.encode(), b"2.25.1028770123529")
"""One of these stands in every object of ours; the second leads all UIDs that we derive."""


@dataclass(frozen=True)
class Head:
    """The identity of an object; UIDs are valid or empty."""

    sop_class: str
    """SOP class UID."""
    instance: str
    """SOP instance UID."""
    study: str
    """Study instance UID."""
    own: bool
    """Whether it was written by MedQua."""


def read_head(data: bytes, limits: Limits | None = None) -> Head:
    """Read an object's identity; no pixel is decoded, and no more is inflated than limits allow.

    Raises:
        UnreadableImageError: It is no DICOM object, or damaged.
    """
    from medqua.core.vision.dicom import distrust, is_dicom, parse  # pydicom and the codecs

    if not is_dicom(data):
        raise UnreadableImageError("it is no DICOM object")
    with distrust():
        ds, _ = parse(data, limits or Limits())
        found = []
        for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID"):
            value = str(ds.get(keyword, "") or "").strip("\0 ")
            found.append(value if is_uid(value) else "")
        return Head(found[0], found[1], found[2], is_own(ds))


def refuse_own(data: bytes) -> None:
    """Refuse a file that is a result of ours, so that no way in makes us read it.

    Only a file that could be one is parsed.

    Raises:
        OutOfScopeError: It is.
    """
    if not any(mark in data for mark in _MARKS) and _DEFLATED not in data[:1024]:
        return
    try:
        own = read_head(data).own
    except ImageError:
        return  # judged when it is decoded
    if own:
        raise OutOfScopeError("this object was written by MedQua; results are not read again")
