"""How fast the viewer is, in headless Chromium, on a radiograph of 1955 x 1841 pixels (7 MB).

    hatch run bench:viewer
    hatch run bench:viewer --picture FILE.dcm

Redraw: 50 steps of a window drag; each is timed from the pointer's event until a pixel could be
read back, with the picture fitted to a page of 1280 x 800. Drop to picture: from the file given to
the page until its picture is drawn, everything between (upload, decoding, transfer) included.
Start: from the command until the page answers. No peer is timed here.
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
from urllib.error import URLError
from urllib.request import urlopen

from playwright.sync_api import Browser, sync_playwright

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
DRAGS, DROPS = 50, 5
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
def served() -> Iterator[tuple[str, float]]:
    """Start the server; give its address and the seconds it took."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "medqua.ui", "--port", "0", "--samples"]
        start = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--audit", f"{folder}/audit.jsonl"],
            stdout=subprocess.PIPE,
            env=os.environ | {"TMPDIR": folder},
            text=True,
        )
        found = re.search(r"http://\S+", process.stdout.readline() if process.stdout else "")
        if found is None:
            raise SystemExit("the server did not start")
        while True:
            try:
                urlopen(found.group(0)).close()
                break
            except URLError:
                time.sleep(0.05)
        yield found.group(0), time.perf_counter() - start
        process.terminate()
        process.wait()


def measure(browser: Browser, address: str, picture: Path, kind: str) -> tuple[float, float]:
    """Return the medians of drop to picture in seconds and of redraw in milliseconds."""
    drops, redraws = [], []
    for _ in range(DROPS):
        page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
        page.goto(address)
        page.wait_for_selector("#studies label", timeout=60_000)  # the samples are open
        (frame,) = [frame for frame in page.frames if "/viewer/" in frame.url]
        if kind == "2D":
            frame.evaluate("() => viewer.change2d()")
        frame.wait_for_selector("html[data-study]", state="attached")
        page.locator("#status", has_text="opened.").wait_for()
        before = frame.locator("html").get_attribute("data-study")
        start = time.perf_counter()
        page.set_input_files("#files input[type=file]", picture)
        frame.wait_for_selector(f"html:not([data-study='{before}'])", state="attached")
        drops.append(time.perf_counter() - start)
        if frame.evaluate("() => viewer.renderer.name") != kind:
            raise SystemExit(f"this browser does not draw with {kind}")
        redraws.append(statistics.median(frame.evaluate(REDRAWS, DRAGS)))
        page.context.close()
    return statistics.median(drops), statistics.median(redraws)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", type=Path, default=DATA / "dicom" / "cxr_RG1_J2KI.dcm")
    parser.add_argument("--chromium", default=which("chromium") or "chromium")
    arguments = parser.parse_args()
    if not arguments.picture.is_file():
        raise SystemExit(f"{arguments.picture} is absent: give a radiograph with --picture")
    rows = []
    with served() as (address, started), sync_playwright() as running:
        rows.append({"case": "command to page, seconds", "ours": round(started, 2), "goal": 20})
        browser = running.chromium.launch(executable_path=arguments.chromium, args=FLAGS)
        for kind in ("WebGL2", "2D"):
            drop, redraw = measure(browser, address, arguments.picture, kind)
            rows += [
                {"case": f"redraw in a drag, {kind}, ms", "ours": round(redraw, 1), "goal": 50},
                {"case": f"drop to picture, {kind}, seconds", "ours": round(drop, 2), "goal": 1.5},
            ]
        name = browser.version
        browser.close()
    for row in rows:
        print(f"{row['case']:40} {row['ours']:>8}   goal {row['goal']}")
    document = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {"chromium": name, "gradio": version("gradio"), "pydicom": version("pydicom")},
        "date": datetime.now(UTC).date().isoformat(),
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
