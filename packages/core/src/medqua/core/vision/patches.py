"""Grey images to the patches of a Qwen-VL vision tower, in numpy alone.

Training and the torch model come here through `medqua.core.vision.processor`, a served export
directly: the constants are the same, and so is every bit of the result.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from medqua.core.errors import ShapeError
from medqua.core.shapes import Float32


@dataclass(frozen=True)
class PatchSpec:
    """How an image is normalised and cut."""

    patch: int
    """Side of a patch, in pixels."""
    merge: int
    """Patches along each side of the square that becomes one visual token."""
    temporal: int
    """Times that a still image stands in a patch."""
    mean: tuple[float, ...]
    """Subtracted from each channel of an image in [0, 1]."""
    std: tuple[float, ...]
    """What each channel is divided by."""
    least: int
    """Fewest pixels of an image."""
    most: int
    """Most pixels of an image."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return how many patches an image has down and across.

        Raises:
            ShapeError: A side is not a multiple of patch size times merge size, or the image lies
                outside the pixel counts that the backbone accepts.
        """
        factor = self.patch * self.merge
        if height % factor or width % factor:
            near = max(round(max(height, width) / factor), 1) * factor
            raise ShapeError(
                f"an image of {height}x{width} pixels: needed sides that are multiples of {factor} "
                f"(patch {self.patch} x merge {self.merge}); set the ImageSpec's size to {near}"
            )
        if not self.least <= height * width <= self.most:
            raise ShapeError(
                f"an image of {height}x{width} pixels: this backbone takes {self.least} to "
                f"{self.most} pixels an image; change the ImageSpec's size"
            )
        return height // self.patch, width // self.patch


def cut(batch: Float32[np.ndarray, "b h w"], spec: PatchSpec) -> Float32[np.ndarray, "b n d"]:
    """Normalise grey images and cut them into patches.

    Args:
        batch: Grey images `[B, H, W]` in [0, 1].
        spec: Sizes and constants.

    Returns:
        Patches `[B, N, C * temporal * patch * patch]`, ordered so that the `merge**2` patches that
        become one visual token are neighbours.

    Raises:
        ShapeError: As in `PatchSpec.grid`.
    """
    b, height, width = batch.shape
    rows, columns = spec.grid(height, width)
    patch, merge = spec.patch, spec.merge
    grey = (
        batch.reshape(b, rows // merge, merge, patch, columns // merge, merge, patch)
        .transpose(0, 1, 4, 2, 5, 3, 6)  # b, block row, block column, merge, merge, patch, patch
        .reshape(b * rows * columns, 1, 1, patch * patch)
    )
    mean, std = np.asarray(spec.mean, np.float32), np.asarray(spec.std, np.float32)
    out = np.empty((len(grey), len(mean), spec.temporal, patch * patch), np.float32)
    for channel in range(len(mean)):
        out[:, channel] = (grey[:, 0] - mean[channel]) / std[channel]
    return out.reshape(b, rows * columns, -1)


def stack(images: Sequence[np.ndarray]) -> Float32[np.ndarray, "b h w"]:
    """Stack images of one size.

    Raises:
        ShapeError: No image, images of different sizes, or a wrong dtype or range.
    """
    if len(images) == 0:
        raise ShapeError("no image: needed at least one [H, W] float32 array in [0, 1]")
    for image in images:
        check(image)
    sizes = sorted({image.shape for image in images})
    if len(sizes) > 1:
        raise ShapeError(
            f"images of sizes {sizes} in one batch: needed one size; read all with one ImageSpec"
        )
    return np.stack(list(images))


def check(image: np.ndarray) -> None:
    """Refuse what is no grey image `[H, W]` float32 in [0, 1].

    Raises:
        ShapeError: A wrong shape, dtype or range.
    """
    if image.ndim != 2 or image.dtype != np.float32 or not image.size:
        raise ShapeError(
            f"an image of shape {image.shape} and dtype {image.dtype}: needed [H, W] float32 "
            "in [0, 1]; read files with medqua.core.read_image"
        )
    low, high = float(image.min()), float(image.max())
    if not (low >= 0.0 and high <= 1.0):  # written so that NaN fails too
        raise ShapeError(
            f"pixel values in [{low:g}, {high:g}]: needed finite values in [0, 1]; read files "
            "with medqua.core.read_image, or divide 8-bit pixels by 255"
        )
