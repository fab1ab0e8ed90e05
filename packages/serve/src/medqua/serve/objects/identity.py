"""Which DICOM objects are ours: UIDs that follow from the input and carry a mark.

A UID under `2.25` is the decimal of a UUID (PS3.5 B.2). Ours are UUIDs of version 8 (RFC 9562,
5.8): the first 48 bits are a constant, the rest a SHA-256 of what the object was made from. So the
same image, model and options give the same UID, and an object is known as ours by its UID alone,
whatever an archive has rewritten in its other attributes.
"""

import hashlib
import re
import struct
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MANUFACTURER = "MedQua"
"""Manufacturer (0008,0070) of every object that is written."""

_MARK = b"MedQua"
_PLACE = re.compile(r"2\.25\.(0|[1-9][0-9]{0,38})")
_SYNTAX = re.compile(rb"\x02\0\x10\0UI[\x01-\x40]\0([0-9.]+)")
"""Transfer Syntax UID (0002,0010) in file meta information."""
_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")


def derive_uid(*parts: str) -> str:
    """Return the marked UID of what an object was made from.

    Args:
        parts: Anything that decides the object; order and borders count.
    """
    digest = bytearray(hashlib.sha256("\0".join(f"{len(p)}:{p}" for p in parts).encode()).digest())
    digest[:6] = _MARK
    digest[6] = 0x80 | digest[6] & 0x0F  # version 8
    digest[8] = 0x80 | digest[8] & 0x3F  # variant of RFC 9562
    return f"2.25.{uuid.UUID(bytes=bytes(digest[:16])).int}"


def content_of(data: bytes) -> str:
    """Return the hash of what a DICOM file holds, whichever way it came.

    Preamble and file meta information are left out but for the transfer syntax: whoever stores or
    sends an object writes them anew (PS3.10 7.1).

    Args:
        data: The whole file.

    Returns:
        SHA-256, hexadecimal.
    """
    start, syntax = 0, b""
    if data[128:140] == b"DICM\x02\0\0\0UL\x04\0":
        (length,) = struct.unpack_from("<I", data.ljust(144, b"\0"), 140)
        if 144 + length <= len(data):
            start = 144 + length
            found = _SYNTAX.search(data, 144, start)
            syntax = b"" if found is None else found[1].strip(b"\0 ")
    digest = hashlib.sha256(syntax + b"\0")
    digest.update(memoryview(data)[start:])
    return digest.hexdigest()


def is_own_uid(uid: str) -> bool:
    """Tell whether a UID is one that `derive_uid` gives."""
    found = _PLACE.fullmatch(uid)
    if found is None or (value := int(found[1])) >> 128:
        return False
    raw = value.to_bytes(16, "big")
    return raw[:6] == _MARK and raw[6] >> 4 == 8 and raw[8] >> 6 == 2


def is_own(ds: "Dataset") -> bool:
    """Tell whether an object was written by MedQua, so that it is never read as an input.

    Its SOP instance UID says so; so does its manufacturer, should an archive have given new UIDs.
    """
    uid = str(ds.get("SOPInstanceUID", "") or "")
    return is_own_uid(uid) or str(ds.get("Manufacturer", "") or "").strip() == MANUFACTURER


def is_uid(text: str) -> bool:
    """Tell whether text is a UID by PS3.5 9.1: at most 64 digits and dots, no leading zeros."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None
