"""Take the pictures of `docs/ui`: `.venv/bin/python tools/take_screenshots.py [BUNDLE]`.

They show the sample phantoms, read by BUNDLE, a folder written by training; the demo bundle by
default.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from shutil import which

from playwright.sync_api import Page, sync_playwright
from pydicom import dcmread

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "ui"
SAMPLES = ROOT / "packages/ui/src/medqua/ui/samples"
FLAGS = ["--no-sandbox", "--disable-background-networking", "--enable-unsafe-swiftshader"]


def opened(page: Page, *files: Path) -> None:
    """Open files and wait for the picture and the findings."""
    page.wait_for_selector("#files input[type=file]:enabled", state="attached")
    page.set_input_files("#files input[type=file]", list(files))
    page.locator("#status", has_text=re.compile("opened\\.")).wait_for(timeout=60_000)
    page.frame_locator("#viewer").locator("#canvas:not([hidden])").wait_for(timeout=60_000)
    told = page.locator("#reading .facts, #reading .quiet")
    told.first.wait_for(state="attached", timeout=180_000)  # another tab may be open
    page.wait_for_timeout(1500)


def overlaid(page: Page, kind: str) -> None:
    """Choose an overlay and wait for its map."""
    viewer = page.frame_locator("#viewer")
    viewer.locator("#overlaybar:not([hidden])").wait_for(timeout=60_000)
    viewer.locator("#overlay-kind").select_option(kind)
    viewer.locator("#scale").wait_for(timeout=120_000)
    page.wait_for_timeout(800)


def settled(page: Page) -> None:
    """Wait until the chosen study is the one in view, with its findings."""
    page.locator("#studies input:checked").wait_for(timeout=60_000)
    chosen = page.locator("#studies input:checked").get_attribute("value")
    shown = page.frame_locator("#viewer").locator(f"html[data-study='{chosen}']")
    shown.wait_for(state="attached", timeout=60_000)
    page.frame_locator("#viewer").locator("#canvas:not([hidden])").wait_for(timeout=60_000)
    page.locator("#right .generating, #right .eta-bar").first.wait_for(
        state="detached", timeout=120_000
    )
    page.wait_for_timeout(2500)


def main() -> None:
    TARGET.mkdir(exist_ok=True)
    bundle = ["--bundle", sys.argv[1]] if len(sys.argv) > 1 else []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as running:
        server = subprocess.Popen(
            [sys.executable, "-m", "medqua.ui", "--port", "0", "--audit", f"{folder}/a", *bundle],
            stdout=subprocess.PIPE,
            env=os.environ | {"TMPDIR": folder},
            text=True,
        )
        found = re.search(r"http://\S+", server.stdout.readline() if server.stdout else "")
        if found is None:
            raise SystemExit("the server did not start")
        browser = running.chromium.launch(executable_path=which("chromium"), args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(found.group(0))
        page.frame_locator("#viewer").locator("#notice", has_text="Drop").wait_for()
        page.wait_for_timeout(1000)
        page.screenshot(path=TARGET / "empty.png")
        opened(page, SAMPLES / "phantom-pa-effusion.dcm")
        overlaid(page, "occlusion")
        page.screenshot(path=TARGET / "study.png")
        overlaid(page, "routed")
        page.screenshot(path=TARGET / "routes.png")
        page.get_by_role("tab", name="Quantum").click()
        page.locator("#circuit img").first.wait_for(timeout=60_000)
        page.locator("#run").click()
        page.locator("#compared img").wait_for(timeout=180_000)
        page.set_viewport_size({"width": 1280, "height": 1180})
        page.wait_for_timeout(1000)
        page.screenshot(path=TARGET / "quantum.png")
        page.set_viewport_size({"width": 1280, "height": 800})
        page.get_by_role("tab", name="Header").click()
        opened(page, SAMPLES / "phantom-pa-monochrome1.dcm")
        viewer = page.frame_locator("#viewer")
        viewer.locator("#overlay-kind").select_option("off")
        viewer.get_by_role("button", name="Ruler").click()
        box = page.locator("#viewer").bounding_box()
        if box is not None:
            page.mouse.move(box["x"] + 240, box["y"] + 520)
            page.mouse.down()
            page.mouse.move(box["x"] + 430, box["y"] + 520)
            page.mouse.up()
        page.wait_for_timeout(500)
        page.screenshot(path=TARGET / "monochrome1.png")
        broken = Path(folder) / "report.dcm"
        broken.write_bytes(b"no image")
        page.get_by_role("tab", name="Findings").click()
        page.set_viewport_size({"width": 1280, "height": 1000})
        page.set_input_files("#files input[type=file]", [broken, SAMPLES / "phantom-lateral.dcm"])
        page.locator("#status", has_text="1 file not opened").wait_for(timeout=60_000)
        page.locator("#left", has_text="only frontal views").wait_for(timeout=60_000)
        settled(page)
        page.screenshot(path=TARGET / "worklist.png")
        page.set_viewport_size({"width": 1280, "height": 800})
        later = Path(folder) / "follow-up.dcm"
        dataset = dcmread(SAMPLES / "phantom-pa-effusion.dcm")
        dataset.StudyDate = "20300201"
        dataset.save_as(later)
        opened(page, later)
        page.locator("#studies label", has_text="phantom-pa-effusion").click()
        settled(page)
        page.get_by_role("button", name="Compare: follow-up.dcm").click()
        beside = page.frame_locator("#beside iframe").locator("#canvas:not([hidden])")
        beside.wait_for(timeout=60_000)
        settled(page)
        first = page.frame_locator("#viewer").locator("html")
        first.evaluate("() => { viewer.zoom(1.5); viewer.pan(20, 60); viewer.dragWindow(-80, 40) }")
        page.wait_for_timeout(500)
        page.screenshot(path=TARGET / "comparison.png")
        page.get_by_role("button", name="Stop comparing").first.click()
        page.goto(found.group(0) + "?__theme=dark")
        page.frame_locator("#viewer").locator("#canvas:not([hidden])").wait_for()
        page.locator("#reading .facts, #reading .quiet").first.wait_for(timeout=60_000)
        settled(page)
        page.screenshot(path=TARGET / "dark.png")
        page.set_viewport_size({"width": 820, "height": 1180})
        page.goto(found.group(0))
        page.frame_locator("#viewer").locator("#canvas:not([hidden])").wait_for()
        page.locator("#reading .facts, #reading .quiet").first.wait_for(timeout=60_000)
        settled(page)
        page.screenshot(path=TARGET / "tablet.png")
        browser.close()
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
