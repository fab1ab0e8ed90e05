"""The audit log: an append-only file of JSON lines.

Files and answers stand in it by their SHA-256, so that it proves what was said without holding
it. Every line carries the hash of the one before: a line that was changed or taken out later
breaks the chain, and `verify` says where. A line that cannot be written whole is cut back, and
whoever asked for it is told, so that nothing is answered that does not stand here.
"""

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medqua.core.errors import ConfigError, DataError, MedQuaError

START = 64 * "0"
"""What stands for the hash before the first line."""


class AuditError(MedQuaError, RuntimeError):
    """A line of the audit log could not be written."""


class AuditLog:
    """An open audit log. Safe to share between threads.

    Args:
        file: Where it is; made if absent, readable by its owner alone.

    Raises:
        ConfigError: Another process writes it, or it cannot be written.
    """

    def __init__(self, file: Path) -> None:
        self._lock = threading.Lock()
        try:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            os.fchmod(self._file, 0o600)
        except OSError as error:
            raise ConfigError(f"{file} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise ConfigError(f"{file} is written by another service; give each its own") from None
        self._last = self._continue()

    def record(
        self,
        *,
        who: str,
        request_id: str,
        action: str,
        what: Sequence[str],
        outcome: Sequence[int],
        result: str,
        status: int = 0,
        address: str = "",
    ) -> None:
        """Append one line and have it on disk.

        Args:
            who: Name of the caller.
            request_id: Of the request.
            action: Route, or kind of door.
            what: SHA-256 of the files, hexadecimal.
            outcome: Status of each.
            result: SHA-256 of the answer, hexadecimal.
            status: HTTP status of the answer as a whole; 0 where it was no request by HTTP.
            address: Network address of the caller.

        Raises:
            AuditError: It is not there: the disk is full, or refuses.
        """
        entry: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "who": who,
            "request_id": request_id,
            "action": action,
            "what": list(what),
            "outcome": list(outcome),
            "result": result,
        }
        entry |= {"status": status} if status else {}
        entry |= {"address": address} if address else {}
        with self._lock:
            line = json.dumps({**entry, "previous": self._last}).encode() + b"\n"
            try:
                self._append(line)
            except OSError as error:
                raise AuditError(f"the audit log cannot be written: {error.strerror}") from None
            self._last = _digest(line)

    def record_activity(self, action: str) -> None:
        """Append that the service has started, or is about to end.

        Args:
            action: `start` or `stop`.
        """
        self.record(who="service", request_id="", action=action, what=(), outcome=(), result="")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            os.close(self._file)

    def _append(self, line: bytes) -> None:
        """Write a line whole, or leave the file as it was.

        Raises:
            OSError: It is not there.
        """
        end = os.fstat(self._file).st_size
        try:
            left = memoryview(line)
            while left:
                left = left[os.write(self._file, left) :]
            os.fdatasync(self._file)
        except OSError:
            os.ftruncate(self._file, end)
            raise

    def _continue(self) -> str:
        """Return the hash of the last whole line; cut off one that a crash has torn."""
        size = os.fstat(self._file).st_size
        start = max(0, size - (1 << 20))
        tail = os.pread(self._file, 1 << 20, start)
        whole = tail[: tail.rfind(b"\n") + 1]
        if len(whole) < len(tail):
            os.ftruncate(self._file, start + len(whole))
        lines = whole.splitlines(keepends=True)
        return _digest(lines[-1]) if lines else START


def verify(file: Path) -> int:
    """Check the chain of an audit log.

    Returns:
        Number of its entries.

    Raises:
        DataError: A line was changed, taken out or put in; the message names its number.
    """
    previous, entries = START, 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                told = json.loads(line)["previous"]
            except (ValueError, KeyError, TypeError):
                told = None
            if told is not None:
                entries += 1
                if told != previous:
                    raise DataError(f"line {number} does not follow the one before it")
            elif not _torn(line):
                raise DataError(f"line {number} is no entry")
            previous = _digest(line)
    return entries


def _torn(line: bytes) -> bool:
    """Tell whether a line is the beginning of an entry, as crashes left it in earlier releases."""
    told = line.rstrip()
    return told[:9] == b'{"time": '[: len(told)] and not told.endswith(b"}")


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
