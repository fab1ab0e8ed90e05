"""Files out of a ZIP that a stranger made.

Nothing is written to disk and no name is used as a path, so that a name cannot lead anywhere.
What an archive may cost is checked in its directory before that is parsed, and again while each
file is inflated: what a directory claims counts for nothing.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from medqua.core.errors import MedQuaError, UnreadableImageError
from medqua.serve.settings import Limits

_END = struct.Struct("<4s4H2LH")
"""End of central directory record (APPNOTE 4.3.16)."""

_PER_ENTRY = 46 + 3 * 1024
"""Most bytes of the directory that one file accounts for on average."""


class LimitError(MedQuaError):
    """A request that is larger than the service allows."""


@dataclass(frozen=True)
class Part:
    """One file of a request: its content, or why it is not taken."""

    name: str
    """As its sender named it; never used as a path, never logged."""
    content: bytes | None
    """The file."""
    refusal: MedQuaError | None = None
    """Why there is no content."""


def is_zip(content: bytes) -> bool:
    """Tell whether a file is a ZIP by its first bytes.

    The preamble of a DICOM file may hold those too; such a file is read as DICOM.
    """
    return content[:4] in (b"PK\x03\x04", b"PK\x05\x06") and content[128:132] != b"DICM"


def unpack(
    name: str, content: bytes, limits: Limits, count: Callable[[int], None] = lambda size: None
) -> Iterator[Part]:
    """Yield the files of an archive; folders and hidden files are left out.

    Args:
        name: Of the archive.
        content: The archive.
        limits: What it may cost.
        count: Told the size of each inflated file, in bytes; may raise.

    Raises:
        UnreadableImageError: It is no readable ZIP.
        LimitError: It holds more files or bytes than allowed.
    """
    _check_directory(content, limits)
    total = 0
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
    except (zipfile.BadZipFile, ValueError, OSError, struct.error, NotImplementedError):
        raise UnreadableImageError("the ZIP's directory is damaged; pack it again") from None
    with archive:
        for entry in archive.infolist():
            path = f"{name}/{entry.filename}" if name else entry.filename
            if entry.is_dir() or _is_hidden(entry.filename):
                continue
            try:
                data = _inflate(archive, entry, limits.file_bytes)
            except UnreadableImageError as error:
                yield Part(path, None, error)
                continue
            total += len(data)
            if total > limits.unpacked_bytes:
                raise LimitError(
                    f"the ZIP unpacks to over {limits.unpacked_bytes:,} bytes; send it in parts"
                )
            count(len(data))
            yield Part(path, data)


def _check_directory(content: bytes, limits: Limits) -> None:
    """Refuse by its end record an archive whose directory would be too long to parse."""
    at = content.rfind(b"PK\x05\x06", max(0, len(content) - 65_557))
    if at < 0 or at + _END.size > len(content):
        raise UnreadableImageError("the ZIP has no end: it is truncated; send it again")
    _, _, _, _, entries, size, _, _ = _END.unpack_from(content, at)
    if content[max(0, at - 20) : at][:4] == b"PK\x06\x07" or entries == 0xFFFF:
        raise UnreadableImageError("the ZIP is in ZIP64 form; pack fewer or smaller files")
    if entries > limits.files or size > limits.files * _PER_ENTRY:
        raise LimitError(f"the ZIP holds over {limits.files} files; send it in parts")


def _inflate(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, limit: int) -> bytes:
    """Return a file's content, inflating no more of it than `limit` bytes."""
    if entry.flag_bits & 1:
        raise UnreadableImageError("the file is encrypted; pack it without a password")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UnreadableImageError("the file is packed by another method than deflate")
    try:
        with archive.open(entry) as file:
            data = file.read(limit + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError):
        raise UnreadableImageError("the file is damaged within the ZIP") from None
    except (struct.error, IndexError, UnicodeError, RuntimeError):
        raise UnreadableImageError("the file's header within the ZIP is damaged") from None
    if len(data) > limit:
        raise UnreadableImageError(f"the file is over {limit:,} bytes when unpacked")
    return data


def _is_hidden(path: str) -> bool:
    """Tell whether a file is no file of the sender's: what systems leave behind in archives."""
    parts = path.replace("\\", "/").split("/")
    return parts[0] == "__MACOSX" or (parts[-1].startswith(".") and parts[-1] not in (".", ".."))
