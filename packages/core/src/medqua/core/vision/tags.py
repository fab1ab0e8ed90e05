"""A file's data elements as rows of a table, each with what may identify the patient marked.

Marking is by default: a value is plain only where its kind cannot name anyone (numbers, coded
strings and registered UIDs, outside the groups on the patient, the visit and the order). The
Basic Profile (PS3.15 E.1) lists what must go; a list of what may stay also covers what that
edition did not know and what private elements hold.
"""

from collections.abc import Iterator
from typing import Any

from pydicom.datadict import dictionary_description, dictionary_has_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag
from pydicom.uid import UID

MOST_ROWS = 2000
"""Elements of a file that are listed."""

DEEPEST = 6
"""Levels of nested sequences that are listed."""

LONGEST = 256
"""Characters of a value that are listed."""

PLAIN_VRS = frozenset(["AT", "CS", "DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV"])
PERSONAL_GROUPS = frozenset((0x0010, 0x0012, 0x0032, 0x0038, 0x0040, 0x4008))
NUMBERS_OF_PERSONS = frozenset((0x00181000, 0x00189074, 0x00189516))
BYTES_VRS = frozenset(["OB", "OW", "OD", "OF", "OL", "OV", "UN"])


def tag_table(ds: Dataset) -> list[dict[str, Any]]:
    """List a data set's elements, file meta information first.

    Returns:
        Rows with `tag` ("(0010,0010)"), `name`, `vr`, `value` (text, cut at 256 characters),
        `level` (0, or the depth of nesting) and `personal` (the value may identify the patient).
        At most 2,000, and 6 levels of sequences.
    """
    rows: list[dict[str, Any]] = []
    for part in (ds.file_meta, ds):
        for row in _rows(part, 0):
            if len(rows) == MOST_ROWS:
                return rows
            rows.append(row)
    return rows


def _rows(ds: Dataset, level: int) -> Iterator[dict[str, Any]]:
    for tag in sorted(ds.keys()):
        try:
            element = ds[tag]
        except Exception:  # whatever pydicom raises for one element, the others are told
            yield _row(tag, "UN", "(cannot be read)", level, personal=False)
            continue
        if element.VR == "SQ":
            count = len(element.value)
            noun = "item" if count == 1 else "items"
            yield _row(tag, "SQ", f"{count} {noun}", level, personal=False)
            if level < DEEPEST and not tag.is_private:
                for item in element.value:
                    yield from _rows(item, level + 1)
        else:
            yield _row(tag, element.VR, _text(element), level, personal=_personal(element))


def _row(tag: BaseTag, vr: str, value: str, level: int, *, personal: bool) -> dict[str, Any]:
    known = not tag.is_private and dictionary_has_tag(tag)
    return {
        "tag": f"({tag.group:04X},{tag.element:04X})",
        "name": dictionary_description(tag) if known else "Private" if tag.is_private else "",
        "vr": vr,
        "value": value,
        "level": level,
        "personal": personal,
    }


def _text(element: DataElement) -> str:
    value = element.value
    if element.VR in BYTES_VRS or isinstance(value, bytes):
        return f"{len(value or b''):,} bytes"
    if value is None:
        return ""
    if isinstance(value, str) or not hasattr(value, "__iter__") or element.VR == "PN":
        return str(value)[:LONGEST]
    parts = [str(part) for _, part in zip(range(LONGEST), value, strict=False)]
    return "\\".join(parts)[:LONGEST]


def _personal(element: DataElement) -> bool:
    tag = element.tag
    if element.VR in BYTES_VRS or element.is_empty:
        return False  # only their size is told, or there is nothing
    if tag.is_private or tag.group in PERSONAL_GROUPS or tag in NUMBERS_OF_PERSONS:
        return True
    if element.VR == "UI":
        return any(UID(uid).name == uid for uid in str(element.value).split("\\"))
    return element.VR not in PLAIN_VRS
