"""Light changes to a training image that leave its findings as they are.

No flip: a heart on the right is a finding. Everything is drawn from (seed, epoch, index), so a
resumed run sees the images that an uninterrupted one would have seen, in any number of workers.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32
from PIL import Image

from medqua.core.errors import ConfigError


@dataclass(frozen=True)
class Augmentation:
    """How far a training image may be moved and its grey levels changed; all 0 changes nothing."""

    rotation: float = 0.0
    """Largest turn to either side, in degrees."""

    shift: float = 0.0
    """Largest displacement along each axis, as a fraction of the image's side."""

    zoom: float = 0.0
    """Largest relative change of size, as a fraction: 0.1 is 0.9 to 1.1 times."""

    contrast: float = 0.0
    """Largest relative change of contrast around the mean grey, as a fraction."""

    brightness: float = 0.0
    """Largest change of all grey levels, in units of the white level."""

    def __post_init__(self) -> None:
        limits = {"rotation": 45.0, "shift": 0.5, "zoom": 0.5, "contrast": 0.9, "brightness": 0.5}
        for name, most in limits.items():
            value = getattr(self, name)
            if not 0.0 <= value <= most:
                raise ConfigError(f"augmentation {name} = {value}: needed 0 to {most:g}")

    @property
    def active(self) -> bool:
        """Whether it changes anything."""
        return self != Augmentation()

    def apply(
        self, image: Float32[np.ndarray, "h w"], seed: int, epoch: int, index: int
    ) -> Float32[np.ndarray, "h w"]:
        """Change one image.

        Args:
            image: `[H, W]` float32 in [0, 1].
            seed: Seed of the run.
            epoch: Epoch, from 0.
            index: Position of the image in its split.

        Returns:
            `[H, W]` float32 in [0, 1]; black where the moved image does not reach.
        """
        if not self.active:
            return image
        draw = np.random.default_rng([seed, epoch, index]).uniform(-1.0, 1.0, 6)
        if self.rotation or self.shift or self.zoom:
            image = self._moved(image, draw)
        mean = np.float32(image.mean())
        gain = np.float32(1.0 + self.contrast * draw[4])
        offset = np.float32(self.brightness * draw[5])
        changed: Float32[np.ndarray, "h w"] = ((image - mean) * gain + mean + offset).clip(0, 1)
        return changed.astype(np.float32, copy=False)

    def _moved(
        self, image: Float32[np.ndarray, "h w"], draw: np.ndarray
    ) -> Float32[np.ndarray, "h w"]:
        """Rotate, zoom and shift around the centre, with bilinear sampling."""
        height, width = image.shape
        angle = np.deg2rad(self.rotation * draw[0])
        scale = 1.0 / (1.0 + self.zoom * draw[1])
        cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
        x, y = width / 2, height / 2
        to_x = x + self.shift * draw[2] * width
        to_y = y + self.shift * draw[3] * height
        inverse = (
            *(cosine, -sine, x - cosine * to_x + sine * to_y),
            *(sine, cosine, y - sine * to_x - cosine * to_y),
        )
        moved = Image.fromarray(image).transform(
            (width, height), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR
        )
        return np.asarray(moved, dtype=np.float32)
