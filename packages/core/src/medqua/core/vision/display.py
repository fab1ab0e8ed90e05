"""The grayscale pipeline of PS3.3 and PS3.4: stored values to what a viewer displays.

Modality LUT (PS3.3 C.11.1), then VOI LUT or window (C.11.2), then inversion for MONOCHROME1
(C.7.6.3.1.2) last. Presentation LUT Shape (C.11.6) is not read: in an image it is INVERSE exactly
where MONOCHROME1 already says so (C.8.11.3.1.2), and following both would invert twice. pydicom's
functions are not used because its table look-up wraps 8-bit tables of more than 256 entries and
fails on modality tables of 9 to 15 bits.
"""

from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from medqua.core.errors import UnreadableImageError


@dataclass(frozen=True)
class LookupTable:
    """A table of a Modality LUT or VOI LUT Sequence item (PS3.3 C.11.1.1, C.11.2.1.1)."""

    first: int
    """Input value that the first entry is for; lower ones get the first entry."""

    entries: npt.NDArray[np.uint16]
    """Output values `[N]`; inputs beyond the last get the last entry."""

    bits: int
    """Bits of an output value, 8 to 16: outputs range over 0..2^bits - 1."""

    def __call__(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Look values of any shape up, rounding them to the nearest entry."""
        index = np.clip(np.rint(values - self.first), 0, self.entries.size - 1)
        return self.entries[index.astype(np.intp)].astype(np.float64)

    @classmethod
    def from_item(cls, item: Dataset, *, little_endian: bool) -> "LookupTable":
        """Read LUT Descriptor (0028,3002) and LUT Data (0028,3006).

        Raises:
            UnreadableImageError: If descriptor and data contradict each other.
        """
        count, first, bits = (int(value) for value in item.LUTDescriptor)
        count = count or 1 << 16
        data: Any = item.LUTData
        if isinstance(data, bytes):
            wide = np.dtype(np.uint16).newbyteorder("<" if little_endian else ">")
            packed = len(data) < 2 * count  # 8-bit entries, two to a word
            entries = np.frombuffer(data, np.uint8 if packed else wide)
        else:
            entries = np.asarray([data] if isinstance(data, int) else data)
        if entries.size < count or not 8 <= bits <= 16:
            raise UnreadableImageError(
                f"a look-up table announces {count} entries of {bits} bits and holds {entries.size}"
            )
        return cls(first, entries[:count].astype(np.uint16), bits)


@dataclass(frozen=True)
class Window:
    """Window Center (0028,1050), Width (0028,1051), VOI LUT Function (0028,1056)."""

    center: float
    """In units of the modality LUT's output."""

    width: float
    """In units of the modality LUT's output; at least 1 for LINEAR, over 0 otherwise."""

    function: str = "LINEAR"
    """LINEAR (C.11.2.1.2.1), LINEAR_EXACT (C.11.2.1.3.2) or SIGMOID (C.11.2.1.3.1)."""

    def __call__(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Map values of any shape to [0, 1]."""
        if self.function == "SIGMOID":
            exponent = np.clip(-4 * (values - self.center) / self.width, -700, 700)
            return np.asarray(1 / (1 + np.exp(exponent)))
        half = 0.5 if self.function == "LINEAR" else 0.0
        center, width = self.center - half, self.width - 2 * half
        if width == 0:  # LINEAR of width 1 is a threshold
            return (values > center).astype(np.float64)
        return np.clip((values - center) / width + 0.5, 0, 1)


@dataclass(frozen=True)
class Grayscale:
    """What a header says about displaying its stored values."""

    inverted: bool
    """Photometric Interpretation is MONOCHROME1."""

    slope: float = 1.0
    """Rescale Slope (0028,1053)."""

    intercept: float = 0.0
    """Rescale Intercept (0028,1052)."""

    modality_lut: LookupTable | None = None
    """First item of Modality LUT Sequence (0028,3000); replaces slope and intercept."""

    voi_lut: LookupTable | None = None
    """First item of VOI LUT Sequence (0028,3010); preferred to a window."""

    window: Window | None = None
    """First of the windows, which are alternatives (C.11.2.1.2)."""

    padding: tuple[int, int] | None = None
    """Lowest and highest stored value that stand for no image (C.7.5.1.1.2): shown black."""

    @classmethod
    def from_dataset(cls, ds: Dataset, *, signed: bool, bits_stored: int) -> "Grayscale":
        """Read the display attributes of a parsed file.

        Raises:
            UnreadableImageError: If a look-up table contradicts itself.
        """
        little_endian = ds.original_encoding[1] is not False
        tables = {
            keyword: LookupTable.from_item(ds[keyword].value[0], little_endian=little_endian)
            for keyword in ("ModalityLUTSequence", "VOILUTSequence")
            if ds.get(keyword)
        }
        slope, intercept = _number(ds, "RescaleSlope"), _number(ds, "RescaleIntercept")
        center, width = _number(ds, "WindowCenter"), _number(ds, "WindowWidth")
        function = str(ds.get("VOILUTFunction") or "LINEAR").strip().upper()
        window = None
        if center is not None and width is not None and width > 0:
            linear = function not in ("LINEAR_EXACT", "SIGMOID")
            if width >= 1 or not linear:
                window = Window(center, width, "LINEAR" if linear else function)
        padding = None
        value = _number(ds, "PixelPaddingValue")
        if value is not None:
            limit = _number(ds, "PixelPaddingRangeLimit")
            ends = [int(v) for v in (value, value if limit is None else limit)]
            if signed:  # written as unsigned by some: read in two's complement
                ends = [v - (1 << bits_stored) if v >= 1 << (bits_stored - 1) else v for v in ends]
            padding = (min(ends), max(ends))
        return cls(
            inverted=str(ds.get("PhotometricInterpretation", "")).strip() == "MONOCHROME1",
            slope=1.0 if slope is None else slope,
            intercept=0.0 if intercept is None else intercept,
            modality_lut=tables.get("ModalityLUTSequence"),
            voi_lut=tables.get("VOILUTSequence"),
            window=window,
            padding=padding,
        )

    def render(self, stored: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
        """Map stored values `[H, W]` to what is displayed, float32 in [0, 1], 0 black.

        Without a VOI LUT or a window, the values present (padding apart) span the range.
        """
        low = int(stored.min())
        if int(stored.max()) - low < 1 << 16:
            offset = stored.astype(np.int32) - low if stored.itemsize < 4 else stored - low
            present = np.flatnonzero(np.bincount(offset.ravel()))
            table = np.zeros(int(present[-1]) + 1, np.float32)
            table[present] = self._shown(present + low)
            return table[offset]
        distinct, index = np.unique(stored, return_inverse=True)
        table = self._shown(distinct)
        shown: npt.NDArray[np.float32] = table[index.reshape(stored.shape)]
        return shown

    def _shown(self, present: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
        """Display the distinct stored values of one image, `[N]`."""
        values = present.astype(np.float64)
        image = np.ones(values.shape, np.bool_)
        if self.padding is not None:
            image = (values < self.padding[0]) | (values > self.padding[1])
        if self.modality_lut is not None:
            values = self.modality_lut(values)
        else:
            values = values * self.slope + self.intercept
        if self.voi_lut is not None:
            shown = self.voi_lut(values) / ((1 << self.voi_lut.bits) - 1)
        elif self.window is not None:
            shown = self.window(values)
        else:
            inside = values[image] if image.any() else values
            low, high = inside.min(), inside.max()
            shown = np.clip((values - low) / (high - low if high > low else 1.0), 0, 1)
        shown = 1 - shown if self.inverted else shown
        return np.where(image, np.clip(shown, 0, 1), 0).astype(np.float32)


def _number(ds: Dataset, keyword: str) -> float | None:
    """Return an attribute's first value if it is a finite number."""
    value: Any = ds.get(keyword)
    if value is None or value == "":
        return None
    if not isinstance(value, int | float):
        value = value[0] if len(value) else None
    number = float(value) if value is not None and value != "" else None
    return number if number is not None and isfinite(number) else None
