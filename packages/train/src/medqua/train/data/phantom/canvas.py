"""The plane on which a phantom is drawn: coordinates of one exposure, soft lines, areas, texture.

The x axis runs from -1 (image left, the patient's right) to 1, the y axis downward from 0 in the
same unit: half the image width.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

Plane = npt.NDArray[np.float32]
"""One value for each pixel, `[H, W]`."""

Curve = npt.NDArray[np.float64]
"""Points `[N, 2]` in patient coordinates."""


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """How one image was taken."""

    view: str
    """`PA`, `AP` or `LATERAL`."""
    height: int
    """Rows, in pixels."""
    width: int
    """Columns, in pixels."""
    shift: tuple[float, float]
    """Displacement of the patient, across and down, in half widths."""
    tilt: float
    """Rotation in the image plane, in radians."""
    inspiration: float
    """Height of the lungs relative to full inspiration."""
    dose: float
    """Quanta per pixel behind nothing, in thousands: noise falls with its root."""
    seed: int
    """Seed of noise and markers."""


def plane(values: npt.ArrayLike) -> Plane:
    """As float32."""
    return np.asarray(values, dtype=np.float32)


class Canvas:
    """Coordinates of one image and the drawing of soft lines on it."""

    def __init__(self, exposure: Exposure) -> None:
        self.shape = (exposure.height, exposure.width)
        self.unit = exposure.width / 2
        y, x = np.mgrid[0 : exposure.height, 0 : exposure.width].astype(np.float32)
        x, y = x / self.unit - 1 - exposure.shift[0], y / self.unit - exposure.shift[1]
        c, s = np.cos(exposure.tilt), np.sin(exposure.tilt)
        self.x: Plane = plane(c * x + s * (y - 1))
        self.y: Plane = plane(c * (y - 1) - s * x + 1)
        self._c, self._s, self._shift = c, s, exposure.shift

    def pixels(self, points: npt.ArrayLike) -> list[tuple[float, float]]:
        """Patient coordinates `[N, 2]` to pixel positions (column, row)."""
        p = np.asarray(points, dtype=np.float64)
        x = self._c * p[:, 0] - self._s * (p[:, 1] - 1)
        y = self._s * p[:, 0] + self._c * (p[:, 1] - 1) + 1
        column = (x + 1 + self._shift[0]) * self.unit
        row = (y + self._shift[1]) * self.unit
        return list(zip(column.tolist(), row.tolist(), strict=True))

    def lines(self, curves: list[Curve], width: float, blur: float = 0.0) -> Plane:
        """Draw curves of the given width, 1 inside, blurred; lengths in half image widths."""
        scale = 1 if blur * self.unit > 0.7 else 2  # a blur wider than a pixel hides the steps
        image = Image.new("L", (self.shape[1] * scale, self.shape[0] * scale))
        pen = ImageDraw.Draw(image)
        thick = max(round(width * self.unit * scale), 1)
        for curve in curves:
            pen.line([(scale * a, scale * b) for a, b in self.pixels(curve)], 255, thick)
        return self._soft(image, blur, scale)

    def area(self, polygons: list[Curve], blur: float = 0.0) -> Plane:
        """Fill polygons, 1 inside, blurred."""
        image = Image.new("L", (self.shape[1] * 2, self.shape[0] * 2))
        pen = ImageDraw.Draw(image)
        for polygon in polygons:
            pen.polygon([(2 * a, 2 * b) for a, b in self.pixels(polygon)], 255)
        return self._soft(image, blur, 2)

    def texture(self, seed: int, grain: float) -> Plane:
        """Smooth noise of mean 0 and deviation about 1 with features of size `grain`."""
        rng = np.random.default_rng(seed)
        rows, columns = (max(int(n / (grain * self.unit)), 2) + 3 for n in self.shape)
        coarse = rng.standard_normal((rows, columns)).astype(np.float32)
        box = (1, 1, columns - 1, rows - 1)
        size = (self.shape[1], self.shape[0])
        fine = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC, box)
        return np.asarray(fine, dtype=np.float32)

    def _soft(self, image: Image.Image, blur: float, scale: int) -> Plane:
        reduced = image.reduce(scale) if scale > 1 else image
        values = plane(np.asarray(reduced) / 255)
        if not blur:
            return values
        return plane(gaussian_filter(values, blur * self.unit, truncate=2.5))


def inside(distance: npt.ArrayLike, softness: float) -> Plane:
    """1 where `distance` is positive, 0 where negative, with a soft edge."""
    return plane(1 / (1 + np.exp(-np.clip(np.divide(distance, softness) * 4, -30, 30))))
