"""A browser, the real server in a process of its own, and what pages must not do."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import pytest
from axe_core_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Frame, Page, Playwright, sync_playwright

FLAGS = [
    "--no-sandbox",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-color-profile=srgb",
    "--enable-unsafe-swiftshader",  # WebGL2 where there is no graphics card
]


@dataclass
class Watch:
    """What a page did that it must not do."""

    address: str
    external: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    _left: bool = False

    def on(self, page: Page) -> None:
        page.on("request", lambda request: self._request(request.url))
        page.on("console", lambda text: text.type == "error" and self._error(text.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _error(self, text: str) -> None:
        if text.startswith("AbortError: signal is aborted without reason"):
            self._left = True  # Gradio's own event stream, where a page is left or loaded again
        elif not (self._left and "Connection errored out" in text):
            self.errors.append(text)

    def _request(self, url: str) -> None:
        if not url.startswith((self.address, "data:", "blob:")):
            self.external.append(url)


@pytest.fixture(scope="session")
def chromium(missing_peer: Callable[[str], NoReturn]) -> str:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        missing_peer("no Chromium on PATH: the browser tests need it (Debian's `chromium`)")
    return found


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    """Ended with the module: while it lives, no other event loop can run in the process."""
    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="module")
def browser(playwright: Playwright, chromium: str) -> Iterator[Browser]:
    browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
    yield browser
    browser.close()


@dataclass(frozen=True)
class Server:
    """The running server."""

    address: str
    audit: Path
    temporary: Path

    @property
    def root(self) -> Path:
        (root,) = self.temporary.glob("medqua-ui-*")
        return root


Serving = Callable[..., AbstractContextManager[Server]]
"""Options of the command -> the server, running in the context."""


OpenContext = Callable[[], BrowserContext]


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory, patience: float) -> Serving:
    """Start the server as a user does; nothing that was uploaded outlives it."""

    @contextmanager
    def running(*options: str | Path) -> Iterator[Server]:
        folder = tmp_path_factory.mktemp("server")
        audit, temporary = folder / "audit.jsonl", folder / "tmp"
        temporary.mkdir()
        command = [sys.executable, "-m", "medqua.ui", "--port", "0", "--audit", str(audit)]
        process = subprocess.Popen(
            [*command, *map(str, options)],
            stdout=subprocess.PIPE,
            env=os.environ | {"TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"},
            text=True,
        )
        assert process.stdout is not None
        try:
            found = re.search(r"http://\S+", process.stdout.readline())
            assert found is not None
            yield Server(found.group(0), audit, temporary)
        finally:
            process.terminate()
            process.wait(patience)
            process.stdout.close()
        assert not list(temporary.glob("medqua-ui-*")), "uploads outlive the server"

    return running


@pytest.fixture(scope="session")
def server(serving: Serving) -> Iterator[Server]:
    """The server without a model."""
    with serving("--pictures-only") as server:
        yield server


@pytest.fixture
def watch(server: Server) -> Iterator[Watch]:
    """Fails the test that made a request to elsewhere or an error in the console."""
    watch = Watch(server.address)
    yield watch
    assert watch.external == []
    assert watch.errors == []


@pytest.fixture
def open_context(browser: Browser, watch: Watch, patience: float) -> Iterator[OpenContext]:
    """Open browsers of their own: their own cookies, and so their own sessions."""
    opened = []

    def open_one() -> BrowserContext:
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        context.set_default_timeout(1000 * patience)
        context.on("page", watch.on)
        opened.append(context)
        return context

    yield open_one
    for context in opened:
        context.close()


@pytest.fixture
def context(open_context: OpenContext) -> BrowserContext:
    """A browser of its own."""
    return open_context()


@dataclass(frozen=True)
class App:
    """The application's page."""

    page: Page

    @property
    def viewer(self) -> Frame:
        """The viewer's frame."""
        (frame,) = [frame for frame in self.page.frames if "/viewer/" in frame.url]
        return frame

    def drop(self, *paths: Path) -> None:
        """Give files to the page, and wait until all of them are dealt with."""
        self.page.set_input_files("#files input[type=file]", list(paths))
        self.page.locator("#status", has_text=re.compile("opened\\.")).wait_for()

    def shown(self) -> str:
        """Wait for a picture and return its study's name."""
        self.viewer.wait_for_selector("html[data-study]", state="attached")
        name = self.viewer.locator("html").get_attribute("data-study")
        assert name is not None
        return name


def open_app(context: BrowserContext, server: Server) -> App:
    """Open the application's page and wait until it is whole and takes files."""
    page = context.new_page()
    page.goto(server.address)
    page.wait_for_selector("#reading", state="attached")  # Gradio's page is there
    page.wait_for_selector("#files input[type=file]:enabled", state="attached")
    page.frame_locator("#viewer").locator("#notice", has_text="Drop").wait_for()
    return App(page)


@pytest.fixture
def app(context: BrowserContext, server: Server) -> App:
    """The application's page, ready for files."""
    return open_app(context, server)


@pytest.fixture
def another_app(open_context: OpenContext, server: Server) -> App:
    """The page of somebody else."""
    return open_app(open_context(), server)


@pytest.fixture(scope="session")
def serious() -> Callable[[Page], list[tuple[str, list[str]]]]:
    """Return axe's serious and critical findings on a page at rest, with the parts they are of."""

    def find(page: Page) -> list[tuple[str, list[str]]]:
        page.wait_for_timeout(100)
        page.wait_for_function(  # what is on its way to another colour would be judged amid it
            "() => document.getAnimations().every((one) => one.playState !== 'running')"
        )
        return [
            (violation["id"], [str(node["target"]) for node in violation["nodes"]][:5])
            for violation in Axe().run(page)["violations"]
            if violation["impact"] in ("serious", "critical")
        ]

    return find
