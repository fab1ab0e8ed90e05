from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from medqua.core.errors import UnreadableImageError
from medqua.core.vision.recipe import (
    encode_jpeg,
    equalize_histogram,
    jpeg_round_trip,
    mimic_cxr_jpg,
    stored_values,
)

# cv2.equalizeHist of OpenCV 5.0.0 on the same arrays, recorded: level of input -> level of output
OPENCV = [
    ([10, 10, 10, 20, 20, 30, 200], [0, 0, 0, 128, 128, 191, 255]),
    ([0, 1, 2, 3, 4, 5, 6, 7], [0, 36, 73, 109, 146, 182, 219, 255]),
    ([5, 5, 5, 5], [5, 5, 5, 5]),
    ([255, 254], [255, 0]),
    ([0, 0, 100, 100, 100, 101, 255], [0, 0, 153, 153, 153, 204, 255]),
    ([3, 3, 4, 4, 4], [0, 0, 255, 255, 255]),
]


@pytest.mark.parametrize(("levels", "expected"), OPENCV)
def test_equalises_as_opencv(levels, expected):
    image = np.array([levels], np.uint8)
    assert equalize_histogram(image).tolist() == [expected]


def published(pixels: np.ndarray, bits_stored: int, high_bit: int) -> np.ndarray:
    """The recipe as its authors describe it, in floating point, for MONOCHROME2."""
    mask = 2 ** (high_bit + 1) - 2 ** (high_bit - bits_stored + 1)
    values = (pixels & mask).astype(np.float64)
    values -= values.min()
    return equalize_histogram((values / values.max() * 255).astype(np.uint8))


@pytest.mark.parametrize(("bits_stored", "high_bit"), [(10, 9), (12, 11), (12, 15), (16, 15)])
def test_equals_the_published_description(bits_stored, high_bit):
    pixels = np.random.default_rng(0).integers(0, 1 << 16, (40, 50), dtype=np.uint16)
    ours = mimic_cxr_jpg(pixels, "MONOCHROME2", bits_stored=bits_stored, high_bit=high_bit)
    assert np.array_equal(ours, published(pixels, bits_stored, high_bit))


@given(
    arrays(np.uint16, array_shapes(min_dims=2, max_dims=2, max_side=12)),
    st.integers(8, 16),
)
@settings(max_examples=60, deadline=None)
def test_twins_of_one_exposure_are_equal(pixels, bits):
    pixels = pixels & ((1 << bits) - 1)
    twin = ((1 << bits) - 1 - pixels).astype(np.uint16)
    one = mimic_cxr_jpg(pixels, "MONOCHROME2", bits_stored=bits)
    assert np.array_equal(one, mimic_cxr_jpg(twin, "MONOCHROME1", bits_stored=bits))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_wide_and_table_paths_agree(photometric):
    narrow = np.random.default_rng(1).integers(-2000, 3000, (31, 17)).astype(np.int16)
    wide = narrow.astype(np.int32) * 1000  # a span over 2^16 leaves the table
    assert np.array_equal(mimic_cxr_jpg(narrow, photometric), mimic_cxr_jpg(wide, photometric))


def test_constant_image_is_black_in_both_twins():
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        image = mimic_cxr_jpg(np.full((3, 4), 700, np.uint16), photometric)
        assert image.shape == (3, 4)
        assert not image.any()


def test_overlay_in_high_bits_disappears():
    pixels = np.arange(16, dtype=np.uint16).reshape(4, 4)
    marked = pixels | np.uint16(0x8000)
    marked[0] |= 0x4000
    assert np.array_equal(stored_values(marked, 12, 11), pixels)
    assert np.array_equal(stored_values(pixels << 4, 12, 15), pixels)


def test_signed_cells_are_extended_from_their_highest_stored_bit():
    cells = np.array([0x0FFF, 0x0800, 0x07FF, 0], np.uint16).view(np.int16)
    assert stored_values(cells, 12, 11).tolist() == [-1, -2048, 2047, 0]


@pytest.mark.parametrize(("stored", "high"), [(0, 0), (17, 16), (12, 10), (12, 16), (16, 0)])
def test_impossible_bits_are_refused(stored, high):
    with pytest.raises(UnreadableImageError, match="Bits Stored"):
        stored_values(np.zeros((2, 2), np.uint16), stored, high)


def test_colour_and_nothing_are_refused():
    with pytest.raises(UnreadableImageError, match="MONOCHROME1 or MONOCHROME2"):
        mimic_cxr_jpg(np.zeros((2, 2), np.uint8), "RGB")
    with pytest.raises(UnreadableImageError, match="no pixels"):
        mimic_cxr_jpg(np.zeros((0, 2), np.uint8), "MONOCHROME2")


def test_jpeg_has_quality_95_and_reads_back_as_written():
    ramp = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    with Image.open(BytesIO(encode_jpeg(ramp))) as image:
        # ITU-T T.81 table K.1, first entries 16 11 10 16, scaled by (200 - 2 * 95) %
        assert image.mode == "L"
        assert list(image.quantization[0][:4]) == [2, 1, 1, 2]
        assert np.array_equal(np.asarray(image), jpeg_round_trip(ramp))
