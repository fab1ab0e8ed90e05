"""The light page in a browser: it takes files, and gives way, but not under anybody's hand."""

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import uvicorn
from playwright.sync_api import BrowserContext, Page
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route

from medqua.ui import app as application
from medqua.ui.app import Settings, create_app
from medqua.ui.worklist import SAMPLES

WHOLE = '<link rel="icon" href="data:,"><p id="whole">whole</p>'


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Gradio's page is as simple as can be, and built when the test says so."""
    opened = threading.Event()

    def build(*_: object, **__: object) -> Starlette:
        opened.wait(600)
        return Starlette(routes=[Route("/", lambda _: HTMLResponse(WHOLE))])

    monkeypatch.setattr(application, "_build", build)
    yield opened
    opened.set()


@pytest.fixture
def server(gate: threading.Event, tmp_path: Path) -> Iterator[SimpleNamespace]:
    """The server, in a thread."""
    app = create_app(Settings(samples=True, audit=tmp_path / "audit.jsonl"))
    config = uvicorn.Config(app, port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        threading.Event().wait(0.02)
    (listening,) = server.servers[0].sockets
    yield SimpleNamespace(address=f"http://127.0.0.1:{listening.getsockname()[1]}/")
    gate.set()
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive()


@pytest.fixture
def page(context: BrowserContext, server: SimpleNamespace) -> Page:
    """The light page, with the samples."""
    page = context.new_page()
    page.goto(server.address)
    page.locator("#studies label").nth(2).wait_for()
    return page


def test_it_shows_pictures_and_gives_way_with_the_same_study_in_view(
    page: Page, gate: threading.Event
):
    page.locator("#rest", has_text="are being loaded. Files can be opened meanwhile.").wait_for()
    page.frame_locator("#viewer").locator("html[data-study]").wait_for(state="attached")
    name = page.locator("#opened input").input_value()
    assert name
    gate.set()
    page.locator("#whole").wait_for()
    assert page.evaluate("location.hash") == f"#{name}"


def test_it_takes_files_and_does_not_change_under_the_hand(page: Page, gate: threading.Event):
    page.set_input_files("#files input[type=file]", SAMPLES / "phantom-lateral.dcm")
    page.locator("#studies label").nth(3).wait_for()
    gate.set()
    button = page.get_by_role("button", name="Show findings, header, circuits and help")
    button.wait_for()
    assert page.locator("#studies label").count() == 4
    button.click()
    page.locator("#whole").wait_for()


def test_a_key_in_the_picture_counts_as_a_hand(page: Page, gate: threading.Event):
    page.frame_locator("#viewer").locator("html[data-study]").wait_for(state="attached")
    page.frame_locator("#viewer").locator("body").press("i")
    gate.set()
    page.get_by_role("button", name="Show findings").wait_for()
    assert page.locator("#whole").count() == 0
