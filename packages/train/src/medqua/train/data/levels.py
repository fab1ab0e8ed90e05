"""Grey levels in as few bytes as hold them exactly.

Every JPG and 8-bit PNG, and a DICOM file read by the recipe of MIMIC-CXR-JPG, gives whole levels
k / 255, resampled or not; what a viewer displays of a deeper file may need more.
"""

import numpy as np
import numpy.typing as npt
from jaxtyping import Float32

Levels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16] | npt.NDArray[np.float32]
"""Stored levels `[H, W]` of one image."""


def compact(image: Float32[np.ndarray, "h w"]) -> Levels:
    """The smallest of uint8, uint16 and float32 that `expand` turns into the same image.

    Args:
        image: `[H, W]` float32 in [0, 1].
    """
    bytes_ = np.rint(image * np.float32(255)).astype(np.uint8)
    if np.array_equal(expand(bytes_), image):
        return bytes_
    words = np.rint(image * np.float32(65535)).astype(np.uint16)
    return words if np.array_equal(expand(words), image) else image


def expand(levels: Levels) -> npt.NDArray[np.float32]:
    """The image `[H, W]` float32 in [0, 1] that `compact` was given, bit for bit."""
    white = {"uint8": 255, "uint16": 65535, "float32": 1}[levels.dtype.name]
    return levels.astype(np.float32) / np.float32(white)
