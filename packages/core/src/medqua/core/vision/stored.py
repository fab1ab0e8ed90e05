"""Bytes to stored values, with all that a viewer needs to display them itself.

`medqua.core.vision.display` renders one file in one way. A viewer renders it in many (other
windows, inverted, other frames) and probes single pixels, so it gets the stored values as they
are and the attributes of PS3.3 C.11 beside them.
"""

import re
from collections.abc import Iterable
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from medqua.core.errors import UnreadableImageError
from medqua.core.vision.dicom import distrust, frame_pixels, is_dicom, parse, term
from medqua.core.vision.display import Grayscale, LookupTable
from medqua.core.vision.limits import Limits
from medqua.core.vision.raster import is_raster, read_raster
from medqua.core.vision.scope import Header
from medqua.core.vision.tags import tag_table

Cells = npt.NDArray[np.uint16] | npt.NDArray[np.int16]

MAGNIFICATION = "EstimatedRadiographicMagnificationFactor"
SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
"""Attributes that tell millimetres, in the order of trust (PS3.3 10.7.1)."""

MOST_ALTERNATIVES = 32
"""Windows or VOI LUTs of a file that are offered."""

MOST_DISPLAYS = 64
"""Frames from which on only the first one's display attributes are read."""


def read_stored(data: bytes, limits: Limits) -> tuple[Cells, dict[str, Any]]:
    """Decode a DICOM, JPG or PNG file's content to its stored values, in this process.

    Args:
        data: The whole file.
        limits: Caps on what is inflated and decoded.

    Returns:
        Stored values `[frames, rows, columns]`, uint16 or int16; and a description of plain JSON
        values, with these keys. `rows`, `columns`, `frames`, `bits`, `signed`, `range` (lowest and
        highest value present, padding apart). `inverted`: MONOCHROME1. `colour`: it is the
        luminance of a colour image. `displays`: one a frame, or one for all, see `_display`.
        `spacing` (millimetres `row` and `column`, `source`, `calibration`, `corrected`: whether it
        differs from the detector's, `magnification` that it was divided by or None) or None.
        `aspect`: height of a pixel over its width. `orientation`: where a row and a column lead
        to, as letters of PS3.3 C.7.6.1.1.1, or None. `modality`, `body_part`, `view`,
        `laterality`: terms, empty where not stated. `tags`: see `medqua.core.vision.tags`.

    Raises:
        UnreadableImageError: If it cannot be decoded, has no pixels, more than `limits` allow, or
            values that do not fit 16 bits.
    """
    if is_raster(data):
        grey = read_raster(data, limits)
        return _sixteen_bits(grey[None]), _plain(grey)
    if not is_dicom(data):
        raise UnreadableImageError("the file is neither DICOM, JPG nor PNG")
    with distrust():
        ds, header = parse(data, limits)
        frames = max(header.frames, 1)
        if frames * header.rows * header.columns * 2 > limits.data_bytes:
            raise UnreadableImageError(
                f"its {frames:,} frames would take over {limits.data_bytes:,} bytes; "
                "export fewer frames a file"
            )
        first, photometric = frame_pixels(ds, header, limits)
        colour = header.samples > 1 or header.photometric == "PALETTE COLOR"
        cells = np.empty((frames, *first.shape), np.uint16 if first.min() >= 0 else np.int16)
        if header.signed and not colour:
            cells = cells.astype(np.int16)
        for index in range(frames):
            values = frame_pixels(ds, header, limits, index)[0] if index else first
            cells[index] = _sixteen_bits(values, cells.dtype)
        return cells, _description(ds, header, cells, photometric == "MONOCHROME1", colour)


def _sixteen_bits(
    values: npt.NDArray[np.integer], dtype: "np.dtype[Any] | None" = None
) -> npt.NDArray[Any]:
    """Take values that fit 16 bits as such."""
    wanted = np.dtype(np.uint16) if dtype is None else dtype
    room = np.iinfo(wanted)
    if values.itemsize > 2 and not (room.min <= values.min() and values.max() <= room.max):
        raise UnreadableImageError("its pixels take more than 16 bits; export it with at most 16")
    return values.astype(wanted)


def _plain(grey: npt.NDArray[np.integer]) -> dict[str, Any]:
    """Describe a JPG or PNG, which says nothing of display, size or patient."""
    return {
        "rows": grey.shape[0],
        "columns": grey.shape[1],
        "frames": 1,
        "bits": grey.itemsize * 8,
        "signed": False,
        "range": [int(grey.min()), int(grey.max())],
        "inverted": False,
        "colour": False,
        "displays": [_display(Dataset(), Grayscale(inverted=False), little_endian=True)],
        "spacing": None,
        "aspect": 1.0,
        "orientation": None,
        "modality": "",
        "body_part": "",
        "view": "",
        "laterality": "",
        "tags": [],
    }


def _description(
    ds: Dataset, header: Header, cells: Cells, inverted: bool, colour: bool
) -> dict[str, Any]:
    """Gather what `read_stored` tells beside the values."""
    displays = []
    for index in range(len(cells) if len(cells) <= MOST_DISPLAYS else 1):
        frame = _frame_attributes(ds, index)
        grayscale = Grayscale(inverted=inverted)
        if not colour:
            grayscale = Grayscale.from_dataset(
                frame, signed=header.signed, bits_stored=header.bits_stored
            )
        displays.append(
            _display(frame, grayscale, little_endian=ds.original_encoding[1] is not False)
        )
    if all(display == displays[0] for display in displays):
        del displays[1:]
    first = _frame_attributes(ds, 0)
    spacing = _spacing(first)
    return {
        "rows": header.rows,
        "columns": header.columns,
        "frames": len(cells),
        "bits": header.bits_stored,
        "signed": cells.dtype == np.int16,
        "range": _range(cells, displays[0]["padding"]),
        "inverted": inverted,
        "colour": colour,
        "displays": displays,
        "spacing": spacing,
        "aspect": spacing["row"] / spacing["column"] if spacing else _aspect(ds),
        "orientation": _orientation(first),
        "modality": header.modality,
        "body_part": header.body_part,
        "view": header.view_position,
        "laterality": header.laterality,
        "tags": tag_table(ds),
    }


def _frame_attributes(ds: Dataset, index: int) -> Dataset:
    """Return a data set's own attributes with those of a frame's functional groups (C.7.6.16)."""
    merged = Dataset()
    for element in ds.group_dataset(0x0028):
        if element.tag.elem < 0x3000 or element.VR == "SQ":
            merged.add(element)
    for keyword in (*SPACINGS, MAGNIFICATION, "PatientOrientation", "ImageOrientationPatient"):
        if keyword in ds:
            merged.add(ds[keyword])
    per_frame = ds.get("PerFrameFunctionalGroupsSequence") or []
    groups = [*(ds.get("SharedFunctionalGroupsSequence") or [])[:1], *per_frame[index : index + 1]]
    for group in groups:
        for macro in group:
            if macro.VR == "SQ" and macro.value:
                for element in macro.value[0]:
                    merged[element.tag] = element
    merged.set_original_encoding(*ds.original_encoding)
    return merged


def _display(ds: Dataset, grayscale: Grayscale, *, little_endian: bool) -> dict[str, Any]:
    """Describe how one frame is displayed.

    Returns:
        `slope`, `intercept`, `modality_lut` (`first`, `bits`, `entries`; replaces them) or None,
        `unit` of what they give, `voi_luts` and `windows`, all the alternatives of the file in
        its order with their `explanation`, and `padding`, ends of the values that are no image.
    """
    luts = [
        _table(LookupTable.from_item(item, little_endian=little_endian))
        | {"explanation": _explanation(item.get("LUTExplanation"))}
        for item in (ds.get("VOILUTSequence") or [])[:MOST_ALTERNATIVES]
    ]
    function = grayscale.window.function if grayscale.window else "LINEAR"
    told = _list(ds.get("WindowCenterWidthExplanation"))
    windows = []
    pairs = zip(_list(ds.get("WindowCenter")), _list(ds.get("WindowWidth")), strict=False)
    for number, (center, width) in enumerate(list(pairs)[:MOST_ALTERNATIVES]):
        c, w = _finite(center), _finite(width)
        if c is not None and w is not None and w > 0 and (w >= 1 or function != "LINEAR"):
            explanation = _explanation(told[number]) if number < len(told) else ""
            windows.append(
                {"center": c, "width": w, "function": function, "explanation": explanation}
            )
    unit = term(ds, "RescaleType")
    if grayscale.modality_lut is not None:
        unit = term((ds.get("ModalityLUTSequence") or [Dataset()])[0], "ModalityLUTType")
    return {
        "slope": grayscale.slope,
        "intercept": grayscale.intercept,
        "modality_lut": None if grayscale.modality_lut is None else _table(grayscale.modality_lut),
        "unit": "" if unit in ("US", "UNSPECIFIED") else unit,
        "voi_luts": luts,
        "windows": windows,
        "padding": None if grayscale.padding is None else list(grayscale.padding),
    }


def _table(table: LookupTable) -> dict[str, Any]:
    """Return a look-up table as plain JSON values."""
    return {"first": table.first, "bits": table.bits, "entries": table.entries.tolist()}


def _range(cells: Cells, padding: list[int] | None) -> list[int]:
    """Return the lowest and highest value that is not padding."""
    low, high = int(cells.min()), int(cells.max())
    if padding and (padding[0] <= low <= padding[1] or padding[0] <= high <= padding[1]):
        image = cells[(cells < padding[0]) | (cells > padding[1])]
        if image.size:
            return [int(image.min()), int(image.max())]
    return [low, high]


def _spacing(ds: Dataset) -> dict[str, Any] | None:
    """Return the spacing in millimetres and where it is from; None if not known.

    Pixel Spacing that equals Imager Pixel Spacing, no calibration stated, was not corrected
    (PS3.3 10.7.1.3): it is the detector's. The detector's is divided by Estimated Radiographic
    Magnification Factor (0018,1114) where that is stated. A spacing of zero, which some equipment
    writes, is not known either.
    """
    known = {keyword: pair for keyword in SPACINGS if (pair := _pair(ds, keyword))}
    if not known:
        return None
    calibration = term(ds, "PixelSpacingCalibrationType")
    if calibration not in ("GEOMETRY", "FIDUCIAL"):
        calibration = ""
    source, (row, column) = next(iter(known.items()))
    if (
        source == "PixelSpacing"
        and not calibration
        and known.get("ImagerPixelSpacing") == (row, column)
    ):
        source = "ImagerPixelSpacing"
    factor = _finite(next(iter(_list(ds.get(MAGNIFICATION))), None))
    magnification = factor if source == "ImagerPixelSpacing" and factor and factor > 0 else None
    return {
        "row": row / (magnification or 1.0),
        "column": column / (magnification or 1.0),
        "source": source,
        "calibration": calibration if source == "PixelSpacing" else "",
        "corrected": source == "PixelSpacing" and "ImagerPixelSpacing" in known,
        "magnification": magnification,
    }


def _pair(ds: Dataset, keyword: str) -> tuple[float, float] | None:
    parts = [_finite(part) for part in _list(ds.get(keyword))]
    if len(parts) != 2 or parts[0] is None or parts[1] is None or min(parts[0], parts[1]) <= 0:
        return None
    return parts[0], parts[1]


def _aspect(ds: Dataset) -> float:
    """Return a pixel's height over its width by Pixel Aspect Ratio (0028,0034)."""
    parts = [_finite(part) for part in _list(ds.get("PixelAspectRatio"))]
    if len(parts) == 2 and parts[0] and parts[1] and parts[0] > 0 and parts[1] > 0:
        return parts[0] / parts[1]
    return 1.0


def _orientation(ds: Dataset) -> list[str] | None:
    """Return where rows and columns lead, by Patient Orientation or else direction cosines."""
    letters = [str(value).strip().upper() for value in _list(ds.get("PatientOrientation"))]
    if len(letters) == 2 and all(re.fullmatch("[APRLHF]{1,3}", value) for value in letters):
        return letters
    cosines = [_finite(value) for value in _list(ds.get("ImageOrientationPatient"))]
    if len(cosines) != 6 or any(value is None for value in cosines):
        return None
    return [_letters([v or 0.0 for v in cosines[start : start + 3]]) for start in (0, 3)]


def _letters(direction: list[float]) -> str:
    """Name a direction in the patient (x to the left, y to the back, z to the head)."""
    named = zip(direction, ("LR", "PA", "HF"), strict=True)
    parts = sorted(((abs(v), pair[v < 0]) for v, pair in named), reverse=True)
    return "".join(letter for size, letter in parts if size > 0.2)


def _list(value: Any) -> list[Any]:
    """Return an attribute's values."""
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]


def _finite(value: Any) -> float | None:
    """Return a finite number or None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if isfinite(number) else None


def _explanation(value: Any) -> str:
    """Return a short name of a window or table, without anything but plain characters."""
    return re.sub(r"[^A-Za-z0-9 ._/+-]", "", str(value or "")).strip()[:32]
