"""The published recipe that turned the radiographs of MIMIC-CXR into MIMIC-CXR-JPG.

A. Johnson et al., MIMIC-CXR-JPG, 2019, arXiv:1901.07042: stored values scaled from their minimum
and maximum to 0..255 and truncated, inverted for MONOCHROME1, equalised by their histogram,
written as JPEG of quality 95. No modality LUT, no window: what the detector stored.
"""

from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from medqua.core.errors import UnreadableImageError

JPEG_QUALITY = 95


def stored_values(
    pixels: npt.NDArray[np.integer], bits_stored: int, high_bit: int
) -> npt.NDArray[np.integer]:
    """Take the bits that hold the pixel out of their allocated cell (PS3.5 section 8.1.1).

    Overlays that old equipment kept in the unused high bits, and any other filling of them,
    disappear; a signed cell is sign-extended from its highest stored bit.

    Args:
        pixels: Cells of any integer dtype and shape, as allocated.
        bits_stored: Bits Stored (0028,0101).
        high_bit: High Bit (0028,0102), counted from 0.

    Returns:
        Stored values, same dtype and shape.

    Raises:
        UnreadableImageError: If the bits do not fit into the cell.
    """
    allocated = pixels.dtype.itemsize * 8
    if not 1 <= bits_stored <= high_bit + 1 <= allocated:
        raise UnreadableImageError(
            f"Bits Stored {bits_stored} with High Bit {high_bit} do not fit {allocated} bits "
            "allocated; the file's header contradicts itself"
        )
    if bits_stored == allocated:
        return pixels
    above = allocated - 1 - high_bit
    cells: npt.NDArray[np.integer] = np.left_shift(pixels, above)
    cells >>= allocated - bits_stored
    return cells


def equalize_histogram(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Equalise a histogram as OpenCV's `equalizeHist` does, equal to it in every pixel.

    A level v maps to round(255 / (N - N_0) * (number of pixels in levels v_0+1..v)), where v_0
    is the darkest level present, N_0 its count and N the number of pixels; computed in float32
    and rounded half to even. An image of one level stays as it is.

    Args:
        image: Grey levels of any shape.

    Returns:
        Equalised grey levels, same shape.
    """
    return _equalizing_table(np.bincount(image.ravel(), minlength=256))[image]


def _equalizing_table(counts: npt.NDArray[np.intp]) -> npt.NDArray[np.uint8]:
    """Map 256 levels with the given pixel counts to their equalised levels."""
    table = np.arange(256, dtype=np.uint8)
    present = np.flatnonzero(counts)
    if present.size <= 1:
        return table
    darkest, total = int(present[0]), int(counts.sum())
    scale = np.float32(255) / np.float32(total - counts[darkest])
    above = np.cumsum(counts[darkest + 1 :]).astype(np.float32)
    table[darkest] = 0
    table[darkest + 1 :] = np.clip(np.rint(above * scale), 0, 255).astype(np.uint8)
    return table


def mimic_cxr_jpg(
    pixels: npt.NDArray[np.integer],
    photometric: str,
    *,
    bits_stored: int | None = None,
    high_bit: int | None = None,
) -> npt.NDArray[np.uint8]:
    """Apply the recipe up to the JPEG encoder; see `encode_jpeg` for the last step.

    Inversion comes before truncation, so that one exposure stored as MONOCHROME1 and as
    MONOCHROME2 gives equal images. (Done after it, as in the publication, floor becomes ceiling
    and the twins differ by one of 255 levels before equalisation.)

    Args:
        pixels: Stored pixel cells `[H, W]`, any integer dtype, at least one pixel.
        photometric: "MONOCHROME1" (low values are bright) or "MONOCHROME2".
        bits_stored: Bits Stored (0028,0101); None where the cells hold nothing else.
        high_bit: High Bit (0028,0102); by default `bits_stored - 1`.

    Returns:
        Equalised image `[H, W]`, air dark and bone bright.

    Raises:
        UnreadableImageError: If `photometric` is another one, there is no pixel, or the bits do
            not fit the cell.
    """
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise UnreadableImageError(
            f"photometric interpretation is {photometric!r}; the recipe needs MONOCHROME1 or "
            "MONOCHROME2: convert colour to luminance first"
        )
    if pixels.size == 0:
        raise UnreadableImageError("the image has no pixels")
    if bits_stored is not None:
        pixels = stored_values(
            pixels, bits_stored, bits_stored - 1 if high_bit is None else high_bit
        )
    low, high = int(pixels.min()), int(pixels.max())
    span = max(high - low, 1)
    if span < 1 << 16:  # equal values are mapped alike: one table instead of one sum per pixel
        offset = np.subtract(pixels, low, dtype=np.int64 if low < 0 else None)
        level = (np.arange(span + 1) * 255 // span).astype(np.uint8)
        if photometric == "MONOCHROME1":
            level = level[::-1]
            level = level if high > low else np.zeros_like(level)
        values = np.bincount(offset.ravel(), minlength=span + 1)
        counts = np.bincount(level, weights=values, minlength=256).astype(np.intp)
        table = _equalizing_table(counts)[level]
        equalized: npt.NDArray[np.uint8] = table[offset]
        return equalized
    wide = pixels.astype(np.int64)
    wide = high - wide if photometric == "MONOCHROME1" else wide - low
    return equalize_histogram((wide * 255 // span).astype(np.uint8))


def encode_jpeg(image: npt.NDArray[np.uint8]) -> bytes:
    """Write a grey image `[H, W]` as the recipe does: baseline JPEG of quality 95."""
    stream = BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()


def jpeg_round_trip(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return what a reader of the written JPEG sees, `[H, W]`."""
    return np.asarray(Image.open(BytesIO(encode_jpeg(image))))
