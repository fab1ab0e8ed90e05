"""What the canvas shows, read back from the screen, beside an independent computation."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import BrowserContext, Page
from pydicom import Dataset, dcmread
from pydicom.pixels import apply_modality_lut, apply_voi_lut, apply_windowing, pixel_array
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

Open = Callable[[Path, str], Page]
RENDERERS = ("webgl", "2d")
LARGE = pytest.mark.slow
FILES = (
    "cxr_CR-MONO1-10-chest",  # MONOCHROME1, 10 bits
    "misc_CT_small",  # signed, rescale intercept, padding value
    "misc_MR-SIEMENS-DICOM-WithOverlays",  # two windows
    "misc_mlut_18",  # signed with a modality LUT
    pytest.param("cxr_NIH_DX_implicit_nofinding", marks=LARGE),  # MONOCHROME2, 8 bits, no window
    pytest.param("cxr_RG1_J2KI", marks=LARGE),  # MONOCHROME1, 15 bits, 1955 x 1841, JPEG 2000
    pytest.param("cr_leg_RG3_J2KR", marks=LARGE),  # MONOCHROME1, 10 bits
    pytest.param("cr_teeth_ModalityLUT_mono1_jpegll", marks=LARGE),  # MONOCHROME1, modality LUT
)
WINDOWS = ((0.5, 0.8, "LINEAR"), (0.3, 0.15, "LINEAR_EXACT"), (0.6, 0.3, "SIGMOID"))
"""Centre and width as shares of the range of values present."""


def read(path: Path) -> Dataset:
    """Read a file, also one without file meta information."""
    ds = dcmread(path, force=True)
    if "TransferSyntaxUID" not in ds.file_meta:
        ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return ds


def expected(ds: Dataset, values: np.ndarray, *, prefer_lut: bool = True) -> np.ndarray:
    """Grey levels 0..255 by pydicom's modality and VOI transformations, as fractions."""
    stored = pixel_array(ds)
    low, high = float(values.min()), float(values.max())
    if prefer_lut and "VOILUTSequence" in ds:
        shown = apply_voi_lut(stored, ds, prefer_lut=True) / 65535.0
    elif "WindowWidth" in ds:
        with np.errstate(over="ignore"):
            black, white = apply_windowing(np.array([-1e12, 1e12]), ds)
            shown = (apply_windowing(values, ds) - black) / (white - black)
    else:
        shown = (values - low) / (high - low)
    if ds.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
    return 255 * shown


def seen(page: Page) -> np.ndarray:
    """The picture on the screen, at one pixel a pixel."""
    page.evaluate("() => { viewer.annotated = false; viewer.oneToOne(); viewer.render(); }")
    rows, columns, x, y = page.evaluate(
        "() => [viewer.study.rows, viewer.study.columns, viewer.matrix[4], viewer.matrix[5]]"
    )
    box = page.locator("#stage").bounding_box()
    assert box is not None
    assert x >= 0
    assert y >= 0
    clip = {"x": box["x"] + x, "y": box["y"] + y, "width": columns, "height": rows}
    picture = np.asarray(Image.open(BytesIO(page.screenshot(clip=clip))).convert("RGB"))
    assert (picture[..., 0] == picture[..., 1]).all()
    assert (picture[..., 0] == picture[..., 2]).all()
    return picture[..., 0].astype(np.float64)


@pytest.fixture
def open_alone(context: BrowserContext, server: Any) -> Callable[[Path, str], Page]:
    """Give a file to the server, and open its picture alone in a window that holds all of it."""

    def opened(path: Path, renderer: str) -> Page:
        ask = context.request
        assert ask.get(server.address).ok  # begins a session
        given = ask.post(f"{server.address}worklist/files?name=a.dcm", data=path.read_bytes())
        (name,) = given.json()["opened"]
        told = ask.get(f"{server.address}viewer/studies/{name}/description").json()
        page = context.new_page()
        size = {"width": max(told["columns"], 700) + 10, "height": told["rows"] + 150}
        page.set_viewport_size(size)
        page.goto(f"{server.address}viewer/index.html?study={name}&renderer={renderer}")
        page.wait_for_selector("html[data-study]", state="attached")
        used = page.evaluate("() => viewer.renderer.name")
        assert used == {"webgl": "WebGL2", "2d": "2D"}[renderer]
        return page

    return opened


def assert_same(picture: np.ndarray, reference: np.ndarray) -> None:
    """Equal after rounding to a grey level; what lies half way may go either way."""
    assert picture.shape == reference.shape
    assert np.abs(picture - reference).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_canvas_equals_pydicom_at_the_files_window_and_at_others(
    open_alone: Open, shared_data: Path, name: str, renderer: str
):
    path = shared_data / "dicom" / f"{name}.dcm"
    page = open_alone(path, renderer)
    ds = read(path)
    values = apply_modality_lut(pixel_array(ds), ds).astype(np.float64)
    first = expected(ds, values)
    assert_same(seen(page), first)
    page.evaluate("() => viewer.invert()")
    assert_same(seen(page), 255 - first)
    page.evaluate("() => viewer.invert()")
    span = float(np.ptp(values))
    for center, width, function in WINDOWS:
        ds.WindowCenter = float(values.min()) + center * span
        ds.WindowWidth = max(width * span, 2.0)
        ds.VOILUTFunction = function
        page.evaluate(
            "(args) => viewer.setWindow(...args)",
            [float(ds.WindowCenter), float(ds.WindowWidth), function],
        )
        assert_same(seen(page), expected(ds, values))


@pytest.fixture
def with_voi_lut(tmp_path: Path, shared_data: Path) -> Path:
    """A MONOCHROME1 radiograph with a VOI LUT that is no straight line, and a window after it."""
    ds = dcmread(shared_data / "dicom" / "derived_cxr" / "cr_mono1_10bit_explicitLE.dcm")
    item = Dataset()
    item.LUTDescriptor = [1024, 0, 16]
    item.LUTExplanation = "GAMMA"
    entries = np.round(65535 * (np.arange(1024) / 1023) ** 0.4).astype(np.uint16)
    item.LUTData = entries.tobytes()
    item["LUTData"].VR = "OW"
    item["LUTDescriptor"].VR = "US"
    ds.VOILUTSequence = [item]
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.save_as(tmp_path / "voi.dcm", enforce_file_format=True)
    return tmp_path / "voi.dcm"


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_voi_lut_comes_before_the_windows_and_both_can_be_chosen(
    open_alone: Open, with_voi_lut: Path, renderer: str
):
    page = open_alone(with_voi_lut, renderer)
    ds = dcmread(with_voi_lut)
    values = pixel_array(ds).astype(np.float64)
    names = page.locator("#presets option").all_inner_texts()
    assert names == [
        "VOI LUT 1: gamma", "Window 1 of the file", "Full range", "Auto (1 to 99 %)",
    ]  # fmt: skip
    assert_same(seen(page), expected(ds, values))
    page.locator("#presets").select_option(label="Window 1 of the file")
    assert_same(seen(page), expected(ds, values, prefer_lut=False))
    page.locator("#presets").select_option(label="Full range")
    del ds.WindowCenter, ds.WindowWidth
    assert_same(seen(page), expected(ds, values, prefer_lut=False))


def test_a_drag_from_a_voi_lut_shifts_and_stretches_it(open_alone: Open, with_voi_lut: Path):
    page = open_alone(with_voi_lut, "2d")
    opened = seen(page)
    page.evaluate("() => viewer.dragWindow(0, 0)")
    assert page.evaluate("() => viewer.choice") == -1  # by hand from here
    np.testing.assert_array_equal(seen(page), opened)  # and nothing jumps
    lut = page.evaluate("() => viewer.voi.lut")
    levels = np.asarray(lut["entries"]) / (2 ** lut["bits"] - 1)
    middle, span = lut["first"] + (len(levels) - 1) / 2, len(levels) - 1
    page.evaluate(f"() => viewer.setWindow({middle + 100}, {1.5 * span})")
    values = pixel_array(read(with_voi_lut)).astype(np.float64)
    inputs = np.floor(middle + (values - middle - 100) / 1.5 + 0.5).astype(int) - lut["first"]
    shown = levels[np.clip(inputs, 0, len(levels) - 1)]
    inverted = page.evaluate("() => viewer.study.inverted")
    assert_same(seen(page), 255 * (1 - shown if inverted else shown))


@pytest.mark.parametrize("renderer", RENDERERS)
def test_turning_and_flipping_move_pixels_as_numpy_does(
    open_alone: Open, shared_data: Path, renderer: str
):
    page = open_alone(shared_data / "dicom" / "cxr_CR-MONO1-10-chest.dcm", renderer)
    plain = seen(page)
    for script, moved in (
        ("viewer.turn(1)", np.rot90(plain, -1)),
        ("viewer.flip(false)", np.fliplr(np.rot90(plain, -1))),
        ("viewer.flip(true)", np.flipud(np.fliplr(np.rot90(plain, -1)))),
        ("viewer.turn(-1)", np.rot90(np.flipud(np.fliplr(np.rot90(plain, -1))))),
    ):
        page.evaluate(f"() => {{ {script}; }}")
        page.evaluate("() => { viewer.oneToOne(); viewer.render(); }")
        box = page.locator("#stage").bounding_box()
        assert box is not None
        corners = page.evaluate(
            "() => { const [a, b, c, d, e, f] = viewer.matrix;"
            " const {columns: w, rows: h} = viewer.study;"
            " return [Math.min(e, e + a * w, e + c * h), Math.min(f, f + b * w, f + d * h)]; }"
        )
        clip = {"x": box["x"] + corners[0], "y": box["y"] + corners[1], "width": 440, "height": 440}
        picture = np.asarray(Image.open(BytesIO(page.screenshot(clip=clip))).convert("L"))
        assert np.array_equal(picture, moved), script


def test_frames_are_each_their_own(open_alone: Open, shared_data: Path):
    path = shared_data / "dicom" / "misc_emri_small_jpeg_ls_lossless.dcm"
    page = open_alone(path, "webgl")
    frames = pixel_array(dcmread(path)).astype(np.float64)
    low, high = frames.min(), frames.max()
    for index in (0, 7, 9):
        page.evaluate("(index) => viewer.setFrame(index)", index)
        assert_same(seen(page), 255 * (frames[index] - low) / (high - low))
