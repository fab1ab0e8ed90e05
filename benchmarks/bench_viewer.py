"""How fast the viewer is, in headless Chromium, on a radiograph of 1955 x 1841 pixels (7 MB).

    hatch run bench:viewer
    hatch run bench:viewer --picture FILE.dcm

Redraw: 50 steps of a window drag; each is timed from the pointer's event until a pixel could be
read back, with the picture fitted to a page of 1280 x 800, by what the page draws with here: 2D
where there is no GPU. Drop to picture: from the file given to
the page until its picture is drawn, everything between (upload, decoding, transfer) included. Drop
to findings: until the panel shows them, less the seconds that the engine itself took. Start: from
the command until the page answers. Sessions: 20 browsers at once, each with a picture of its own
size and its findings; the memory that the server grew by, for each. No peer is timed here.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from shutil import which
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import psutil
from PIL import Image
from playwright.sync_api import Browser, Frame, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "viewer.json"
DATA = Path(os.environ.get("MEDQUA_TEST_DATA", ROOT.parent / "shared" / "data"))
FLAGS = [
    "--no-sandbox",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-unsafe-swiftshader",
]
DRAGS, DROPS, SESSIONS = 50, 5, 20
REDRAWS = """(drags) => {
  const stage = document.getElementById("stage");
  const box = stage.getBoundingClientRect();
  const send = (kind, x, y) => stage.dispatchEvent(new PointerEvent(kind, {
    pointerId: 1, button: 0, clientX: box.left + x, clientY: box.top + y, bubbles: true}));
  stage.setPointerCapture = () => {};
  send("pointerdown", 200, 200);
  const times = [];
  for (let i = 0; i < drags; i++) {
    const start = performance.now();
    send("pointermove", 200 + 3 * (i + 1), 200 + (i % 7));
    viewer.render();
    viewer.renderer.finish();
    times.push(performance.now() - start);
  }
  send("pointerup", 200, 200);
  return times;
}"""


@contextmanager
def served() -> Iterator[tuple[str, float, psutil.Process]]:
    """Start the server; give its address, the seconds it took and the process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "medqua.ui", "--port", "0"]
        start = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--audit", f"{folder}/audit.jsonl"],
            stdout=subprocess.PIPE,
            env=os.environ | {"TMPDIR": folder},
            text=True,
        )
        try:
            found = re.search(r"http://\S+", process.stdout.readline() if process.stdout else "")
            if found is None:
                raise SystemExit("the server did not start")
            while True:
                try:
                    urlopen(found.group(0)).close()
                    break
                except URLError:
                    time.sleep(0.05)
            yield found.group(0), time.perf_counter() - start, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait()


def arrive(browser: Browser, address: str) -> tuple[Page, Frame]:
    """Open the page in a browser of its own and wait until it takes files."""
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    page.goto(address)
    page.wait_for_selector("#reading", state="attached", timeout=60_000)  # the whole page
    page.wait_for_selector("#files input[type=file]:enabled", state="attached", timeout=60_000)
    page.frame_locator("#viewer").locator("#notice", has_text="Drop").wait_for(timeout=60_000)
    (frame,) = [frame for frame in page.frames if "/viewer/" in frame.url]
    return page, frame


def measure(browser: Browser, address: str, picture: Path) -> tuple[str, list[float]]:
    """Return what the page draws with, and the medians of drop to picture, redraw and findings."""
    drops, redraws, more = [], [], []
    for _ in range(DROPS):
        page, frame = arrive(browser, address)
        start = time.perf_counter()
        page.set_input_files("#files input[type=file]", picture)
        frame.wait_for_selector("html[data-study]", state="attached")
        drops.append(time.perf_counter() - start)
        told = page.locator("#reading .facts dd").last
        told.wait_for(timeout=60_000)
        whole = time.perf_counter() - start
        more.append(whole - float(told.inner_text().removesuffix(" s")))
        kind = frame.evaluate("() => viewer.renderer.name")
        redraws.append(statistics.median(frame.evaluate(REDRAWS, DRAGS)))
        page.context.close()
    return kind, [statistics.median(figures) for figures in (drops, redraws, more)]


def crowd(browser: Browser, address: str, process: psutil.Process) -> tuple[int, float]:
    """Return how many of the sessions saw their own picture alone, and MB of memory for each."""
    warm, _ = arrive(browser, address)
    warm.context.close()
    before = process.memory_info().rss
    with tempfile.TemporaryDirectory() as folder:
        pages = []
        for number in range(SESSIONS):
            page, frame = arrive(browser, address)
            path = Path(folder) / f"session {number}.png"
            grey = Image.radial_gradient("L").resize((200 + number, 220))
            grey.save(path)
            page.set_input_files("#files input[type=file]", path)
            pages.append((page, frame))
        right = 0
        for number, (page, frame) in enumerate(pages):
            frame.wait_for_selector("html[data-study]", state="attached", timeout=60_000)
            page.locator("#reading .facts dd").last.wait_for(timeout=120_000)
            width = frame.evaluate("() => viewer.study.columns")
            text = page.locator("#left").inner_text()
            files = set(re.findall(r"session \d+\.png", text))
            right += width == 200 + number and files == {f"session {number}.png"}
        grown = process.memory_info().rss - before
    return right, grown / SESSIONS / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", type=Path, default=DATA / "dicom" / "cxr_RG1_J2KI.dcm")
    parser.add_argument("--chromium", default=which("chromium") or "chromium")
    parser.add_argument("--part", nargs="+", default=["picture", "sessions"])
    arguments = parser.parse_args()
    if not arguments.picture.is_file():
        raise SystemExit(f"{arguments.picture} is absent: give a radiograph with --picture")
    rows: list[dict[str, Any]] = []

    def tell(case: str, ours: float, goal: float) -> None:
        rows.append({"case": case, "ours": ours, "goal": goal})
        print(f"{case:48} {ours:>8}   goal {goal}", flush=True)

    with served() as (address, started, process), sync_playwright() as running:
        tell("command to page, seconds", round(started, 2), 20)
        browser = running.chromium.launch(executable_path=arguments.chromium, args=FLAGS)
        name = browser.version
        if "picture" in arguments.part:
            page, _ = arrive(browser, address)  # the first reading waits for the bundle
            page.set_input_files("#files input[type=file]", arguments.picture)
            page.locator("#reading .facts dd").last.wait_for(timeout=120_000)
            page.context.close()
            kind, (drop, redraw, more) = measure(browser, address, arguments.picture)
            tell(f"redraw in a drag, {kind}, ms", round(redraw, 1), 50)
            tell(f"drop to picture, {kind}, seconds", round(drop, 2), 1.5)
            tell(f"drop to findings less the engine, {kind}, seconds", round(more, 2), 1)
        if "sessions" in arguments.part:
            right, megabytes = crowd(browser, address, process)
            tell(f"sessions of {SESSIONS} that saw their own alone", right, SESSIONS)
            tell("server memory a session, MB", round(megabytes, 1), 20)
        browser.close()
    kept = json.loads(RESULTS.read_text())["rows"] if RESULTS.is_file() else []
    cases = [row["case"] for row in rows]
    rows += [row for row in kept if row["case"] not in cases]
    for row in rows:
        print(f"{row['case']:48} {row['ours']:>8}   goal {row['goal']}")
    document = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {"chromium": name, "gradio": version("gradio"), "pydicom": version("pydicom")},
        "date": datetime.now(UTC).date().isoformat(),
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
