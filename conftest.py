"""Fixtures shared by every package's tests."""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import hypothesis
import pytest
import torch

# a busy machine pauses for longer than any deadline; speed has its place in benchmarks/
hypothesis.settings.register_profile("medqua", deadline=None)
hypothesis.settings.load_profile("medqua")

if not torch.cuda.is_available():  # before Triton is imported: its kernels then run on the CPU
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of genuine radiographs and hostile files (`MEDQUA_TEST_DATA`)."""
    root = Path(os.environ.get("MEDQUA_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no real files at {root}: set MEDQUA_TEST_DATA")
    return root


@pytest.fixture(scope="session")
def missing_peer() -> Callable[[str], NoReturn]:
    """What to call where a program that tests talk to is not installed (Orthanc, Chromium...).

    The test is skipped, and fails with `MEDQUA_TEST_PEERS=required`, which `.ci/run` sets.
    """

    def missing(reason: str) -> NoReturn:
        if os.environ.get("MEDQUA_TEST_PEERS") == "required":
            pytest.fail(reason)
        pytest.skip(reason)

    return missing


class Orthanc:
    """A running Orthanc."""

    def __init__(self, http: int, dicom: int) -> None:
        from medqua.serve.pacs.dicomweb import DicomWebArchive
        from medqua.serve.pacs.dimse import DimseArchive

        self.http, self.dicom = http, dicom
        self.web = DicomWebArchive(f"http://127.0.0.1:{http}/dicom-web")
        self.dimse = DimseArchive("127.0.0.1", dicom, "ORTHANC")

    def ask(self, path: str) -> object:
        """Return what a path of its own interface answers."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=5) as answer:
            return json.load(answer)

    def send(self, method: str, path: str, body: object) -> bytes:
        """Send a JSON body."""
        address = f"http://127.0.0.1:{self.http}{path}"
        content = json.dumps(body).encode()
        request = urllib.request.Request(address, content, method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            told: bytes = answer.read()
        return told

    def modalities(self, study: str) -> list[str]:
        """Return the modalities of a study's series."""
        found = self.ask(f"/dicom-web/studies/{study}/series")
        assert isinstance(found, list)
        return sorted(series["00080060"]["Value"][0] for series in found)


@pytest.fixture(scope="session")
def start_orthanc(
    tmp_path_factory: pytest.TempPathFactory, missing_peer: Callable[[str], NoReturn]
) -> Callable[..., AbstractContextManager[Orthanc]]:
    """Run archives that listen for DICOMweb and DIMSE on this machine alone; keywords configure."""

    @contextmanager
    def start(**more: Any) -> Iterator[Orthanc]:
        program = shutil.which("Orthanc")
        plugins = Path("/usr/share/orthanc/plugins")
        if program is None or not list(plugins.glob("*DicomWeb*")):
            missing_peer("Orthanc is not installed: apt-get install orthanc orthanc-dicomweb")
        folder = tmp_path_factory.mktemp("orthanc")
        ports = []
        for _ in range(2):
            with socket.create_server(("127.0.0.1", 0)) as free:
                ports.append(free.getsockname()[1])
        settings = {
            "Name": "test", "StorageDirectory": str(folder), "IndexDirectory": str(folder),
            "Plugins": [str(plugin) for plugin in plugins.glob("*DicomWeb*")],
            "HttpPort": ports[0], "DicomPort": ports[1], "DicomAet": "ORTHANC",
            "RemoteAccessAllowed": False, "AuthenticationEnabled": False,
            "DicomAlwaysAllowStore": True, "DicomAlwaysAllowEcho": True, **more,
        }  # fmt: skip
        (folder / "orthanc.json").write_text(json.dumps(settings))
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen([program, folder / "orthanc.json"], stdout=log, stderr=log)
        try:
            server = Orthanc(*ports)
            for _ in range(150):
                try:
                    server.ask("/dicom-web/studies?limit=1")
                    break
                except OSError:
                    assert process.poll() is None, (folder / "log").read_text()[-2000:]
                    time.sleep(0.2)
            yield server
        finally:
            process.terminate()
            process.wait(20)
            shutil.rmtree(folder)

    return start


@pytest.fixture(scope="session")
def orthanc(start_orthanc: Callable[..., AbstractContextManager[Orthanc]]) -> Iterator[Orthanc]:
    """An archive of all tests of a process."""
    with start_orthanc() as server:
        yield server
