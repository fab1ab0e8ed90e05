"""The overlay lies where the model's tokens lie, at any pose; it says what the model did."""

import json
import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Frame, Page

from medqua.core.model.bundle import Bundle
from medqua.core.vision.image import ImageSpec, decode_image, fit
from medqua.serve.demo import DEMO
from medqua.serve.inference.explain import Occlusion, Routes, occlusion, routes
from medqua.ui.overlay import lay_routed, routed_colours

CELL = 28
"""Side of a visual token in the model's image, in pixels: patch 14, merged two by two."""


@pytest.fixture(scope="module")
def server(serving) -> Iterator[Any]:
    """The server with the demo bundle."""
    with serving("--bundle", DEMO) as server:
        yield server


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A radiograph that is not square: the model sees it between two black bars."""
    sample = Path(__file__).parents[1] / "src/medqua/ui/samples/phantom-pa-effusion.dcm"
    bundle = json.loads((DEMO / "bundle.json").read_bytes())
    spec = {**bundle["image"], "size": None}
    grey = decode_image(sample.read_bytes(), ImageSpec.from_dict(spec)).image
    rows = grey.shape[0] * 7 // 10
    path = tmp_path_factory.mktemp("wide") / "wide.png"
    Image.fromarray(np.round(255 * grey[:rows]).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open(DEMO)


@pytest.fixture(scope="module")
def told(bundle: Bundle, wide: Path) -> tuple[Routes, Occlusion]:
    """The same, computed in this process."""
    image = decode_image(wide.read_bytes(), bundle.image).image
    shown = np.flatnonzero(image.any(1))
    inside = (0, int(shown[0]), image.shape[1], len(shown))
    return routes(bundle, image), occlusion(bundle, image, inside=inside)


@pytest.fixture
def viewer(app, wide: Path) -> Frame:
    app.drop(wide)
    app.shown()
    app.viewer.wait_for_selector("#overlaybar:not([hidden])")
    app.viewer.evaluate("() => { viewer.annotated = false; }")
    return app.viewer


def edges(length: int, other: int, spec, *, across: bool) -> np.ndarray:
    """Where the borders of tokens lie in the file, by sending a ramp through the recipe itself."""
    ramp = np.tile((np.arange(length, dtype=np.float32) + 0.5) / length, (other, 1))
    seen = fit(ramp if across else np.ascontiguousarray(ramp.T), spec)
    line = seen[seen.shape[0] // 2] if across else seen[:, seen.shape[1] // 2]
    inside = np.flatnonzero(line > 0)[3:-3]  # the filter bends the ends
    slope, start = np.polyfit(inside + 0.5, length * line[inside], 1)
    return np.asarray(start + slope * np.arange(0, seen.shape[0] + 1, CELL))


def expected(
    colours: np.ndarray, spec, size: tuple[int, int], canvas: tuple[int, int], pose: dict
) -> np.ndarray:
    """The overlay on the screen, `[height, width, 3]`, pixel by pixel from a pose."""
    rows, columns = size
    across = edges(columns, rows, spec, across=True)
    down = edges(rows, columns, spec, across=False)
    v, u = np.mgrid[: canvas[0], : canvas[1]] + 0.5
    dx = (u - canvas[1] / 2 - pose["panX"]) / pose["scale"]
    dy = (v - canvas[0] / 2 - pose["panY"]) / pose["scale"]
    for _ in range(pose["turns"]):  # undo a quarter turn clockwise
        dx, dy = dy, -dx
    if pose["flipped"]:
        dx = -dx
    x, y = dx + columns / 2, dy + rows / 2
    inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
    i = np.clip(np.searchsorted(down, y, side="right") - 1, 0, colours.shape[0] - 1)
    j = np.clip(np.searchsorted(across, x, side="right") - 1, 0, colours.shape[1] - 1)
    return np.where(inside[..., None], colours[i, j], 0.0)


def seen(page: Page, viewer: Frame) -> np.ndarray:
    viewer.evaluate("() => viewer.render()")
    stage = viewer.locator("#stage")
    return np.asarray(Image.open(BytesIO(stage.screenshot())).convert("RGB")).astype(np.float64)


def away(picture: np.ndarray, reference: np.ndarray) -> float:
    """Share of the pixels that no blend of the reference within one pixel explains.

    Where the picture's edge cuts a pixel of the screen, that pixel is a blend of what lies outside,
    the overlay, and the picture under it, which the reference does not know: it is not counted.
    """
    rows, columns = picture.shape[0] - 2, picture.shape[1] - 2
    around = [reference[i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
    low, high = np.min(around, axis=0) - 8, np.max(around, axis=0) + 8  # 52 anchors a colour map
    middle = picture[1:-1, 1:-1]
    outside = [(pixels == 0).all(-1) for pixels in around]  # no colour of the map is black
    edge = np.any(outside, axis=0) & ~np.all(outside, axis=0)
    return float((((middle < low) | (middle > high)).any(-1) & ~edge).mean())


POSES = {
    "fitted": "viewer.fit()",
    "one to one": "viewer.oneToOne()",
    "enlarged": "viewer.setPose({scale: 3.3, panX: 120, panY: -60})",
    "reduced": "viewer.setPose({scale: 0.57, panX: -31, panY: 17})",
    "turned": "viewer.turn(1); viewer.setPose({scale: 1.7, panX: 10, panY: 40})",
    "flipped and turned": "viewer.flip(false); viewer.turn(-1); viewer.setPose({scale: 2.1})",
}


def test_the_gates_lie_on_the_picture_to_one_pixel(
    app, viewer: Frame, bundle: Bundle, told: tuple[Routes, Occlusion], wide: Path
):
    with Image.open(wide) as image:
        size = (image.height, image.width)
    assert size[0] != size[1]
    viewer.locator("#overlay-kind").select_option("gate")
    viewer.locator("#overlay-layer").select_option("1")
    viewer.evaluate("() => viewer.overlay.choose({opacity: 1})")
    shown = viewer.evaluate("() => viewer.overlay.map.values")
    np.testing.assert_allclose(shown, told[0].layers[1].gate, atol=1e-4)
    # then gates that differ everywhere: trained ones are alike over much of a picture
    gates = np.random.default_rng(0).permutation(np.linspace(0, 1, 64)).reshape(8, 8)
    viewer.evaluate(
        "(gate) => { viewer.overlay.data.layers[1].gate = gate; viewer.overlay.choose({}); }",
        gates.tolist(),
    )
    colours = 255 * mpl.colormaps["cividis"](gates)[..., :3]
    for name, script in POSES.items():
        viewer.evaluate("() => viewer.reset()")
        viewer.evaluate(f"() => {{ {script}; }}")
        picture = seen(app.page, viewer)
        pose = viewer.evaluate("() => viewer.pose")
        reference = expected(colours, bundle.image, size, picture.shape[:2], pose)
        assert away(picture, reference) < 1e-3, name
        shifted = np.roll(reference, 2, axis=(0, 1))
        assert away(picture, shifted) > 3e-3, name  # the test would see two pixels


@pytest.mark.parametrize("size", [(500, 700), (700, 500), (611, 611)])
@pytest.mark.parametrize("how", ["pad", "crop", "stretch"])
def test_pixels_of_the_report_are_coloured_where_their_token_was_routed(
    size: tuple[int, int], how: Literal["pad", "crop", "stretch"]
):
    rng = np.random.default_rng(3)
    spec = ImageSpec(size=224, fit=how)
    routed = rng.random((3, 8, 8)) < 0.3
    layers = tuple(SimpleNamespace(routed=one) for one in routed)
    told = cast("Any", SimpleNamespace(image=(224, 224), layers=layers))
    levels = rng.integers(0, 256, (size[0] // 2, size[1] // 2), dtype=np.uint8)
    laid = lay_routed(levels, size, told, spec)
    # what a pixel shows, by sending a ramp through the recipe itself
    lines = edges(*size, spec, across=False), edges(size[1], size[0], spec, across=True)
    y, x = [(np.arange(n) + 0.5) * of / n for n, of in zip(levels.shape, size, strict=True)]
    sure = [np.abs(at[:, None] - line).min(1) > 1 for at, line in zip((y, x), lines, strict=True)]
    i, j = [np.searchsorted(line, at) - 1 for at, line in zip((y, x), lines, strict=True)]
    inside = np.outer((i >= 0) & (i < 8), (j >= 0) & (j < 8))
    counts = routed.sum(0)[np.ix_(np.clip(i, 0, 7), np.clip(j, 0, 7))] * inside
    grey = levels[..., None].astype(float)
    expected = np.where(counts[..., None], (grey + routed_colours(3)[counts]) / 2, grey)
    far = np.outer(*sure)
    assert far.mean() > 0.8
    assert np.abs(laid - expected)[far].max() <= 0.5


def test_depth_leaves_tokens_clear_that_were_not_routed(
    app, viewer: Frame, bundle: Bundle, told: tuple[Routes, Occlusion]
):
    viewer.locator("#overlay-kind").select_option("depth")
    viewer.locator("#overlay-layer").select_option("0")
    viewer.evaluate("() => viewer.overlay.choose({opacity: 0})")
    plain = seen(app.page, viewer)
    viewer.evaluate("() => viewer.overlay.choose({opacity: 1})")
    picture = seen(app.page, viewer)
    layer = told[0].layers[0]
    matrix = viewer.evaluate("() => viewer.matrix")
    at = viewer.evaluate("() => viewer.overlay.data.placement")
    counts = {True: 0, False: 0}
    for row, column in np.ndindex(8, 8):
        x = at["x"] + ((column + 0.5) * CELL - at["left"]) * at["scale_x"]
        y = at["y"] + ((row + 0.5) * CELL - at["top"]) * at["scale_y"]
        u, v = int(matrix[0] * x + matrix[4]), int(matrix[3] * y + matrix[5])
        inside = 0 < (row + 0.5) * CELL - at["top"] < at["height"]
        if not inside:
            continue
        depth = int(layer.depth[row, column])
        counts[depth >= 0] += 1
        wanted = plain[v, u]
        if depth >= 0:
            wanted = 255 * np.array(mpl.colormaps["viridis"](depth / layer.max_depth)[:3])
        assert np.abs(picture[v, u] - wanted).max() <= 3, (row, column)
    assert min(counts.values()) > 0
    note = viewer.locator("#legend").inner_text()
    assert "Depth, Layer 1" in note
    assert "circuit layers" in note
    assert "clear: not routed" in note


def test_occlusion_is_computed_when_asked_for_and_kept_while_paging_maps(
    viewer: Frame, told: tuple[Routes, Occlusion]
):
    viewer.locator("#overlay-kind").select_option("occlusion")
    viewer.locator("#overlay-finding option").first.wait_for(state="attached")
    labels = viewer.locator("#overlay-finding option").all_inner_texts()
    assert tuple(labels) == told[1].labels
    first = int(told[1].probability.argmax())
    assert viewer.locator("#overlay-finding").input_value() == str(first)
    viewer.locator("#overlay-finding").select_option("9")
    map_ = viewer.evaluate("() => viewer.overlay.map")
    np.testing.assert_allclose(map_["values"], told[1].change[9], atol=2e-4)
    assert map_["high"] == pytest.approx(max(1.0, np.abs(told[1].change[9]).max()), abs=1e-4)
    legend = viewer.locator("#legend").inner_text()
    assert "Pleural Effusion: change of the logit when covered" in legend
    assert "logits" in legend
    painted = viewer.evaluate(
        "() => [...viewer.overlay.cells.getContext('2d').getImageData(0, 0, 8, 8).data]"
    )
    clear = np.reshape(painted, (8, 8, 4))[..., 3] == 0
    np.testing.assert_array_equal(clear, np.abs(np.array(map_["values"])) < 0.25)  # the floor
    viewer.locator("#overlay-kind").select_option("off")
    viewer.locator("#scale").wait_for(state="hidden")
    assert viewer.locator("#overlay").is_hidden()
    viewer.locator("#overlay-kind").select_option("occlusion")
    assert viewer.evaluate("() => Boolean(viewer.overlay.map)")  # at once


def test_keys_and_the_probe_tell_the_map(viewer: Frame):
    stage = viewer.locator("#stage")
    stage.focus()
    stage.press("g")
    assert viewer.locator("#overlay-kind").input_value() == "routed"
    viewer.evaluate("() => { viewer.annotated = true; }")
    stage.press("g")
    box = stage.bounding_box()
    assert box is not None
    stage.hover(position={"x": box["width"] / 2, "y": box["height"] / 2})
    viewer.locator("#probe", has_text=re.compile(r"gate \d\.\d\d")).wait_for()


def test_the_quantum_page_draws_the_study_and_runs_its_circuits(app, viewer: Frame):
    page = app.page
    page.get_by_role("tab", name="Quantum").click()
    images = page.locator("#circuit img")
    images.nth(1).wait_for()
    told = images.first.get_attribute("alt")
    assert told is not None
    assert told.startswith("Layer 1: the circuit at its full depth of 2 layers")
    page.locator("#adapter").get_by_text("Layer 3").click()
    page.locator("#circuit img[alt^='Layer 3']").wait_for()
    page.locator("#run").click()
    caption = page.locator("#compared figcaption")
    caption.wait_for()
    text = caption.inner_text()
    assert text.startswith("ionq-emulated, 1,000 shots a circuit: largest deviation from exact ")
    errors = re.search(r"([\d.]+) standard errors", text)
    assert errors is not None
    assert float(errors.group(1)) < 6
    page.get_by_role("tab", name="Findings").click()
    assert "wide" not in (page.locator("#work").get_attribute("class") or "")
