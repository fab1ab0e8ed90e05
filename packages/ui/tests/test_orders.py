"""Answers that overtake each other: all that is shown belongs to one study, in any order.

Every answer about studies is held in the browser and let through in a random order, while studies
are opened, closed and dropped, pages are reloaded and gone back, two tabs work at once, and the
session ends. The pictures are told apart by their sizes, which file, header, findings and picture
all bear.
"""

import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import BrowserContext, Error, Frame, Page, Route
from pydicom import dcmread

SAMPLE = Path(__file__).parents[1] / "src/medqua/ui/samples/phantom-pa-effusion.dcm"
HELD = re.compile(r"/(worklist|studies|viewer/studies|state)(/|\?|$)")
PATIENTS = 5
DOINGS = ["choose"] * 6 + ["drop"] * 5 + ["close", "reload", "back", "cancel", "end"]
"""What users do, as often as it stands here; *end*: the session is over, as by age or a restart."""
SETTLED = float(os.environ.get("MEDQUA_TEST_SETTLED", "120"))
"""Seconds within which all is at rest; a mix-up that stays so long is one."""

SEEN = """() => {
  const text = (id) => document.getElementById(id)?.innerText ?? "";
  const checked = document.querySelector("#studies input:checked");
  const frame = document.getElementById("viewer").contentWindow;
  const study = frame.viewer?.study;
  return {
    address: location.hash.slice(1),
    marked: checked?.value ?? "",
    markedFile: checked?.closest("label").innerText ?? "",
    picture: study?.name ?? "",
    columns: study?.columns ?? 0,
    corner: frame.document.getElementById("about")?.textContent ?? "",
    overlay: study ? frame.viewer.overlay.data?.study ?? "" : "",
    reading: document.getElementById("reading").dataset.study,
    tags: document.getElementById("tags")?.dataset.study ?? null, // made with its tab
    columnsInHeader: /Columns\\s+(\\d+)/.exec(document.getElementById("tags")?.textContent
      .replace(/([a-z])(\\d)/g, "$1 $2") ?? "")?.[1] ?? "",
    notice: frame.document.getElementById("notice")?.textContent ?? "",
  };
}"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Small radiographs of different patients, each as wide as no other."""
    folder, paths = tmp_path_factory.mktemp("patients"), []
    for number in range(PATIENTS):
        ds = dcmread(SAMPLE)
        side = 100 + 10 * number
        cells = np.random.default_rng(number).integers(0, 4000, (side, side), np.uint16)
        ds.set_pixel_data(cells, "MONOCHROME2", 12)
        ds.PatientID, ds.PatientName = f"P{number}", f"Patient^{number}"
        path = folder / f"patient{number}-{side}.dcm"
        ds.save_as(path)
        paths.append(path)
    return paths


@dataclass
class Lane:
    """Holds the answers to the pages of a browser."""

    context: BrowserContext
    dice: random.Random
    holding: bool = False
    held: list[tuple[Route, Any]] = field(default_factory=list)

    def start(self) -> None:
        self.context.route(HELD, self._take)

    def _take(self, route: Route) -> None:
        if not self.holding:
            return route.continue_()
        if "/worklist/files" in route.request.url:  # of these the browser does not tell the body
            self.held.append((route, None))
            return None
        try:
            answer = route.fetch()
        except Exception:  # the page has gone, or gave the request up
            with suppress(Exception):
                route.abort()
            return None
        self.held.append((route, answer))
        return None

    def let_one(self) -> None:
        """Let an answer through, whichever."""
        if self.held:
            route, answer = self.held.pop(self.dice.randrange(len(self.held)))
            try:
                if answer is None:
                    route.continue_()
                else:
                    route.fulfill(response=answer)
            except Exception:  # the page has gone, or gave the request up
                return

    def let_all(self) -> None:
        self.holding = False
        while self.held:
            self.let_one()


def viewer_of(page: Page) -> Frame:
    return next(frame for frame in page.frames if "/viewer/" in frame.url)


def columns_of(text: str) -> int:
    found = re.search(r"-(\d+)\.dcm", text)
    return int(found[1]) if found else 0


def mixed(seen: dict[str, Any] | None, wanted: int | None) -> str:
    """Say what does not belong together on a page; empty if all does."""
    if seen is None:
        return "the page is not there"
    name = seen["marked"]
    if seen["picture"] and seen["picture"] != name:
        return f"the picture is of {seen['picture']}, the mark on {name}"
    if seen["picture"] and seen["columns"] != columns_of(seen["markedFile"]):
        return f"a picture of {seen['columns']} columns, marked {seen['markedFile']}"
    for part in ("reading", "tags", "address"):
        if seen[part] not in (name, None):
            return f"{part} is of {seen[part]!r}, the mark on {name!r}"
    if seen["overlay"] and seen["overlay"] != name:
        return "the overlay is of another study"
    if seen["columnsInHeader"] and int(seen["columnsInHeader"]) != columns_of(seen["markedFile"]):
        return f"a header of {seen['columnsInHeader']} columns, marked {seen['markedFile']}"
    if wanted is not None and columns_of(seen["markedFile"]) not in (0, wanted):
        return f"{seen['markedFile']} is in view, and the user wanted {wanted} columns"
    return ""


def whole(page: Page) -> None:
    """Wait until a page takes files, its header's tab made."""
    page.wait_for_selector("#reading", state="attached")
    page.wait_for_selector("#files input[type=file]:enabled", state="attached")
    page.get_by_role("tab", name="Header").click()
    page.locator("#tags").wait_for()


def look(page: Page) -> dict[str, Any] | None:
    """Return what a page shows; None while it is loaded."""
    try:
        told: dict[str, Any] = page.evaluate(SEEN)
    except Error:
        return None
    return told


class Order:
    """One order of doings and answers."""

    def __init__(self, lane: Lane, pages: list[Page], files: list[Path], dice: random.Random):
        self.lane, self.pages, self.files, self.dice = lane, pages, files, dice
        self.wanted: dict[int, int | None] = {}
        self.done: list[str] = []

    def act(self) -> None:
        """Do one thing that a user does."""
        at = self.dice.randrange(len(self.pages))
        page = self.pages[at]
        doing = self.dice.choice(DOINGS)
        self.done.append(f"{doing} in tab {at}")
        radios = page.locator("#studies input[type=radio]")
        if doing == "drop":
            file = self.dice.choice(self.files)
            page.set_input_files("#files input[type=file]", [file])
            self.wanted[at] = columns_of(file.name)
        elif doing == "choose" and (count := radios.count()):
            page.evaluate(
                "(at) => { const all = document.querySelectorAll('#studies input[type=radio]');"
                " const one = all[at % all.length];"
                " one.checked = true; one.dispatchEvent(new Event('change')); }",
                self.dice.randrange(count),
            )
            seen = look(page)
            self.wanted[at] = None if seen is None else columns_of(seen["markedFile"])
        elif doing == "close" and radios.count():
            page.evaluate(
                "(at) => { const all = document.querySelectorAll('[data-key^=close-]');"
                " all[at % all.length].click(); }",
                self.dice.randrange(100),
            )
        elif doing == "reload":
            self.lane.let_all()
            page.reload()
            whole(page)
            self.lane.holding = True
            self.wanted[at] = None
        elif doing == "cancel":
            page.evaluate("() => document.getElementById('cancel').click()")
            self.wanted[at] = None
        elif doing == "end":
            self.lane.context.clear_cookies()
            self.wanted = dict.fromkeys(self.wanted)
        elif doing == "back":
            page.evaluate("() => navigation.currentEntry.index > 1 && history.back()")
            self.wanted[at] = None

    def settle(self) -> str:
        """Let all answers through, wait until nothing changes, and look for a mix-up."""
        self.lane.let_all()
        problem, until = "", time.monotonic() + SETTLED
        quiet = 0
        while time.monotonic() < until and quiet < 2:
            for page in self.pages:
                page.wait_for_timeout(60)
            problems = [
                mixed(look(page), self.wanted.get(at)) for at, page in enumerate(self.pages)
            ]
            problem = next(filter(None, problems), "")
            quiet = 0 if problem else quiet + 1
        return problem and f"{problem}, after {', '.join(self.done)}"

    def run(self) -> str:
        self.lane.holding = True
        for _ in range(self.dice.randint(2, 5)):
            with suppress(Error):  # a page that is on its way
                self.act()
            for _ in range(self.dice.randint(0, 4)):
                self.pages[0].wait_for_timeout(self.dice.choice([0, 5, 20]))
                self.lane.let_one()
        return self.settle()


def play(context: BrowserContext, address: str, files: list[Path], orders: int) -> list[str]:
    """Try so many orders, and return the mix-ups."""
    seed = int(os.environ.get("MEDQUA_TEST_SEED", "20261130"))
    lane = Lane(context, random.Random(seed))
    pages = [context.new_page(), context.new_page()]
    for page in pages:
        page.goto(address)
        whole(page)
    pages[0].set_input_files("#files input[type=file]", files)
    pages[0].locator("#studies label").nth(len(files) - 1).wait_for()
    lane.start()
    found = []
    for number in range(orders):
        order = Order(lane, pages, files, random.Random(seed + number))
        if problem := order.run():
            found.append(f"order {number}: {problem}")
            print(found[-1], flush=True)
        if number % 20 == 19:  # keep the list short
            for page in pages:
                whole(page)
            pages[0].get_by_role("button", name="Close all studies").click()
            pages[0].locator("#studies label").first.wait_for(state="detached")
            pages[0].set_input_files("#files input[type=file]", files)
            pages[0].locator("#studies label").nth(len(files) - 1).wait_for()
            pages[1].locator("#studies label").nth(len(files) - 1).wait_for()
    return found


@pytest.fixture
def quiet_context(context: BrowserContext, watch: Any) -> Iterator[BrowserContext]:
    """A browser in which requests may be given up."""
    yield context
    watch.errors[:] = [
        text
        for text in watch.errors
        if not re.search("Failed to (load|fetch)|no session|Connection errored out|404|403", text)
    ]


def test_a_late_answer_does_not_change_the_study(
    app: Any, files: list[Path], eventually: Callable[[Callable[[], object]], object]
):
    """The fault that was found: an old list held back, a file dropped, the old list let through."""
    app.drop(files[0], files[1])
    app.shown()
    app.page.locator("#studies label").nth(1).wait_for()
    held: list[Any] = []

    def hold(route: Route) -> None:
        if held:
            route.continue_()
        else:
            held.append(route)
            held.append(route.fetch())

    app.page.route("**/worklist", hold)
    eventually(lambda: app.page.wait_for_timeout(100) or len(held) == 2)
    late, answer = held
    app.drop(files[4])
    app.viewer.wait_for_function("() => viewer.study?.columns === 140")
    late.fulfill(response=answer)
    for _ in range(10):
        app.page.wait_for_timeout(100)
        assert mixed(look(app.page), 140) == ""
    assert app.viewer.evaluate("() => viewer.study.columns") == 140


def test_a_dropped_file_is_opened_whichever_answer_comes_first(
    app: Any, files: list[Path], eventually: Callable[[Callable[[], object]], object]
):
    """Of two answers the older one comes last: its study is opened by the next list."""
    app.drop(files[0], files[1])
    app.shown()
    app.page.locator("#studies label").nth(1).wait_for()
    uploads: list[dict[str, Any]] = []
    lists: list[Route] = []
    chromium = app.page.context.new_cdp_session(app.page)
    chromium.on("Fetch.requestPaused", lambda paused: uploads.append(paused))
    pattern = {"urlPattern": "*/worklist/files*", "requestStage": "Response"}
    chromium.send("Fetch.enable", {"patterns": [pattern]})
    app.page.set_input_files("#files input[type=file]", [files[4]])
    eventually(lambda: app.page.wait_for_timeout(50) or uploads)
    app.page.route("**/worklist", lambda route: lists.append(route))
    other = app.page.locator("#studies .entry").filter(has_not=app.page.locator("input:checked"))
    with app.page.expect_response(lambda answer: answer.request.method == "DELETE"):
        other.get_by_role("button", name="Close").click()
    (late,) = uploads
    with app.page.expect_response("**/worklist/files*"):
        chromium.send("Fetch.continueRequest", {"requestId": late["requestId"]})
    eventually(lambda: app.page.wait_for_timeout(50) or lists)
    app.page.unroute("**/worklist")
    for held in lists:
        with suppress(Error):  # a newer poll has given it up
            held.continue_()
    app.viewer.wait_for_function("() => viewer.study?.columns === 140")
    assert mixed(look(app.page), 140) == ""


def test_a_session_that_ended_is_told(
    quiet_context: BrowserContext, server: Any, files: list[Path]
):
    page = quiet_context.new_page()
    page.goto(server.address)
    whole(page)
    page.set_input_files("#files input[type=file]", files[:2])
    page.locator("#studies label").nth(1).wait_for()
    quiet_context.clear_cookies()
    page.locator("#status", has_text="The studies that were open here are gone").wait_for()
    assert page.locator("#studies label").count() == 0
    page.reload()
    whole(page)
    assert page.locator("#status").inner_text() == ""


@pytest.mark.parametrize("orders", [12, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_order_of_answers_mixes_studies_up(
    quiet_context: BrowserContext, server: Any, files: list[Path], orders: int
):
    assert play(quiet_context, server.address, files, orders) == []
