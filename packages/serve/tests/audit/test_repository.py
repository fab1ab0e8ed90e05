"""The way to a syslog collector: over TLS and by datagrams, and when nobody is there."""

import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest

from medqua.core.errors import ConfigError
from medqua.serve.audit import AuditLog, Repository

HEAD = re.compile(
    rb"<85>1 \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00 \S+ medqua-serve \d+ DICOM\+RFC3881 - "
    rb"\xef\xbb\xbf<\?xml"
)


class Collector:
    """Takes syslog over TLS (RFC 5425) on one port, again after each end of it."""

    def __init__(self, context: ssl.SSLContext, port: int) -> None:
        self.received: list[bytes] = []
        self._context, self._listener = context, socket.create_server(("127.0.0.1", port))
        self.port = self._listener.getsockname()[1]
        self._link: ssl.SSLSocket | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            plain, _ = self._listener.accept()
            self._link = self._context.wrap_socket(plain, server_side=True)
            with self._link, self._link.makefile("rb") as frames:
                while True:
                    length = b""
                    while (byte := frames.read(1)) not in (b" ", b""):
                        length += byte
                    if not length:
                        return
                    self.received.append(frames.read(int(length)))
        except OSError:
            return

    def close(self) -> None:
        for link in (self._link, self._listener):
            if link is not None:
                with suppress(OSError):
                    link.shutdown(socket.SHUT_RDWR)
                link.close()
        self._thread.join()


def record(log: AuditLog, number: int) -> None:
    log.record(
        who="key:a", request_id=str(number), action="POST", what=[f"file{number}"], outcome=[200],
        result="r",
    )  # fmt: skip


def files(received: list[bytes]) -> list[str]:
    for message in received:
        assert HEAD.match(message), message[:120]
    parsed = [Xml.fromstring(message[message.index(b"<?xml") :]) for message in received]
    return [
        message.find("ParticipantObjectIdentification").get("ParticipantObjectID")
        for message in parsed
    ]


@pytest.fixture
def papers(tmp_path: Path, issue: Callable[..., Any]) -> tuple[Path, ssl.SSLContext]:
    authority = issue("authority")
    certificate, key = issue("repository", authority).write(tmp_path, "repository")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return authority.write(tmp_path, "authority")[0], context


def test_a_repository_that_is_away_gets_everything_in_the_end(
    tmp_path: Path,
    papers: tuple[Path, ssl.SSLContext],
    closed_port: int,
    eventually: Callable[[Callable[[], object]], object],
):
    """It is there, it goes, the service starts anew, it comes back: nothing is missing."""
    authorities, context = papers
    log = AuditLog(tmp_path / "audit.jsonl")
    for number in range(3):
        record(log, number)
    first = Collector(context, closed_port)
    address = f"tls://127.0.0.1:{first.port}"

    def repository() -> Repository:
        return Repository(tmp_path / "audit.jsonl", address, "Ward 3", authorities, interval=0.05)

    sending = repository()
    eventually(lambda: sending.waiting == 0 and len(first.received) == 3)
    first.close()
    for number in range(3, 6):
        record(log, number)
    time.sleep(0.3)
    assert sending.waiting
    sending.close()
    second = Collector(context, closed_port)
    sending = repository()
    eventually(lambda: sending.waiting == 0 and len(second.received) == 3)
    sending.close()
    second.close()
    log.close()
    assert files(first.received) == ["file0", "file1", "file2"]
    assert files(second.received) == ["file3", "file4", "file5"]


def test_a_collector_of_another_authority_is_told_nothing(
    tmp_path: Path,
    papers: tuple[Path, ssl.SSLContext],
    issue: Callable[..., Any],
    closed_port: int,
):
    stranger, _ = issue("stranger").write(tmp_path, "stranger")
    log = AuditLog(tmp_path / "audit.jsonl")
    record(log, 0)
    log.close()
    collector = Collector(papers[1], closed_port)
    sending = Repository(
        tmp_path / "audit.jsonl", f"tls://127.0.0.1:{collector.port}", "Ward 3", stranger
    )
    time.sleep(0.5)
    assert sending.waiting
    sending.close()
    collector.close()
    assert collector.received == []


def test_datagrams(tmp_path: Path):
    log = AuditLog(tmp_path / "audit.jsonl")
    with socket.socket(type=socket.SOCK_DGRAM) as collector:
        collector.bind(("127.0.0.1", 0))
        address = f"udp://127.0.0.1:{collector.getsockname()[1]}"
        sending = Repository(tmp_path / "audit.jsonl", address, "Ward 3", interval=0.05)
        record(log, 7)
        with (tmp_path / "audit.jsonl").open("ab") as torn:
            torn.write(b'{"time": "20\n')  # as a crash leaves it
        record(log, 8)
        received = [collector.recv(65536) for _ in range(2)]
        sending.close()
    log.close()
    assert files(received) == ["file7", "file8"]


@pytest.mark.parametrize("address", ["http://a:1", "tls://a", "tls://:1", "a:514", "tls://a:x"])
def test_another_address_is_refused(tmp_path: Path, address: str):
    with pytest.raises(ConfigError, match="tls://HOST:PORT"):
        Repository(tmp_path / "audit.jsonl", address, "Ward 3")
    with pytest.raises(ConfigError, match="certificate authorities"):
        Repository(tmp_path / "a", "tls://a:1", "Ward 3", tmp_path / "absent.pem")
