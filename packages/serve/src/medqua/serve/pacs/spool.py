"""Objects on disk until they are dealt with: none is lost to a kill, none is there by halves.

    folder/waiting/<sha256>.dcm     complete objects
    folder/waiting/<sha256>.json    failed attempts: how many, when to try again, the error's class
    folder/dead/                    the same, after the last attempt
    folder/arriving/                half written; removed when the spool is opened
    folder/lock                     held by the process that has it open

Names are hashes of the content: they hold no patient data, a peer cannot choose them, and the same
object twice is one. Folders are for their owner alone (0700), files too (0600).
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from medqua.core.errors import ConfigError
from medqua.serve.pacs.errors import SpoolError
from medqua.serve.private_folder import FolderLock


@dataclass(frozen=True)
class Attempts:
    """What became of an object so far."""

    count: int = 0
    """Failed attempts."""
    not_before: float = 0.0
    """Earliest time of the next, in seconds since the epoch."""
    error: str = ""
    """Class of the last error."""


class Spool:
    """A folder of objects. Safe between threads; it is held by one process until it is closed.

    Args:
        folder: Made if absent.
        max_bytes: Bytes of waiting objects above which none is taken.

    Raises:
        SpoolError: The folder cannot be used, or another process holds it.
    """

    def __init__(self, folder: Path, max_bytes: int = 20 << 30) -> None:
        self.folder, self._max_bytes = folder, max_bytes
        self._waiting, self._dead = folder / "waiting", folder / "dead"
        self._arriving = folder / "arriving"
        try:
            for part in (folder, self._waiting, self._dead, self._arriving):
                part.mkdir(mode=0o700, parents=True, exist_ok=True)
                part.chmod(0o700)
            self._held = FolderLock(folder)
            for left in self._arriving.iterdir():  # of a process that was killed
                left.unlink(missing_ok=True)
        except OSError as error:
            raise SpoolError(f"{folder} cannot be used as a spool: {error.strerror}") from None
        except ConfigError as error:
            raise SpoolError(str(error)) from None

    def close(self) -> None:
        """Let go of the folder; what waits is there at the next opening."""
        self._held.close()

    def put(self, data: bytes) -> str:
        """Keep an object; when this returns, it survives a kill and a loss of power.

        Returns:
            Its name.

        Raises:
            SpoolError: The spool is full, or the disk refuses.
        """
        name = hashlib.sha256(data).hexdigest()
        place = self._waiting / f"{name}.dcm"
        if place.exists():
            return name
        if self.size() + len(data) > self._max_bytes:
            raise SpoolError("the spool is full; have its objects delivered, or enlarge it")
        try:
            self._write(place, data)
        except OSError as error:
            raise SpoolError(f"the spool cannot be written: {error.strerror}") from None
        return name

    def size(self) -> int:
        """Return the bytes of all waiting objects."""
        total = 0
        for file in self._waiting.glob("*.dcm"):
            try:
                total += file.stat().st_size
            except FileNotFoundError:  # dealt with meanwhile
                continue
        return total

    def waiting(self) -> Iterator[str]:
        """Yield the names of waiting objects, oldest first."""
        yield from self._names(self._waiting)

    def dead(self) -> Iterator[str]:
        """Yield the names of objects that were given up, oldest first."""
        yield from self._names(self._dead)

    def count_waiting(self) -> int:
        """Return how many objects wait."""
        return sum(1 for _ in self._waiting.glob("*.dcm"))

    def count_dead(self) -> int:
        """Return how many were given up."""
        return sum(1 for _ in self._dead.glob("*.dcm"))

    def read(self, name: str) -> bytes:
        """Return a waiting object's content.

        Raises:
            SpoolError: It is not there.
        """
        try:
            return (self._waiting / f"{name}.dcm").read_bytes()
        except OSError:
            raise SpoolError("the object is no longer in the spool") from None

    def remove(self, name: str) -> None:
        """Forget an object that was dealt with."""
        for ending in ("dcm", "json"):
            (self._waiting / f"{name}.{ending}").unlink(missing_ok=True)
        _sync(self._waiting)

    def attempts(self, name: str) -> Attempts:
        """Return what became of an object so far; nothing if that cannot be read."""
        try:
            return Attempts(**json.loads((self._waiting / f"{name}.json").read_text()))
        except (OSError, ValueError, TypeError):
            return Attempts()

    def failed(self, name: str, attempts: Attempts) -> None:
        """Note a failed attempt."""
        self._write(self._waiting / f"{name}.json", json.dumps(vars(attempts)).encode())

    def bury(self, name: str) -> None:
        """Put an object among those given up."""
        for ending in ("json", "dcm"):  # the object last: until then it is waiting
            file = self._waiting / f"{name}.{ending}"
            if file.exists():
                file.replace(self._dead / file.name)
        _sync(self._dead)
        _sync(self._waiting)

    def revive(self) -> int:
        """Let all that was given up wait again, from the first attempt; return how many."""
        names = list(self.dead())
        for name in names:
            (self._dead / f"{name}.json").unlink(missing_ok=True)
            (self._dead / f"{name}.dcm").replace(self._waiting / f"{name}.dcm")
        _sync(self._waiting)
        return len(names)

    def _names(self, folder: Path) -> list[str]:
        ages = []
        for file in folder.glob("*.dcm"):
            try:
                ages.append((file.stat().st_mtime_ns, file.stem))
            except FileNotFoundError:
                continue
        return [name for _, name in sorted(ages)]

    def _write(self, place: Path, data: bytes) -> None:
        """Write a file that is there whole or not at all."""
        descriptor, temporary = tempfile.mkstemp(dir=self._arriving)  # 0600
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            Path(temporary).replace(place)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync(place.parent)


def _sync(folder: Path) -> None:
    """Make a folder's entries survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
