"""Images in, reports out: over real sockets, with Orthanc and with archives that misbehave."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE

from medqua.core.errors import ConfigError
from medqua.core.findings import CHEXPERT_NAMES, Calibration, name_findings
from medqua.serve.objects.identity import derive_uid
from medqua.serve.objects.reference import read_reference
from medqua.serve.pacs.delivery import Courier, deliver
from medqua.serve.pacs.dicomweb import DicomWebArchive
from medqua.serve.pacs.dimse import DISCARDED, SUCCESS, DimseArchive, StorePort, StorePortOptions
from medqua.serve.pacs.errors import (
    PacsError,
    PacsGarbledError,
    PacsRejectedError,
    PacsTimeoutError,
    PacsUnreachableError,
)
from medqua.serve.pacs.spool import Spool
from medqua.serve.report.options import ReportOptions
from medqua.serve.report.sr import build_report, to_bytes

# pynetdicom leaves the socket of a refused connection to the garbage collector
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.usefixtures("refused_connections"),
]

CR = "1.2.840.10008.5.1.4.1.1.1"
NAME = "Fictitious^Ada"


def image(uid: str = "1.2.3.1", pad: int = 0) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CR
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3", "1.2.3.2"
    ds.PatientName, ds.PatientID, ds.Modality = NAME, "X1", "CR"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows = ds.Columns = ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    ds.PixelData = bytes(64 + pad)
    return ds


def report_of(source: bytes) -> bytes:
    findings = name_findings(
        np.zeros((1, 14), np.float32), CHEXPERT_NAMES, Calibration.identity(14)
    )[0]
    options = ReportOptions({"bundle": "ab" * 32, "profile": "mimic-cxr-jpg"}, content="ef" * 32)
    when = datetime(2026, 1, 2)
    return to_bytes(build_report(findings, read_reference(source), options, when=when))


REPORT = report_of(to_bytes(image()))


def send(port: int, ds: Dataset, calling: str = "PACS", called: str = "MEDQUA") -> int | None:
    """Status of a C-STORE by pynetdicom; None without an association or an answer."""
    ae = AE(ae_title=calling)
    ae.add_requested_context(str(ds.SOPClassUID), ExplicitVRLittleEndian)
    link = ae.associate("127.0.0.1", port, ae_title=called)
    if not link.is_established:
        return None
    try:
        status = link.send_c_store(ds)
        return int(status.Status) if status else None
    finally:
        if link.is_established:
            link.release()


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


@pytest.fixture
def door(spool: Spool, patience: float) -> Iterator[StorePort]:
    options = StorePortOptions(("PACS",), port=0, object_bytes=1 << 20, idle_seconds=patience)
    port = StorePort(spool, options)
    yield port
    port.close()


def test_a_received_image_is_on_disk_when_success_is_answered(
    door: StorePort, spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert send(door.port, image()) == SUCCESS
    [name] = spool.waiting()
    assert dcmread(BytesIO(spool.read(name))).PatientName == NAME
    assert "Ada" not in caplog.text
    DimseArchive("127.0.0.1", door.port, "MEDQUA", "PACS", seconds=900.0).echo()


def test_only_known_peers_that_name_us_may_send(door: StorePort, spool: Spool) -> None:
    assert send(door.port, image(), calling="STRANGER") is None
    assert send(door.port, image(), called="OTHER") is None
    assert not list(spool.waiting())


def test_our_own_objects_never_come_in_again(door: StorePort, spool: Spool) -> None:
    assert send(door.port, dcmread(BytesIO(REPORT))) is None  # the class is not negotiated
    assert send(door.port, image(derive_uid("capture"))) == DISCARDED
    renamed = image()
    renamed.Manufacturer = "MedQua"
    assert send(door.port, renamed) == DISCARDED
    assert not list(spool.waiting())


def test_an_object_over_the_limit_is_cut_and_the_door_stays_open(
    door: StorePort, spool: Spool
) -> None:
    assert send(door.port, image(pad=8 << 20)) is None
    assert send(door.port, image()) == SUCCESS
    assert len(list(spool.waiting())) == 1


def test_garbage_and_broken_streams_leave_nothing_behind(door: StorePort, spool: Spool) -> None:
    short_request = b"\x01\x00\x00\x00\x00\x04\x00\x01"
    for hostile in (b"GET / HTTP/1.1\r\n\r\n", short_request, os.urandom(500)):
        with socket.create_connection(("127.0.0.1", door.port)) as link:
            link.sendall(hostile)
    ae = AE(ae_title="PACS")
    ae.add_requested_context(CR, ExplicitVRLittleEndian)
    link = ae.associate("127.0.0.1", door.port, ae_title="MEDQUA")
    assert link.is_established
    assert link.dul.socket is not None
    link.dul.socket.send(b"\x04\x00\x00\x00\x10\x00\x00\x00\x0f\xf0\x01\x02" + bytes(100))
    link.abort()
    assert send(door.port, image()) == SUCCESS
    assert len(list(spool.waiting())) == 1


def test_what_was_answered_with_success_survives_a_kill(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from medqua.serve.pacs.spool import Spool\n"
        "from medqua.serve.pacs.dimse import StorePort, StorePortOptions\n"
        "door = StorePort(Spool(Path(sys.argv[1])), StorePortOptions(('PACS',), port=0))\n"
        "print(door.port, flush=True); sys.stdin.read()"
    )
    stored = []
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        port = int(process.stdout.readline())
        killer = threading.Timer(0.5, os.kill, (process.pid, signal.SIGKILL))
        stored += [f"1.2.3.{k}" for k in range(2) if send(port, image(f"1.2.3.{k}")) == SUCCESS]
        killer.start()
        for number in range(2, 200):
            if send(port, image(f"1.2.3.{number}")) != SUCCESS:
                break
            stored.append(f"1.2.3.{number}")
    spool = Spool(tmp_path)
    kept = {str(dcmread(BytesIO(spool.read(name))).SOPInstanceUID) for name in spool.waiting()}
    assert len(stored) >= 2
    assert set(stored) <= kept


def test_a_door_for_nobody_is_refused() -> None:
    with pytest.raises(ConfigError, match="AE title"):
        StorePortOptions(())


Answer = Callable[[socket.socket], None]


@pytest.fixture
def archive() -> Iterator[Callable[[Answer], int]]:
    """Listen on a free port and answer every connection in a given way."""
    servers = []

    def listen(answer: Answer) -> int:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def serve() -> None:
            while True:
                try:
                    link, _ = server.accept()
                except OSError:
                    return
                with link:
                    answer(link)

        threading.Thread(target=serve, daemon=True).start()
        return int(server.getsockname()[1])

    yield listen
    for server in servers:
        server.close()


def http(status: str, body: bytes = b"", kind: str = "application/dicom+json") -> Answer:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"

    def answer(link: socket.socket) -> None:
        received = b""
        while b"--\r\n" not in received[-60:] and not received.endswith(b"--"):
            chunk = link.recv(1 << 16)
            if not chunk:
                break
            received += chunk
        link.sendall((head + "Connection: close\r\nLocation: /other\r\n\r\n").encode() + body)

    return answer


def silent(link: socket.socket) -> None:
    """Say nothing until the other has gone."""
    while link.recv(1 << 16):
        pass


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (http("503 Unavailable"), PacsRejectedError),
        (http("401 Unauthorized"), PacsRejectedError),
        (http("409 Conflict"), PacsRejectedError),
        (http("307 Temporary Redirect"), PacsRejectedError),
        (http("200 OK", b"<html>"), PacsGarbledError),
        (http("200 OK", b"{}"), PacsGarbledError),
        (http("200 OK", b"[]"), PacsGarbledError),
        (http("200 OK", b"{}", "text/html"), PacsGarbledError),
        (silent, PacsTimeoutError),
        (lambda link: link.sendall(b"\x00\xff garbage\r\n\r\n"), PacsUnreachableError),
        (lambda link: None, PacsUnreachableError),
    ],
    ids=[
        "unavailable",
        "unauthorised",
        "conflict",
        "redirect",
        "no JSON",
        "names nothing",
        "a list",
        "a page",
        "slow",
        "garbage",
        "hangs up",
    ],
)
def test_an_archive_that_misbehaves_over_http_leaves_the_report_in_the_outbox(
    answer: Answer,
    error: type[PacsError],
    archive: Callable[[Answer], int],
    spool: Spool,
    caplog: pytest.LogCaptureFixture,
    patience: float,
) -> None:
    address = f"http://127.0.0.1:{archive(answer)}/dicom-web"
    seconds = 0.5 if error is PacsTimeoutError else patience
    send = DicomWebArchive(address, connect_seconds=patience, read_seconds=seconds)
    with pytest.raises(error) as caught:
        send(REPORT)
    assert "Ada" not in str(caught.value)
    name = spool.put(REPORT)
    with caplog.at_level(logging.DEBUG):
        assert deliver(spool, send).failed == 1
    assert list(spool.waiting()) == [name]
    assert spool.attempts(name).error == error.__name__
    assert "Ada" not in caplog.text


@pytest.mark.parametrize(
    ("answer", "errors"),
    [
        (silent, (PacsTimeoutError,)),
        (lambda link: link.sendall(os.urandom(200)), (PacsUnreachableError, PacsTimeoutError)),
        (lambda link: None, (PacsUnreachableError,)),
    ],
    ids=["slow", "garbage", "hangs up"],
)
def test_an_archive_that_misbehaves_over_dimse_is_a_named_error(
    answer: Answer,
    errors: tuple[type[PacsError], ...],
    archive: Callable[[Answer], int],
    patience: float,
) -> None:
    seconds = 1.0 if PacsTimeoutError in errors else patience
    with pytest.raises(errors):
        DimseArchive("127.0.0.1", archive(answer), "ARCHIVE", seconds=seconds)(REPORT)


def test_an_archive_that_is_down_or_takes_no_reports(
    door: StorePort, closed_port: int, patience: float
) -> None:
    with pytest.raises(PacsUnreachableError):
        DicomWebArchive(f"http://127.0.0.1:{closed_port}", connect_seconds=patience)(REPORT)
    with pytest.raises(PacsUnreachableError):
        DimseArchive("127.0.0.1", closed_port, "ARCHIVE", seconds=patience)(REPORT)
    with pytest.raises(PacsRejectedError):
        DimseArchive("127.0.0.1", door.port, "MEDQUA", "PACS", patience)(REPORT)
    with pytest.raises(PacsRejectedError):
        DimseArchive("127.0.0.1", door.port, "MEDQUA", "STRANGER", patience).echo()


@pytest.mark.parametrize("way", ["web", "dimse"])
def test_orthanc_takes_the_report_into_the_study_of_its_image(
    way: str, orthanc: Any, spool: Spool, eventually: Callable[[Callable[[], Any]], Any]
) -> None:
    source = image(f"1.2.3.1{len(way)}")
    source.StudyInstanceUID = f"1.2.3.9{len(way)}"
    source.SeriesInstanceUID = f"1.2.3.9{len(way)}.1"
    archive = orthanc.web if way == "web" else orthanc.dimse
    archive(to_bytes(source))
    spool.put(report_of(to_bytes(source)))
    courier = Courier(spool, archive, interval=0.05)
    try:
        eventually(lambda: not list(spool.waiting()))
    finally:
        courier.close()
    archive(report_of(to_bytes(source)))  # a retry does not double
    assert orthanc.modalities(source.StudyInstanceUID) == ["CR", "SR"]


def test_orthanc_sends_images_to_the_door(orthanc: Any, door: StorePort, spool: Spool) -> None:
    orthanc.dimse.echo()
    orthanc.web(to_bytes(image("1.2.3.77")))
    peer = {"AET": "MEDQUA", "Host": "127.0.0.1", "Port": door.port, "LocalAet": "PACS"}
    wanted = {"Level": "Instance", "Query": {"SOPInstanceUID": "1.2.3.77"}}
    found = json.loads(orthanc.send("POST", "/tools/find", wanted))
    assert len(found) == 1
    orthanc.send("PUT", "/modalities/medqua", peer)
    orthanc.send("POST", "/modalities/medqua/store", found)
    kept = [dcmread(BytesIO(spool.read(name))) for name in spool.waiting()]
    assert [(str(ds.Modality), str(ds.SOPInstanceUID)) for ds in kept] == [("CR", "1.2.3.77")]
