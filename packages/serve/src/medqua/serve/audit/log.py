"""The audit log: an append-only file of JSON lines.

Files and answers stand in it by their SHA-256, so that it proves what was said without holding
it. Every line carries the hash of the one before: a line that was changed or taken out later
breaks the chain, and `verify` says where.
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

from medqua.core.errors import ConfigError, DataError

START = 64 * "0"
"""What stands for the hash before the first line."""


class AuditLog:
    """An open audit log. Safe to share between threads.

    Args:
        file: Where it is; made if absent, readable by its owner alone.

    Raises:
        ConfigError: Another process writes it, or its last line is damaged beyond a torn write.
    """

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._file = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
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
    ) -> None:
        """Append one line and have it on disk.

        Args:
            who: Name of the caller.
            request_id: Of the request.
            action: Route, or kind of door.
            what: SHA-256 of the files, hexadecimal.
            outcome: Status of each.
            result: SHA-256 of the answer, hexadecimal.
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
        with self._lock:
            line = json.dumps({**entry, "previous": self._last}).encode() + b"\n"
            os.write(self._file, line)
            os.fdatasync(self._file)
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

    def _continue(self) -> str:
        """Return the hash of the last whole line; end a line that a crash has torn."""
        size = os.fstat(self._file).st_size
        tail = os.pread(self._file, 1 << 20, max(0, size - (1 << 20)))
        if tail and not tail.endswith(b"\n"):
            os.write(self._file, b"\n")
            tail += b"\n"
        lines = tail.splitlines(keepends=True)
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
    """Tell whether a line is the beginning of an entry, as a crash leaves it."""
    return line.startswith(b'{"time": ') and not line.rstrip().endswith(b"}")


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
