"""The application in a browser: uploads, refusals, sessions, the header, the tools."""

import json
import re
import stat
import time
import zipfile
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread


@pytest.fixture
def chest(shared_data: Path) -> Path:
    return shared_data / "dicom" / "derived_cxr" / "cr_mono1_10bit_explicitLE.dcm"


def status(address: str, headers: dict[str, str] | None = None) -> int:
    """Ask without a session and return the status."""
    try:
        with urlopen(Request(address, headers=headers or {})) as answer:
            return int(answer.status)
    except HTTPError as refused:
        refused.close()
        return refused.code


def test_each_file_is_opened_or_refused_with_a_sentence_and_the_session_goes_on(
    app, chest: Path, shared_data: Path, tmp_path: Path
):
    Image.fromarray(np.zeros((30, 40), np.uint8)).save(tmp_path / "grey.png")
    (tmp_path / "<img src=x onerror=alert(1)>.dcm").write_text("not an image")
    with zipfile.ZipFile(tmp_path / "studies.zip", "w") as archive:
        archive.write(chest, "../../a/chest in a folder.dcm")
        archive.writestr("__MACOSX/._chest.dcm", b"resource fork")
        archive.writestr("notes.txt", b"no image")
    plan = shared_data / "dicom" / "misc_rtplan.dcm"
    app.drop(chest, plan, tmp_path / "grey.png", tmp_path / "studies.zip")
    told = app.page.locator("#status").inner_text().strip()
    assert told == "3 studies opened, 2 files not opened."
    app.page.locator("#studies label").nth(2).wait_for()
    assert sorted(app.page.locator("#studies label").all_inner_texts()) == [
        "chest in a folder.dcm — CR · CHEST · PA · 440 × 440",
        "cr_mono1_10bit_explicitLE.dcm — CR · CHEST · PA · 440 × 440",
        "grey.png — 40 × 30",
    ]
    reasons = app.page.locator("#refused").inner_text()
    assert "misc_rtplan.dcm\nThe file has no pixels" in reasons
    assert "notes.txt\nThe file is neither DICOM, JPG nor PNG." in reasons
    app.drop(next(tmp_path.glob("*onerror*")))
    app.page.locator("#refused", has_text="neither DICOM").wait_for()
    assert app.page.locator("#refused img").count() == 0
    app.page.locator("#studies label", has_text="chest in").click()
    app.viewer.locator("#about", has_text="CR").wait_for()
    first = app.shown()
    app.page.locator("#studies label", has_text="grey.png").click()
    app.viewer.wait_for_selector(f"html[data-study]:not([data-study='{first}'])", state="attached")
    assert app.viewer.evaluate("() => viewer.study.columns") == 40


def test_uploads_lie_in_a_private_folder_and_go_when_told(app, server, chest: Path):
    app.drop(chest)
    name = app.shown()
    assert stat.S_IMODE(server.root.stat().st_mode) == 0o700
    assert list(server.root.glob(f"*/{name}.file"))
    assert not [
        path for path in server.root.rglob("*") if path.is_file() and path.suffix == ".part"
    ]
    assert not [path for path in (server.root / "uploads").rglob("*") if path.is_file()]
    app.page.get_by_role("button", name="Close all studies").click()
    app.viewer.locator("#notice", has_text="Drop").wait_for()
    assert not list(server.root.glob(f"*/{name}*"))


def test_sessions_cannot_see_each_other(app, another_app, server, chest: Path):
    app.drop(chest)
    name = app.shown()
    path = f"viewer/studies/{name}/"
    for part in ("description", "pixels"):
        address = server.address + path + part
        assert app.page.request.get(address).status == 200
        assert another_app.page.request.get(address).status == 404
        assert status(address) == 403
    assert another_app.page.locator("#studies label").count() == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    ],
)
def test_requests_of_other_sites_are_refused(server, headers: dict[str, str]):
    assert status(server.address) == 200
    assert status(server.address, headers) == 403


@pytest.mark.parametrize(
    "path", ["gradio_api/upload", "config", "gradio_api/info", "gradio_api/queue/join"]
)
def test_nothing_but_the_page_answers_without_a_session(server, path: str):
    assert status(server.address + path) == 403


def test_the_viewers_policy_allows_nothing_from_elsewhere_and_no_inline_code(app, server):
    answer = app.page.request.get(server.address + "viewer/index.html")
    policy, page = answer.headers["content-security-policy"], answer.text()
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|style=", page)


def test_personal_values_are_masked_until_revealed_and_that_is_written_down(
    app, server, chest: Path, tmp_path: Path
):
    path, patient = tmp_path / "named.dcm", "ZZ-4711-ZZ"
    ds = dcmread(chest)
    ds.PatientID = patient
    ds.save_as(path)
    app.drop(path)
    app.shown()
    app.page.get_by_role("tab", name="Header").click()
    row = app.page.locator("#tags tr", has_text="(0010,0020)")
    assert row.locator("td").last.inner_text() == "••••••"
    rows = app.page.locator("#tags tr", has_text="(0028,0010)")
    assert rows.locator("td").last.inner_text() == "440"
    assert not server.audit.exists() or not server.audit.read_text()
    app.page.locator("#look textarea, #look input").fill(patient)
    app.page.locator("#tags", has_text=re.compile(r"\b0 of")).wait_for()
    app.page.locator("#look textarea, #look input").fill("Patient ID")
    app.page.get_by_role("button", name="Reveal personal data").click()
    app.page.get_by_role("button", name="Hide personal data").wait_for()
    assert row.locator("td").last.inner_text() == patient
    (line,) = server.audit.read_text().splitlines()
    entry = json.loads(line)
    assert entry["event"] == "reveal"
    assert re.fullmatch("[0-9a-f]{64}", entry["study"])
    assert patient not in line
    assert path.name not in line


def test_tools_do_what_they_say(app, chest: Path):
    app.drop(chest)
    app.shown()
    viewer, stage = app.viewer, app.viewer.locator("#stage")
    assert viewer.locator("#shown").inner_text().startswith("C 550 W 1024")
    assert viewer.locator("#lengths").inner_text() == "Spacing not known: lengths in pixels."
    box = stage.bounding_box()
    assert box is not None
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    mouse = app.page.mouse
    mouse.move(*middle)
    mouse.down()
    mouse.move(middle[0] + 50, middle[1] + 20)
    mouse.up()
    changed = viewer.evaluate("() => [viewer.voi.center, viewer.voi.width]")
    assert changed == pytest.approx([550 + 20 * 3 * 0.979, 1024 + 50 * 3 * 0.979])
    assert viewer.locator("#presets option:checked").inner_text() == "By hand"
    viewer.get_by_role("button", name="Ruler").click()
    viewer.evaluate("() => { viewer.oneToOne(); viewer.render(); }")
    mouse.move(*middle)
    mouse.down()
    mouse.move(middle[0] + 30, middle[1] + 40)
    mouse.up()
    assert viewer.locator("#marks text").text_content() == "50.0 px"
    stage.press("?")
    viewer.get_by_role("heading", name="Keyboard, mouse and touch").wait_for()
    viewer.get_by_role("button", name="Close").click()
    stage.press("i")
    viewer.locator("button[data-do=invert][aria-pressed=true]").wait_for()
    stage.press("0")
    viewer.locator("button[data-do=invert][aria-pressed=false]").wait_for()
    mouse.move(*middle)
    probe = viewer.locator("#probe").inner_text()
    x, y, stored = (int(number) for number in re.findall(r"\d+", probe)[:3])
    assert viewer.evaluate("([x, y]) => viewer.cells[y * 440 + x]", [x - 1, y - 1]) == stored


def test_a_reload_keeps_the_studies(app, chest: Path):
    app.drop(chest)
    name = app.shown()
    app.page.reload()
    app.page.locator("#studies label", has_text="cr_mono1").wait_for()
    assert app.shown() == name


def test_a_study_keeps_how_it_was_seen_and_the_address_names_it(app, chest: Path, tmp_path: Path):
    ds = dcmread(chest)
    ds.PatientID = "ZZ-OTHER"
    ds.save_as(tmp_path / "other.dcm")
    app.drop(chest)
    first = app.shown()
    change = "viewer.zoom(2); viewer.pan(30, -20); viewer.turn(1); viewer.setWindow(300, 400);"
    ruler = "viewer.rulers.push({from: [10, 20], to: [40, 60]});"
    app.viewer.evaluate(f"() => {{ {change} {ruler} viewer.render(); }}")
    state = app.viewer.evaluate("() => viewer.state")
    assert state["turns"] == 1
    app.drop(tmp_path / "other.dcm")
    app.viewer.wait_for_selector(f"html[data-study]:not([data-study='{first}'])", state="attached")
    plain = app.viewer.evaluate("() => viewer.state")
    assert (plain["turns"], plain["rulers"]) == (0, [])
    app.page.go_back()
    app.viewer.wait_for_selector(f"html[data-study='{first}']", state="attached")
    back = app.viewer.evaluate("() => viewer.state")
    near = {"zoom", "x", "y"}  # of a stage that may have grown by a pixel
    assert [back[key] for key in near] == pytest.approx([state[key] for key in near], rel=0.02)
    assert {k: v for k, v in back.items() if k not in near} == {
        k: v for k, v in state.items() if k not in near
    }
    assert app.page.url.endswith(f"#{first}")
    app.page.reload()
    app.page.wait_for_selector("#reading", state="attached")
    app.viewer.wait_for_selector(f"html[data-study='{first}']", state="attached")
    again = app.viewer.evaluate("() => viewer.state")
    assert again["rulers"] == state["rulers"]
    assert again["voi"] == state["voi"]
    assert again["turns"] == 1
    assert again["zoom"] == pytest.approx(state["zoom"], rel=0.02)
    second = app.page.context.new_page()  # no address: the study in view
    second.goto(app.page.url.split("#")[0])
    second.frame_locator("#viewer").locator(f"html[data-study='{first}']").wait_for(
        state="attached"
    )
    second.close()


@pytest.mark.parametrize(
    ("urgent", "first"),
    [("", "phantom-pa-effusion"), ("monochrome1", "phantom-pa-monochrome1")],
    ids=["equal", "one is urgent"],
)
def test_a_page_opens_the_most_urgent_study_that_can_be_read(app, urgent: str, first: str):
    """By name the lateral comes first, which no model here reads."""

    def judged(route) -> None:  # as an engine with findings would
        answer = route.fetch()
        told = answer.json()
        for study in told["studies"]:
            study["urgency"] = 2 if urgent and urgent in study["file"] else 0
        route.fulfill(response=answer, json=told)

    app.page.route("**/worklist", judged)
    app.page.locator("#samples").click()
    app.shown()
    marked = app.page.locator("#studies label", has=app.page.locator("input:checked"))
    assert first in marked.inner_text()
    app.page.unroute_all(behavior="ignoreErrors")


def test_the_picture_says_whose_it_is_masked_as_the_header_is(app, chest: Path, tmp_path: Path):
    ds = dcmread(chest)
    for name, date in (("now", "20300201"), ("before", "20300102")):
        ds.PatientID, ds.PatientName, ds.StudyDate = "ZZ-1", "Fictitious^Ada", date
        ds.save_as(tmp_path / f"{name}.dcm")
    app.drop(tmp_path / "now.dcm", tmp_path / "before.dcm")
    app.shown()
    about, labels = app.viewer.locator("#about"), app.page.locator("#studies label")
    labels.nth(1).wait_for()
    labels.filter(has_text="now.dcm").click()
    about.get_by_text("current").wait_for()
    assert "Ada" not in about.inner_text()
    labels.filter(has_text="before.dcm").click()
    about.get_by_text("prior, 30 days before").wait_for()
    app.page.get_by_role("tab", name="Header").click()
    app.page.get_by_role("button", name="Reveal personal data").click()
    about.get_by_text("Fictitious^Ada").wait_for()
    assert "CHEST" in about.inner_text()
    app.page.get_by_role("button", name="Hide personal data").click()
    about.get_by_text("Fictitious^Ada").wait_for(state="detached")
    app.page.get_by_role("tab", name="Findings").click()
    app.page.get_by_role("button", name="Compare").click()
    beside = app.page.frame_locator("#beside iframe").locator("#about")
    beside.get_by_text("current").wait_for()
    assert "prior" in about.inner_text()


def test_keys_mean_the_same_beside_the_picture(app, chest: Path):
    app.drop(chest)
    app.shown()
    app.page.locator("#studies input:checked").focus()
    app.page.keyboard.press("i")
    app.viewer.locator("button[data-do=invert][aria-pressed=true]").wait_for()
    app.page.locator("#search").fill("i")  # typed, not meant for the picture
    assert app.viewer.evaluate("() => viewer.inverted")


def test_a_study_that_is_gone_leaves_an_empty_stage_and_a_sentence(app, chest: Path):
    app.drop(chest)
    name = app.shown()
    app.drop(Path(__file__).parents[1] / "src/medqua/ui/samples/phantom-lateral.dcm")
    app.viewer.wait_for_selector(f"html[data-study]:not([data-study='{name}'])", state="attached")
    gone = app.viewer.locator("html").get_attribute("data-study")
    answer = app.page.request.delete(f"{app.page.url.split('#')[0]}worklist/{gone}")
    assert answer.ok  # as another tab would
    app.viewer.locator("#notice", has_text="no longer on the server").wait_for()
    assert app.page.locator("#studies input:checked").count() == 0
    assert app.viewer.locator("html").get_attribute("data-study") is None


def test_the_server_ends_though_a_page_is_open_and_deletes_its_files(
    serving, context, watch, chest: Path, capfd
):
    watch.address = "http://127.0.0.1:"
    with serving("--pictures-only") as own:  # which looks for files after the end
        page = context.new_page()
        page.goto(own.address)
        page.wait_for_selector("#reading", state="attached")
        page.wait_for_selector("#files input[type=file]:enabled", state="attached")
        page.set_input_files("#files input[type=file]", [chest])
        page.frame_locator("#viewer").locator("html[data-study]").wait_for(state="attached")
        start = time.monotonic()
    assert time.monotonic() - start < 60  # it did not end while the page was open
    page.close()
    assert "Traceback" not in capfd.readouterr().err
    watch.errors[:] = [text for text in watch.errors if "ERR_" not in text]  # it was gone


def test_research_use_is_in_sight_and_names_are_given_to_controls(app):
    assert app.page.locator("#research").is_visible()
    unnamed = app.viewer.evaluate(
        "() => [...document.querySelectorAll('button, select, input')].filter((e) =>"
        " !(e.textContent.trim() || e.ariaLabel || e.labels?.length)).length"
    )
    assert unnamed == 0


def test_one_finger_does_what_the_tool_says_and_two_pinch(context, app, chest: Path):
    """Touches as the browser makes them of a screen's, not events made by a script."""
    app.drop(chest)
    app.shown()
    frame, touch = app.viewer, context.new_cdp_session(app.page)
    box = app.page.locator("iframe#viewer").bounding_box()
    stage = frame.locator("#stage").bounding_box()
    assert box is not None
    assert stage is not None
    x, y = stage["x"] + stage["width"] / 2, stage["y"] + stage["height"] / 2

    def fingers(kind: str, *points: tuple[float, float]) -> None:
        told = [{"x": px, "y": py, "id": number} for number, (px, py) in enumerate(points)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": told})

    state = "() => [viewer.voi.width, viewer.voi.center, viewer.pose.scale, viewer.rulers.length]"
    width, centre, scale, _ = frame.evaluate(state)
    fingers("touchStart", (x, y))
    fingers("touchMove", (x + 20, y))
    fingers("touchEnd")
    wider, same, unzoomed, _ = frame.evaluate(state)
    assert wider > width
    assert (same, unzoomed) == (centre, scale)
    fingers("touchStart", (x - 30, y), (x + 30, y))
    fingers("touchMove", (x - 60, y), (x + 60, y))
    fingers("touchEnd")
    unchanged, _, zoomed, _ = frame.evaluate(state)
    assert unchanged == wider
    assert zoomed == pytest.approx(2 * scale, rel=0.02)
    frame.locator("[data-tool=ruler]").click()
    fingers("touchStart", (x, y))
    fingers("touchMove", (x + 50, y))
    fingers("touchEnd")
    assert frame.evaluate(state)[3] == 1
