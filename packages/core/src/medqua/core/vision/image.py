"""One image file to one float image, by one versioned specification.

Training, export and serving read images here and nowhere else, so that they cannot differ. This
module does not import torch: data-loader workers and the decoding process start fast.
"""

import atexit
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from medqua.core.errors import ConfigError, UnreadableImageError
from medqua.core.vision.content import check_content, check_levels
from medqua.core.vision.limits import Limits, read_bytes
from medqua.core.vision.raster import is_raster, read_raster
from medqua.core.vision.recipe import encode_jpeg, jpeg_round_trip, mimic_cxr_jpg
from medqua.core.vision.sandbox import Sandbox
from medqua.core.vision.scope import Header

__all__ = [
    "ImageSpec",
    "Placement",
    "decode_image",
    "encode_jpeg",
    "fit",
    "mimic_cxr_jpg",
    "placement",
    "read_image",
]

Profile = Literal["mimic-cxr-jpg", "display"]
Fit = Literal["pad", "crop", "stretch"]
Resampling = Literal["box", "bilinear", "bicubic", "lanczos"]
Scope = Literal["chest", "any"]

VERSION = 1
"""Raised whenever equal fields would give other pixels."""


@dataclass(frozen=True)
class ImageSpec:
    """How an image file becomes the float image that a model sees.

    Raises:
        ConfigError: If a field has a value that is not listed for it.
    """

    profile: Profile = "mimic-cxr-jpg"
    """Grey levels: the recipe of MIMIC-CXR-JPG, or what a DICOM viewer displays."""

    size: int | None = 448
    """Side of the square result in pixels; None keeps the image as it is stored."""

    fit: Fit = "pad"
    """To a square: black bars (whole image, true shape), centre crop (true shape), or stretch."""

    resampling: Resampling = "bicubic"
    """Filter, widened when shrinking so that nothing aliases."""

    scope: Scope = "chest"
    """"chest" refuses by its header a DICOM file that is not a frontal chest radiograph, and by its
    pixels any file that can show none (`medqua.core.vision.content`)."""

    version: int = VERSION
    """Meaning of the fields above."""

    def __post_init__(self) -> None:
        _check_spec(asdict(self))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values; `from_dict` takes them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ImageSpec":
        """Build a specification from `to_dict`'s result; absent fields take their default.

        Raises:
            ConfigError: If a key is unknown (the nearest known one is named) or a value is wrong.
        """
        known = [field.name for field in fields(cls)]
        for key in data:
            if key not in known:
                near = get_close_matches(str(key), known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
                raise ConfigError(f"unknown key {key!r} in an image specification; {hint}")
        _check_spec(data)
        return cls(**data)


def _check_spec(values: Mapping[str, Any]) -> None:
    """Check the fields that are given."""
    for name, choices in (
        ("profile", Profile),
        ("fit", Fit),
        ("resampling", Resampling),
        ("scope", Scope),
    ):
        if name in values and values[name] not in get_args(choices):
            raise ConfigError(
                f"image {name} is {values[name]!r}; choose one of {', '.join(get_args(choices))}"
            )
    size = values.get("size")
    if size is not None and (type(size) is not int or not 1 <= size <= 8192):
        raise ConfigError(f"image size is {size!r}; give a side of 1 to 8192 pixels, or None")
    version = values.get("version", VERSION)
    if type(version) is not int or version != VERSION:
        raise ConfigError(
            f"image specification version {version!r}; this MedQua reads {VERSION}: "
            "use the release that wrote it"
        )


@dataclass(frozen=True)
class Decoded:
    """One file's image, and what its header says."""

    image: npt.NDArray[np.float32]
    """Image `[H, W]`, float32 in [0, 1], 0 black."""

    header: Header | None
    """Of a DICOM file; None for JPG and PNG, which have none."""


class Decoder:
    """Reads files, by default in a process that can be killed (`medqua.core.vision.sandbox`).

    Safe to share between threads, which then take turns. Close it, or use it as a context manager.
    """

    def __init__(self, *, trusted: bool = False, limits: Limits | None = None) -> None:
        """Make a decoder.

        Args:
            trusted: Decode in this process, and take small and empty images as they are: for
                training data of one's own only.
            limits: What a file may cost.
        """
        self.trusted = trusted
        self.limits = limits or Limits()
        self._sandbox = Sandbox(self.limits)

    def read(self, source: str | Path | bytes, spec: ImageSpec) -> Decoded:
        """Read one file; arguments and errors as in `read_image`."""
        data = read_bytes(source, self.limits)
        if self.trusted:
            return decode_image(data, spec, self.limits, gate=False)
        image, header = self._sandbox.decode(data, spec.to_dict())
        return Decoded(image, None if header is None else Header.from_dict(header))

    def read_stored(
        self, source: str | Path | bytes
    ) -> tuple[npt.NDArray[np.uint16] | npt.NDArray[np.int16], dict[str, Any]]:
        """Read one file's stored values, always in the process that can be killed.

        Args:
            source: Path or content of the file.

        Returns:
            Stored values `[frames, rows, columns]` and their description, as told in
            `medqua.core.vision.stored.read_stored`.

        Raises:
            UnreadableImageError: If the file cannot be read or decoded, or is over a limit.
        """
        return self._sandbox.decode_stored(read_bytes(source, self.limits))

    def start(self) -> None:
        """Start the decoding process before the first file needs it."""
        self._sandbox.start()

    def close(self) -> None:
        """End the decoding process; a later `read` starts another."""
        self._sandbox.close()

    def __enter__(self) -> "Decoder":  # noqa: PYI034  # beartype 0.22 refuses Self here
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_image(
    source: str | Path | bytes, spec: ImageSpec, *, trusted: bool = False
) -> npt.NDArray[np.float32]:
    """Read one JPG, PNG or DICOM file.

    JPG and PNG are decoded in this process; DICOM in a process that this one starts with its first
    such file and keeps. For whatever comes from outside, use a `Decoder`.

    Args:
        source: Path or content of the file; its kind is recognised by its content.
        spec: What to make of it.
        trusted: Decode DICOM in this process too, which is faster, and take small and empty images
            as they are: for training data of one's own.

    Returns:
        Image `[H, W]`, float32 in [0, 1], 0 black, with air dark and bone bright;
        H = W = `spec.size` unless that is None.

    Raises:
        UnreadableImageError: If the file cannot be read or decoded, or is over a limit.
        OutOfScopeError: If it is not one frontal chest radiograph (see `ImageSpec.scope`).
    """
    data = read_bytes(source)
    if trusted or is_raster(data):
        return decode_image(data, spec, gate=not trusted).image
    return _decoder_of_this_process().read(data, spec).image


@cache
def _decoder_of_this_process() -> Decoder:
    """Return the decoder behind `read_image`, which ends with the process."""
    decoder = Decoder()
    atexit.register(decoder.close)
    return decoder


def decode_image(
    data: bytes, spec: ImageSpec, limits: Limits | None = None, *, gate: bool = True
) -> Decoded:
    """Decode a file's content in this process, whatever it costs.

    A 16-bit PNG has not been through the recipe, which writes 8 bits, so the recipe is applied
    to it; an 8-bit JPG or PNG has, and is taken as it is.

    Args:
        data: The whole file.
        spec: What to make of it.
        limits: What it may cost.
        gate: Refuse images that can show no chest, where `spec.scope` asks for one.
    """
    grey, header = _levels(data, spec, limits or Limits())
    if not (gate and spec.scope == "chest"):
        return Decoded(fit(grey, spec), header)
    check_content(grey)
    image = fit(grey, spec)
    check_levels(image)  # what is left of it may be one grey value, though the file is not
    return Decoded(image, header)


def _levels(
    data: bytes, spec: ImageSpec, limits: Limits
) -> tuple[npt.NDArray[np.uint8] | npt.NDArray[np.float32], Header | None]:
    """Return a file's grey levels `[H, W]` and its header, if it has one."""
    if is_raster(data):
        grey = read_raster(data, limits)
        if grey.dtype == np.uint16:
            return from_stored(grey, "MONOCHROME2", spec), None
        return grey.astype(np.uint8, copy=False), None
    from medqua.core.vision.dicom import is_dicom, read_dicom  # JPG readers start without pydicom

    if is_dicom(data):
        return read_dicom(data, profile=spec.profile, scope=spec.scope, limits=limits)
    raise UnreadableImageError("the file is neither DICOM, JPG nor PNG")


def from_stored(
    pixels: npt.NDArray[np.integer], photometric: str, spec: ImageSpec
) -> npt.NDArray[np.uint8] | npt.NDArray[np.float32]:
    """Turn stored values `[H, W]` without any display attribute into grey levels."""
    if spec.profile == "mimic-cxr-jpg":
        return jpeg_round_trip(mimic_cxr_jpg(pixels, photometric))
    low, high = int(pixels.min()), int(pixels.max())
    grey = (pixels.astype(np.float32) - np.float32(low)) / np.float32(max(high - low, 1))
    return np.float32(1) - grey if photometric == "MONOCHROME1" else grey


def fit(
    grey: npt.NDArray[np.uint8] | npt.NDArray[np.float32], spec: ImageSpec
) -> npt.NDArray[np.float32]:
    """Bring grey levels to the size of a specification.

    Args:
        grey: Image `[H, W]`, uint8 in 0..255 (resampled to whole levels) or float32 in [0, 1].
        spec: Its `size`, `fit` and `resampling` are used.

    Returns:
        Image `[size, size]`, or `[H, W]` where `spec.size` is None; float32 in [0, 1].
    """
    if spec.size is not None and grey.shape != (spec.size, spec.size):
        grey = _resample(grey, spec.size, spec)
    if grey.dtype == np.uint8:
        return grey.astype(np.float32) / np.float32(255)
    return grey.astype(np.float32).clip(0, 1)


@dataclass(frozen=True)
class Placement:
    """Which part of a file's pixels a model's image shows, and where: both as corner coordinates.

    Model column u shows stored column `x + (u - left) * scale_x` (rows alike), where pixel i covers
    i to i + 1. Outside `left <= u < left + width` (rows alike) there is no image but padding.
    """

    left: int
    """First column of the model's image that shows the file."""
    top: int
    """First row."""
    width: int
    """Columns that show it."""
    height: int
    """Rows that show it."""
    x: float
    """Stored column under `left`."""
    y: float
    """Stored row under `top`."""
    scale_x: float
    """Stored columns in one column of the model's image."""
    scale_y: float
    """Stored rows in one row of it."""


def placement(height: int, width: int, spec: ImageSpec) -> Placement:
    """Tell where `fit` puts an image.

    Args:
        height: Rows of the file.
        width: Columns of the file.
        spec: What is made of it.
    """
    size = spec.size
    if size is None or (height, width) == (size, size):
        return Placement(0, 0, width, height, 0.0, 0.0, 1.0, 1.0)
    if spec.fit == "pad":
        scale = size / max(height, width)
        columns, rows = max(1, round(width * scale)), max(1, round(height * scale))
        left, top = (size - columns) // 2, (size - rows) // 2
        return Placement(left, top, columns, rows, 0.0, 0.0, width / columns, height / rows)
    if spec.fit == "crop":
        side = min(height, width)
        x, y = (width - side) / 2, (height - side) / 2
        return Placement(0, 0, size, size, x, y, side / size, side / size)
    return Placement(0, 0, size, size, 0.0, 0.0, width / size, height / size)


def _resample(
    grey: npt.NDArray[np.uint8] | npt.NDArray[np.float32], size: int, spec: ImageSpec
) -> npt.NDArray[np.uint8] | npt.NDArray[np.float32]:
    """Resample to `[size, size]` as `spec.fit` says."""
    height, width = grey.shape
    filter_ = Image.Resampling[spec.resampling.upper()]
    image, at = Image.fromarray(grey), placement(height, width, spec)
    box = (at.x, at.y, width - at.x, height - at.y)
    shown = image.resize((at.width, at.height), filter_, box=box)
    if (at.height, at.width) == (size, size):
        return np.asarray(shown)
    square = np.zeros((size, size), grey.dtype)
    square[at.top : at.top + at.height, at.left : at.left + at.width] = shown
    return square
