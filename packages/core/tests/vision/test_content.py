"""What can show no chest is refused with the reason, whichever file it comes in."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from medqua.core.errors import OutOfScopeError
from medqua.core.vision.image import Decoder, ImageSpec, read_image

SPEC = ImageSpec(size=112)


def png(levels: np.ndarray) -> bytes:
    stream = BytesIO()
    Image.fromarray(levels).save(stream, "PNG")
    return stream.getvalue()


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)


@pytest.mark.parametrize(
    ("levels", "reason"),
    [
        (np.zeros((1, 1), np.uint8), "1 rows and 1 columns; needed are at least 64"),
        (np.full((2000, 2), 9, np.uint8), "2000 rows and 2 columns; needed are at least 64"),
        (noise(63, 200), "63 rows and 200 columns; needed are at least 64"),
        (noise(64, 257), "64 rows and 257 columns; one side may be 4 times the other"),
        (np.zeros((256, 256), np.uint8), "one grey value"),
        (np.full((256, 256), 200, np.uint8), "one grey value"),
        (np.full((256, 256), 40000, np.uint16), "one grey value"),
    ],
)
def test_what_shows_nothing_is_refused_with_the_reason(levels: np.ndarray, reason: str) -> None:
    data = png(levels)
    with Decoder() as decoder:
        for read in (lambda: decoder.read(data, SPEC), lambda: read_image(data, SPEC)):
            with pytest.raises(OutOfScopeError, match=reason):
                read()
    assert read_image(data, SPEC, trusted=True).shape == (112, 112)  # training data of one's own
    assert read_image(data, ImageSpec(size=112, scope="any")).shape == (112, 112)


@pytest.mark.parametrize("shape", [(64, 64), (64, 256), (256, 64)])
def test_the_least_that_is_read(shape: tuple[int, int]) -> None:
    assert read_image(png(noise(*shape)), SPEC).shape == (112, 112)


def test_what_the_crop_leaves_must_show_something_too() -> None:
    framed = noise(100, 300)
    framed[:, 90:210] = 77
    with pytest.raises(OutOfScopeError, match="one grey value"):
        read_image(png(framed), ImageSpec(size=64, fit="crop"))
    assert read_image(png(framed), ImageSpec(size=64)).max() > 0


@pytest.mark.parametrize("profile", ["mimic-cxr-jpg", "display"])
def test_a_dicom_file_of_one_value_is_refused(shared_data: Path, profile: str) -> None:
    image = dcmread(shared_data / "dicom" / "cxr_NIH_DX_implicit_nofinding.dcm")
    image.PixelData = np.full_like(image.pixel_array, 7).tobytes()
    stream = BytesIO()
    image.save_as(stream, enforce_file_format=True)
    with pytest.raises(OutOfScopeError, match="one grey value"):
        read_image(stream.getvalue(), ImageSpec(profile=profile, size=112))
