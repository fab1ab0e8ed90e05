"""The page before Gradio's is built: files are opened, and what follows is told."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from medqua.ui import app as application
from medqua.ui.app import Settings, create_app
from medqua.ui.findings import BundleReader
from medqua.ui.opening import FAILED
from medqua.ui.worklist import SAMPLES

HOST = "http://127.0.0.1"


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Gradio's page is as simple as can be, and built when the test says so."""
    opened = threading.Event()

    def build(*_: object, **__: object) -> Starlette:
        opened.wait(60)
        return Starlette(routes=[Route("/", lambda _: PlainTextResponse("whole"))])

    monkeypatch.setattr(application, "_build", build)
    yield opened
    opened.set()


def until(client: TestClient, path: str, key: str) -> dict[str, object]:
    """Ask until what is told under a key is true."""
    for _ in range(600):
        told: dict[str, object] = client.get(path).json()
        if told[key]:
            return told
        threading.Event().wait(0.05)
    raise AssertionError(told)


def test_files_are_opened_before_the_page_is_whole_and_stay(gate: threading.Event, tmp_path: Path):
    app = create_app(Settings(audit=tmp_path / "audit.jsonl"))
    with TestClient(app, HOST) as client:
        first = client.get("/")
        assert first.status_code == 200
        assert "Findings, header, circuits\nand help are being loaded" in first.text
        assert client.get("/state/page").json() == {"whole": False, "problem": ""}
        sample = (SAMPLES / "phantom-pa-effusion.dcm").read_bytes()
        told = client.post("/worklist/files?name=a.dcm", content=sample).json()
        (name,) = told["opened"]
        assert client.get(f"/viewer/studies/{name}/pixels").status_code == 200
        assert client.get("/config").status_code == 503
        gate.set()
        until(client, "/state/page", "whole")
        assert client.get("/").text == "whole"
        assert [study["name"] for study in client.get("/worklist").json()["studies"]] == [name]


def test_the_samples_are_opened_by_the_first_page_once(gate: threading.Event, tmp_path: Path):
    app = create_app(Settings(samples=True, audit=tmp_path / "audit.jsonl"))
    with TestClient(app, HOST) as client:
        for _ in range(2):
            client.get("/")
        assert len(until(client, "/worklist", "studies")["studies"]) == 3  # type: ignore[arg-type]


def test_the_light_page_and_its_state_are_for_a_session(gate: threading.Event, tmp_path: Path):
    app = create_app(Settings(audit=tmp_path / "audit.jsonl"))
    with TestClient(app, HOST) as client:
        assert client.get("/state/page").status_code == 403
        assert client.head("/").status_code == 403  # as before: only to open the page begins one
        client.get("/")
        assert client.head("/").status_code == 200


def test_a_page_that_cannot_be_built_is_told_and_files_are_opened(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    def build(*_: object, **__: object) -> Starlette:
        raise ImportError("libsomething.so is missing")

    monkeypatch.setattr(application, "_build", build)
    with TestClient(create_app(Settings(audit=tmp_path / "audit.jsonl")), HOST) as client:
        client.get("/")
        assert until(client, "/state/page", "problem")["problem"] == FAILED
        sample = (SAMPLES / "phantom-pa-effusion.dcm").read_bytes()
        assert client.post("/worklist/files?name=a.dcm", content=sample).json()["opened"]
    assert "libsomething.so is missing" in caplog.text


def test_a_model_that_cannot_be_loaded_is_told_in_the_page_and_on_the_console(
    gate: threading.Event, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "bundle").mkdir()
    reader = BundleReader(tmp_path / "bundle")
    app = create_app(Settings(audit=tmp_path / "audit.jsonl"), reader)
    with TestClient(app, HOST) as client:
        client.get("/")
        assert client.get("/state").json()["engine"] == "The model is being loaded."
        gate.set()
        reader.wait()
        state = client.get("/state").json()["engine"]
        assert state.startswith("The model could not be loaded: no bundle.json in")
    assert "The model could not be loaded: no bundle.json in" in caplog.text


def test_a_defect_while_a_model_is_loaded_ends_in_a_sentence_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    def broken(_: BundleReader) -> None:
        raise ImportError("libtorch.so is missing")

    monkeypatch.setattr(BundleReader, "_open", broken)
    reader = BundleReader(tmp_path)
    reader.start()
    reader.wait()
    assert reader.state.startswith("The model could not be loaded: ImportError; the server's")
    assert reader.read("a.dcm", b"").refusal == reader.state
    assert "libtorch.so is missing" in caplog.text


def test_nobody_waits_for_a_model_that_was_never_begun(tmp_path: Path):
    reader = BundleReader(tmp_path)
    reader.stop()
    assert reader.read("a.dcm", b"").refusal == "The viewer is being ended."
    reader.start()
    reader.close()
    assert reader.state
