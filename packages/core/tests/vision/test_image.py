import os
import pickle
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from medqua.core.errors import ConfigError, OutOfScopeError, UnreadableImageError
from medqua.core.vision.image import Decoder, ImageSpec, fit, placement, read_image
from medqua.core.vision.limits import Limits
from medqua.core.vision.recipe import jpeg_round_trip, mimic_cxr_jpg

NATIVE = ImageSpec(size=None, scope="any")


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def ramp(height: int = 24, width: int = 30) -> np.ndarray:
    return np.add.outer(np.arange(height) * 5, np.arange(width) * 3).astype(np.uint8)


def test_spec_round_trips_and_refuses_what_it_does_not_know():
    spec = ImageSpec(profile="display", size=224, fit="crop", resampling="box", scope="any")
    assert ImageSpec.from_dict(spec.to_dict()) == spec
    with pytest.raises(ConfigError, match="did you mean 'profile'"):
        ImageSpec.from_dict({"profil": "display"})
    with pytest.raises(ConfigError, match="version 2"):
        ImageSpec.from_dict({"version": 2})


@pytest.mark.parametrize(
    "wrong", [{"profile": "x"}, {"fit": "zoom"}, {"size": 0}, {"size": 2.0}, {"scope": "leg"}]
)
def test_spec_refuses_wrong_values(wrong):
    with pytest.raises(ConfigError, match="image"):
        ImageSpec.from_dict(wrong)


def test_grey_of_eight_bits_passes_through():
    image = read_image(encoded(Image.fromarray(ramp())), NATIVE)
    assert image.dtype == np.float32
    assert np.array_equal(image, ramp().astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_grey_in_colour_is_grey(mode):
    image = Image.fromarray(ramp()).convert(mode)
    assert np.array_equal(read_image(encoded(image), NATIVE) * 255, ramp())


def test_colour_becomes_luminance_and_transparency_black():
    colour = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    colour.putpixel((1, 0), (255, 255, 255, 0))
    image = read_image(encoded(colour), NATIVE)
    assert image.ravel() == pytest.approx([0.299, 0], abs=1 / 255)  # BT.601


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    data = encoded(Image.fromarray(ramp()), exif=exif)
    assert np.array_equal(read_image(data, NATIVE) * 255, np.rot90(ramp(), -1))


def test_sixteen_bit_png_goes_through_the_recipe_or_is_stretched():
    stored = (ramp().astype(np.uint16) * 16).astype(np.uint16)
    data = encoded(Image.fromarray(stored))
    expected = jpeg_round_trip(mimic_cxr_jpg(stored, "MONOCHROME2"))
    assert np.array_equal(read_image(data, NATIVE) * 255, expected)
    shown = read_image(data, ImageSpec(profile="display", size=None, scope="any"))
    assert shown == pytest.approx((ramp() - ramp().min()) / np.ptp(ramp()), abs=1e-6)


def test_jpg_is_known_by_its_content(tmp_path: Path):
    path = tmp_path / "chest.dcm"
    path.write_bytes(encoded(Image.fromarray(ramp()), "JPEG"))
    assert np.array_equal(read_image(path, NATIVE), read_image(str(path), NATIVE))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("keep", [0.05, 0.5, 0.95])
def test_truncated_files_are_refused(kind, keep):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(UnreadableImageError):
        read_image(data[: int(len(data) * keep)], NATIVE)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header lies."""
    data = bytearray(encoded(Image.fromarray(ramp())))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def test_bombs_are_refused_before_decoding():
    small = Decoder(trusted=True, limits=Limits(pixels=100))
    with pytest.raises(UnreadableImageError, match="24 x 30 pixels"):
        small.read(encoded(Image.fromarray(ramp())), NATIVE)
    for sides in ((10_000, 10_000), (60_000, 60_000), (20_000, 2), (0, 5)):
        with pytest.raises(UnreadableImageError):
            read_image(png_of_size(*sides), NATIVE)
    text = PngImagePlugin.PngInfo()
    text.add_text("bomb", "0" * (1 << 21), zip=True)
    with pytest.raises(UnreadableImageError):
        read_image(encoded(Image.fromarray(ramp()), pnginfo=text), NATIVE)


def test_animations_are_refused():
    frames = [Image.fromarray(ramp()), Image.fromarray(255 - ramp())]
    data = encoded(frames[0], save_all=True, append_images=frames[1:])
    with pytest.raises(OutOfScopeError, match="animated"):
        read_image(data, NATIVE)


def test_what_is_no_file_is_refused(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for source in (tmp_path, tmp_path / "absent", pipe, "/dev/zero", b"", b"text", "a\0b"):
        with pytest.raises(UnreadableImageError):
            read_image(source, NATIVE)
    large = tmp_path / "large"
    large.write_bytes(bytes(200))
    with pytest.raises(UnreadableImageError, match="over 100 bytes"):
        Decoder(trusted=True, limits=Limits(file_bytes=100)).read(large, NATIVE)


def test_fit_pads_crops_and_stretches():
    wide = np.full((10, 20), 255, np.uint8)
    padded = fit(wide, ImageSpec(size=40))
    assert padded[:10].max() == 0
    assert padded[10:30].min() == 1
    marked = wide.copy()
    marked[:, :5] = marked[:, 15:] = 0
    assert fit(marked, ImageSpec(size=10, fit="crop")).min() == 1
    stretched = fit(marked, ImageSpec(size=20, fit="stretch", resampling="box"))
    assert stretched[:, 5:15].min() == 1
    assert stretched[:, :5].max() == 0


@pytest.mark.parametrize("fitting", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("shape", [(300, 210), (97, 256), (64, 64), (20, 31)])
def test_placement_finds_a_files_corner_in_the_models_image(fitting: str, shape: tuple[int, int]):
    spec = ImageSpec(size=64, fit=fitting, resampling="box")
    at = placement(*shape, spec)
    file = np.zeros(shape, np.float32)
    row, column = int(shape[0] * 0.55), int(shape[1] * 0.45)
    file[row:, column:] = 1
    seen = fit(file, spec)
    u, v = at.left + (column - at.x) / at.scale_x, at.top + (row - at.y) / at.scale_y
    inner = seen[at.top : at.top + at.height, at.left : at.left + at.width]
    assert inner.sum() == seen.sum()
    # the area left white tells where the corner lies; the filter takes whole pixels or none
    white = seen[at.top + at.height - 2, at.left : at.left + at.width].sum()
    assert at.left + at.width - white == pytest.approx(u, abs=0.51)
    white = seen[at.top : at.top + at.height, at.left + at.width - 2].sum()
    assert at.top + at.height - white == pytest.approx(v, abs=0.51)


def test_shrinking_does_not_alias():
    lines = np.tile(np.array([0, 255], np.uint8), (64, 32))
    for resampling in ("box", "bilinear", "bicubic", "lanczos"):
        small = fit(lines, ImageSpec(size=16, resampling=resampling))
        assert small[:, 2:-2] == pytest.approx(0.5, abs=0.02)


def test_extreme_shapes_keep_one_pixel():
    assert fit(np.full((1, 4000), 255, np.uint8), ImageSpec(size=32)).shape == (32, 32)


def test_decoders_travel_to_other_processes():
    decoder = pickle.loads(pickle.dumps(Decoder(limits=Limits(pixels=7))))
    assert decoder.limits.pixels == 7
