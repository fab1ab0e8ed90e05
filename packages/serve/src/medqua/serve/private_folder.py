"""Folders with patient data: nobody else may enter them, and one process has each open."""

import fcntl
import os
import stat
import weakref
from pathlib import Path

from medqua.core.errors import ConfigError

LOCK = "lock"
"""Name of the file by which a process holds a folder; its process id stands in it."""


def make_private(folder: Path) -> None:
    """Make a folder for its owner alone; refuse one that others can enter.

    Raises:
        ConfigError: Others can enter it, or it belongs to somebody else.
        OSError: It cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = folder.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(20, "Not a directory")
    if found.st_uid != os.geteuid():
        raise ConfigError(
            f"{folder} belongs to user {found.st_uid} and this service runs as {os.geteuid()}: "
            "give it a folder of its own, since patient data are kept there"
        )
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        raise ConfigError(
            f"{folder} has mode {mode:04o}, so that others can enter it, and patient data are kept "
            f"there: chmod 700 it, or name a folder inside it"
        )


class FolderLock:
    """Holds a folder for this process until it is closed, or the process ends in any way.

    Args:
        folder: Which; it is there.

    Raises:
        ConfigError: Another process holds it.
        OSError: It cannot be locked.
    """

    def __init__(self, folder: Path) -> None:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            by = f" (process {holder})" if holder.isdigit() else ""
            raise ConfigError(
                f"{folder} is in use by another service{by}: end that one first, or give this one "
                "a folder of its own"
            ) from None
        except OSError:
            os.close(descriptor)
            raise
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._end = weakref.finalize(self, os.close, descriptor)

    def close(self) -> None:
        """Let go of it; the file stays, so that two that come now lock the same one."""
        self._end()
