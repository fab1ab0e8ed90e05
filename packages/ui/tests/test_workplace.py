"""The worklist in a browser: hostile files, comparison, reloads, cancelling, accessibility."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Frame, Locator, Page
from pydicom import dcmread

Serious = Callable[[Page], list[tuple[str, list[str]]]]
Eventually = Callable[[Callable[[], object]], object]
SAMPLES = Path(__file__).parents[1] / "src/medqua/ui/samples"


def test_every_malformed_file_is_told_in_a_sentence_and_the_session_goes_on(
    app, server, shared_data: Path, tmp_path: Path, eventually: Eventually
):
    files = sorted(
        path
        for path in (shared_data / "malformed").rglob("*")
        if path.is_file() and path.suffix not in (".csv", ".md")
    )
    assert len(files) > 30
    given = []
    for number, path in enumerate(files):  # names must be told apart
        given.append(tmp_path / f"{number:03d} {path.name}")
        shutil.copyfile(path, given[-1])
    app.page.set_input_files("#files input[type=file]", given)
    app.page.locator("#status", has_text=re.compile(r"opened\.$")).wait_for()
    told = app.page.locator("#status").inner_text()
    counts = [int(n) for n in re.findall(r"(\d+) (?:stud|file)", told)]
    assert sum(counts) == len(given)
    opened, refused = app.page.locator("#studies label"), app.page.locator("#refusals li")
    eventually(lambda: opened.count() + refused.count() >= len(given))
    assert opened.count() + refused.count() == len(given)
    reasons = [text.split("\n", 1)[1] for text in refused.all_inner_texts()]
    for reason in reasons:
        assert re.fullmatch(r"[A-Z\"'(].{15,}\.", reason, re.DOTALL), reason
        assert not re.search(r"Traceback|Error\b|0x[0-9a-f]{6}|/tmp/|\bNone\b", reason), reason
    app.page.get_by_role("button", name="Close all studies").click()
    app.page.locator("#studies label").first.wait_for(state="detached")
    app.drop(SAMPLES / "phantom-lateral.dcm")
    assert app.shown()
    assert not list(server.root.rglob("*.part"))


def follow_up(folder: Path) -> Path:
    """Write a second study of the patient of `phantom-pa-effusion.dcm`, a month later."""
    ds = dcmread(SAMPLES / "phantom-pa-effusion.dcm")
    ds.StudyDate = "20300201"
    ds.save_as(folder / "follow-up.dcm")
    return folder / "follow-up.dcm"


VIEW = "() => Object.values(viewer.view).map(Number)"
"""Zoom, x, y, level, width, inverted; all of them relative to the picture as it was opened."""


def move_together(own: Frame, other: Locator, together: Locator, eventually: Eventually) -> None:
    """Check that two viewers follow each other as long as they are told to."""

    def seen(viewer: Frame | Locator) -> list[float]:
        return viewer.evaluate(VIEW)

    def become(view: list[float]) -> None:
        alike = pytest.approx(view)
        eventually(lambda: seen(own) == alike and seen(other) == alike)

    own.evaluate("() => viewer.render()")
    opened = [1, 0, 0, 0, 1, 0]
    assert together.is_checked()
    own.wait_for_timeout(300)
    assert seen(own) == seen(other) == pytest.approx(opened)  # a second picture moves nothing
    own.evaluate("() => { viewer.zoom(2); viewer.pan(40, -30); viewer.dragWindow(50, -20); }")
    moved = seen(own)
    assert moved[0] == pytest.approx(2)
    assert all(a != b for a, b in zip(moved[:5], opened[:5], strict=True))
    become(moved)
    other.evaluate("() => viewer.invert()")
    become([*moved[:5], 1])
    together.uncheck()
    other.evaluate("() => viewer.reset()")
    own.wait_for_timeout(300)
    assert seen(other) == pytest.approx(opened)
    assert seen(own) == pytest.approx([*moved[:5], 1])
    together.check()
    own.evaluate("() => viewer.reset()")
    become(opened)


def test_two_studies_of_one_patient_stand_side_by_side_and_of_two_patients_never(
    app, tmp_path: Path, eventually: Eventually, serious: Serious
):
    first, other = SAMPLES / "phantom-pa-effusion.dcm", SAMPLES / "phantom-lateral.dcm"
    app.drop(first, follow_up(tmp_path), other)
    app.shown()
    labels = app.page.locator("#studies label")
    labels.nth(2).wait_for()
    labels.filter(has_text="phantom-pa-effusion").click()
    compare = app.page.get_by_role("button", name=re.compile("^Compare"))
    compare.first.wait_for()
    assert compare.count() == 1
    assert compare.get_attribute("aria-label") == "Compare: follow-up.dcm"
    own = app.viewer
    compare.click()
    beside = app.page.locator("#beside")
    beside.wait_for()
    frame = app.page.frame_locator("#beside iframe")
    frame.locator("html[data-study]").wait_for(state="attached")
    shown = frame.locator("html").get_attribute("data-study")
    assert shown != app.page.frame_locator("#viewer").locator("html").get_attribute("data-study")
    assert "follow-up.dcm: the same patient by its header" in beside.inner_text()
    assert serious(app.page) == []
    together = beside.get_by_label("Move and window together")
    move_together(own, frame.locator("html"), together, eventually)
    beside.get_by_role("button", name="Stop comparing").click()
    beside.wait_for(state="detached")
    compare.click()
    beside.wait_for()
    labels.filter(has_text="phantom-lateral").click()
    beside.wait_for(state="detached")
    compare.wait_for(state="detached")


LOST = re.compile("ERR_INTERNET_DISCONNECTED|TypeError: Failed to fetch|Connection errored out")
"""What the browser and Gradio say of requests that were under way, or made, without a network."""


def test_a_server_that_is_gone_is_named_and_what_was_open_is_there_when_it_is_back(app, watch):
    app.drop(SAMPLES / "phantom-lateral.dcm")
    name = app.shown()
    away = app.page.locator("#away")
    assert away.is_hidden()
    app.page.context.set_offline(True)
    away.wait_for()
    assert away.get_attribute("role") == "alert"
    assert app.viewer.locator("html").get_attribute("data-study") == name
    app.page.context.set_offline(False)
    away.wait_for(state="hidden")
    app.drop(SAMPLES / "phantom-pa-effusion.dcm")
    app.page.locator("#studies label").nth(1).wait_for()
    watch.errors[:] = [text for text in watch.errors if not LOST.search(text)]


def test_nothing_can_be_pressed_that_would_do_nothing(app, context, server, eventually: Eventually):
    held = []
    context.route("**/page/worklist.js", lambda route: held.append(route))
    page = context.new_page()
    page.goto(server.address)
    controls = page.locator("#open-files, #open-folder, #pick, #pick-folder, #samples, #close-all")
    controls.nth(5).wait_for(state="attached")
    eventually(lambda: page.wait_for_timeout(100) or held)
    assert not any(control.is_enabled() for control in controls.all())
    held[0].continue_()
    page.locator("#open-files:enabled").wait_for()
    assert all(control.is_enabled() for control in controls.all())


def test_files_are_opened_by_keys_alone(app):
    button = app.page.get_by_role("button", name="Open files")
    button.wait_for()
    focused = "(e) => e === document.activeElement"
    with app.page.expect_file_chooser() as chosen:  # the browser takes a moment to listen
        for _ in range(20):
            app.page.keyboard.press("Tab")
            if button.evaluate(focused):
                break
        assert button.evaluate(focused)
        app.page.keyboard.press("Enter")
    chosen.value.set_files(SAMPLES / "phantom-lateral.dcm")
    assert app.shown()


def test_filters_leave_what_fits(app):
    app.drop(SAMPLES / "phantom-pa-effusion.dcm", SAMPLES / "phantom-lateral.dcm")
    labels = app.page.locator("#studies label")
    labels.nth(1).wait_for()
    app.page.locator("#search").fill("lateral")
    labels.nth(1).wait_for(state="detached")
    assert "phantom-lateral" in labels.inner_text()
    app.page.locator("#search").fill("nothing like it")
    app.page.get_by_text("No study fits the filter.").wait_for()


def test_a_cancelled_upload_leaves_nothing_and_the_next_one_works(
    app, server, tmp_path: Path, eventually: Eventually
):
    large = tmp_path / "large.zip"
    with large.open("wb") as file:
        file.truncate(400 << 20)
    app.page.context.route("**/never", lambda route: route.abort())
    app.page.set_input_files("#files input[type=file]", [large])
    app.page.get_by_role("button", name="Cancel").click()
    app.page.locator("#status", has_text=re.compile("cancelled|not opened")).wait_for()
    eventually(lambda: not list(server.root.rglob("*.part")))
    app.drop(SAMPLES / "phantom-lateral.dcm")
    assert app.shown()


def test_two_tabs_and_a_reload_while_files_come_in_mix_nothing_up(
    app, tmp_path: Path, eventually: Eventually
):
    files = []
    for number in range(6):
        files.append(tmp_path / f"{number}.dcm")
        shutil.copyfile(SAMPLES / "phantom-lateral.dcm", files[-1])
    second = app.page.context.new_page()
    second.goto(app.page.url)
    second.wait_for_selector("#files input[type=file]:enabled", state="attached")
    app.page.set_input_files("#files input[type=file]", files)
    app.page.locator("#studies label").first.wait_for()
    app.page.reload()
    app.page.locator("#studies label").first.wait_for()

    def same() -> list[str]:
        """What both tabs list, as soon as they agree."""
        here, there = (
            sorted(page.locator("#studies label").all_inner_texts()) for page in (app.page, second)
        )
        return here if here == there else []

    app.page.wait_for_timeout(500)
    texts = eventually(same)
    assert 1 <= len(texts) == len(set(texts))
    app.drop(SAMPLES / "phantom-pa-effusion.dcm")
    assert app.shown()
    second.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_the_main_states(app, scheme: str, serious: Serious):
    app.page.emulate_media(color_scheme=scheme)
    app.page.goto(f"{app.page.url}?__theme={scheme}")
    app.page.wait_for_selector("#files input[type=file]:enabled", state="attached")
    app.page.locator("#viewer").wait_for()
    assert serious(app.page) == []
    app.drop(SAMPLES / "phantom-pa-effusion.dcm", SAMPLES / "phantom-lateral.dcm")
    app.shown()
    assert serious(app.page) == []
    for tab in ("Header", "Out", "Help"):
        app.page.get_by_role("tab", name=tab).click()
        assert serious(app.page) == [], tab


def test_the_worklist_is_worked_by_keys_alone(app):
    app.drop(SAMPLES / "phantom-pa-effusion.dcm", SAMPLES / "phantom-lateral.dcm")
    first = app.shown()
    app.page.locator("#studies input:checked").focus()
    app.page.keyboard.press("ArrowDown")
    app.viewer.wait_for_selector(f"html[data-study]:not([data-study='{first}'])", state="attached")
    focused = app.page.evaluate("() => document.activeElement.closest('#studies') !== null")
    assert focused
