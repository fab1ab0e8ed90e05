"""The hospital's audit repository: entries of the audit log go there as they are written.

Messages travel by syslog (RFC 5424), over TLS (RFC 5425) or as datagrams (RFC 5426), as PS3.15
sections A.6 and A.7 ask. The log on disk is read behind whoever writes it; how far it was sent
stands in a file beside it. So a repository that is down loses nothing, and a restart repeats at
most what was on its way. Syslog has no acknowledgement: what a broken connection swallowed is in
the log on disk alone.
"""

import json
import logging
import os
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from medqua.core.errors import ConfigError
from medqua.serve.audit.messages import to_messages

log = logging.getLogger("medqua.serve")

PRIORITY = 10 * 8 + 5
"""Facility 10, security; severity 5, notice (RFC 5424 section 6.2.1)."""

TOGETHER = 100
"""Entries after which it is noted how far the log was sent."""

LARGEST_PAUSE = 60.0
"""Longest pause after a failure, in seconds."""


class Repository:
    """Sends an audit log in a thread until it is closed.

    Args:
        file: The log, which another object of this process appends to.
        address: `tls://HOST:PORT` or `udp://HOST:PORT`.
        source: Name of this installation.
        authorities: Certificate authorities of the repository, PEM; the system's by default.
        interval: Seconds between two looks into the log.

    Raises:
        ConfigError: An address of another form, or authorities that cannot be read.
    """

    def __init__(
        self,
        file: Path,
        address: str,
        source: str,
        authorities: Path | None = None,
        *,
        interval: float = 1.0,
    ) -> None:
        self._link = _Link(address, authorities)
        self._file, self._source, self._interval = file, source, interval
        self._mark = file.with_name(file.name + ".sent")
        self._sent = self._read_mark()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Bytes of the log that are not sent."""
        with suppress(OSError):
            return max(0, self._file.stat().st_size - self._sent)
        return 0

    def close(self, seconds: float = 5.0) -> None:
        """Try once more for some seconds; what is not sent is sent after the next start."""
        self._stop.set()
        self._thread.join(seconds)
        self._link.close()

    def _run(self) -> None:
        pause = self._interval
        ending = False
        while not ending:
            ending = self._stop.is_set()
            try:
                self._send_new()
                pause = self._interval
            except OSError as error:
                self._link.close()
                pause = min(2 * pause, LARGEST_PAUSE)
                told = {"error": type(error).__name__, "bytes": self.waiting}
                log.warning("audit repository not reached", extra={"told": told})
            except Exception:  # a defect must not end it for good
                log.exception("audit messages wait")
                pause = LARGEST_PAUSE
            self._stop.wait(pause)

    def _send_new(self) -> None:
        with self._file.open("rb") as lines:
            lines.seek(self._sent)
            number = 0
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    break  # it is being written
                for message in self._messages(line):
                    self._link.send(_syslog(message))
                self._sent += len(line)
                if number % TOGETHER == 0:
                    self._write_mark()
        if number:
            self._write_mark()

    def _messages(self, line: bytes) -> list[bytes]:
        try:
            return list(to_messages(json.loads(line), self._source))
        except (ValueError, KeyError, TypeError):  # a line that a crash has torn
            return []

    def _read_mark(self) -> int:
        with suppress(OSError, ValueError):
            sent = int(self._mark.read_text())
            if 0 <= sent <= self._file.stat().st_size:
                return sent
        return 0

    def _write_mark(self) -> None:
        part = self._mark.with_name(self._mark.name + ".part")
        part.write_text(str(self._sent))
        part.replace(self._mark)


class _Link:
    """A connection that is made when it is needed."""

    def __init__(self, address: str, authorities: Path | None) -> None:
        parts = urlsplit(address)
        try:
            port = parts.port
        except ValueError:
            port = None
        if parts.scheme not in ("tls", "udp") or not parts.hostname or port is None:
            raise ConfigError(
                f"audit repository {address!r}: give tls://HOST:PORT or udp://HOST:PORT"
            )
        self._where = parts.hostname, port
        self._context: ssl.SSLContext | None = None
        if parts.scheme == "tls":
            try:
                self._context = ssl.create_default_context(cafile=authorities)
            except (OSError, ssl.SSLError):
                raise ConfigError(f"{authorities} holds no certificate authorities") from None
            self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._socket: socket.socket | None = None

    def send(self, message: bytes) -> None:
        """Send a message.

        Raises:
            OSError: It could not be sent.
        """
        if self._socket is None:
            self._socket = self._connect()
        elif self._context is not None:
            self._check(self._socket)
        if self._context is not None:
            message = f"{len(message)} ".encode() + message
        self._socket.sendall(message)

    def close(self) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.close()
            self._socket = None

    def _connect(self) -> socket.socket:
        if self._context is None:
            family, kind, protocol, _, where = socket.getaddrinfo(
                *self._where, type=socket.SOCK_DGRAM
            )[0]
            link = socket.socket(family, kind, protocol)
            link.connect(where)
            return link
        plain = socket.create_connection(self._where, timeout=10)
        try:
            return self._context.wrap_socket(plain, server_hostname=self._where[0])
        except OSError:
            plain.close()
            raise

    @staticmethod
    def _check(link: socket.socket) -> None:
        """Find out whether the other end has closed; a repository never sends anything.

        Raises:
            ConnectionResetError: It has.
        """
        link.setblocking(False)
        try:
            gone = link.recv(1) == b""
        except (ssl.SSLWantReadError, BlockingIOError):
            gone = False
        finally:
            link.settimeout(10)
        if gone:
            raise ConnectionResetError


def _syslog(message: bytes, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> bytes:
    """Return a syslog message around an audit message (RFC 5424 section 6, PS3.15 section A.6)."""
    when = now().isoformat(timespec="milliseconds")
    who = f"{socket.gethostname()} medqua-serve {os.getpid()}"
    return f"<{PRIORITY}>1 {when} {who} DICOM+RFC3881 - ".encode() + b"\xef\xbb\xbf" + message
