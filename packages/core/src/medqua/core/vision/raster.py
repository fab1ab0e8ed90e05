"""JPG and PNG bytes to grey levels, by Pillow."""

import warnings
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from medqua.core.errors import OutOfScopeError, UnreadableImageError
from medqua.core.vision.limits import Limits

JPEG_SIGNATURE = b"\xff\xd8\xff"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def is_raster(data: bytes) -> bool:
    """Tell whether the bytes begin as a JPG or PNG does."""
    return data.startswith((JPEG_SIGNATURE, PNG_SIGNATURE))


def read_raster(data: bytes, limits: Limits) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """Decode a JPG or PNG to grey levels as seen upright.

    Colour becomes luminance (ITU-R BT.601), a palette its colours, transparency black, and the
    EXIF orientation is applied.

    Args:
        data: The whole file.
        limits: Size caps, checked in the file's header before it is decoded.

    Returns:
        Grey levels `[H, W]`: uint16 for 16-bit grey PNG, uint8 for everything else.

    Raises:
        UnreadableImageError: If the file is truncated, damaged or too large.
        OutOfScopeError: If it is an animation.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of oddities on which the caps decide
        try:
            with Image.open(BytesIO(data), formats=("JPEG", "PNG")) as image:
                check_size(image.height, image.width, limits)
                if image.format == "PNG" and getattr(image, "n_frames", 1) > 1:
                    raise OutOfScopeError("an animated PNG; give one radiograph a file")
                image.load()
                return _grey(ImageOps.exif_transpose(image))
        except (OutOfScopeError, UnreadableImageError):
            raise
        except (OSError, SyntaxError, ValueError, TypeError, ArithmeticError, LookupError) as e:
            raise UnreadableImageError(
                f"the JPG or PNG cannot be decoded ({_cause(e)}); it is truncated or damaged: "
                "export it again"
            ) from None
        except Image.DecompressionBombError:
            raise UnreadableImageError(
                f"the image is over {limits.pixels:,} pixels; export it at its native size"
            ) from None


def check_size(height: int, width: int, limits: Limits) -> None:
    """Refuse a header that announces no pixel, or more than `limits` allow.

    Raises:
        UnreadableImageError: If it does.
    """
    if height < 1 or width < 1:
        raise UnreadableImageError(f"the header announces {height} rows and {width} columns")
    if height > limits.side or width > limits.side or height * width > limits.pixels:
        raise UnreadableImageError(
            f"the header announces {height} x {width} pixels; at most {limits.side:,} a side and "
            f"{limits.pixels:,} in all are read"
        )


def _grey(image: Image.Image) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """Turn any mode that JPG and PNG decode to into grey levels."""
    if image.mode.startswith("I"):  # 16-bit grey; older writers' "I" holds the same range
        return np.asarray(image).astype(np.uint16)
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        shown = image.convert("RGBA")
        black = Image.new("RGBA", shown.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, shown)
    return np.asarray(image if image.mode == "L" else image.convert("L"))


def _cause(error: Exception) -> str:
    """Name a decoder's complaint without text that came from the file."""
    return "truncated" if "truncated" in str(error).lower() else type(error).__name__
