"""What one image file may cost before it is refused, and reading it under that."""

import os
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG

from medqua.core.errors import UnreadableImageError

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Bounds on one file; the largest detectors in use give about 18 megapixels in 36 MB."""

    file_bytes: int = 256 * MIB
    """Largest file that is read, in bytes."""

    data_bytes: int = 512 * MIB
    """Largest data set or frame after inflating or decoding, in bytes."""

    pixels: int = 64 * 10**6
    """Largest number of rows times columns; checked in the header, before decoding."""

    side: int = 16_384
    """Largest number of rows or columns."""

    memory_bytes: int = 3072 * MIB
    """Address space of the decoding process, in bytes; not applied to decoding in process."""

    cpu_seconds: int = 20
    """Processor time of one decoding in the decoding process, in whole seconds."""

    wall_seconds: float = 30.0
    """Time after which the decoding process is killed, in seconds."""


def read_bytes(source: str | Path | bytes, limits: Limits | None = None) -> bytes:
    """Return a file's content; no more of it than `limits` allow is ever read.

    Raises:
        UnreadableImageError: If it is absent, empty, too large, or not a regular file.
    """
    limits = limits or Limits()
    try:
        if isinstance(source, bytes):
            data = source
        else:
            with os.fdopen(_open_regular(source), "rb") as file:
                data = file.read(limits.file_bytes + 1)
    except OSError as error:
        raise UnreadableImageError(
            f"the file cannot be opened ({error.strerror or 'not a regular file'}); check its path"
        ) from None
    except ValueError:  # a NUL in the path
        raise UnreadableImageError("the path is not one; check it") from None
    if not data:
        raise UnreadableImageError("the file is empty; copy it again")
    if len(data) > limits.file_bytes:
        raise UnreadableImageError(
            f"the file is over {limits.file_bytes:,} bytes; no single radiograph is that large"
        )
    return data


def _open_regular(path: str | Path) -> int:
    """Open a regular file; devices and pipes, which never end, are refused unopened."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError
    return descriptor
