"""Uploaded files and archives to studies, each for itself: none spoils another's result."""

import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from medqua.core.errors import ImageError, UnreadableImageError
from medqua.core.vision.image import Decoder
from medqua.core.vision.limits import MIB, read_bytes
from medqua.ui.studies import Refusal, Session, Study

MOST_MEMBERS = 2000
"""Files of one archive that are opened."""

ARCHIVE_BYTES = 2048 * MIB
"""Bytes that one archive may inflate to."""

SKIPPED = ("DICOMDIR", ".DS_Store", "Thumbs.db")


def take_in(
    session: Session, paths: Sequence[Path], decoder: Decoder, names: Sequence[str] = ()
) -> Iterator[Study | Refusal]:
    """Open uploaded files in order; an archive's files one by one.

    Args:
        session: Where they go.
        paths: The uploads; each is deleted once it is read.
        decoder: Reads every one of them in its process.
        names: What their sender called them; by default as the paths.

    Yields:
        What became of each file, as soon as it is known.
    """
    for path, name in zip(paths, names or [path.name for path in paths], strict=True):
        try:
            for file, content in _contents(path, name):
                if isinstance(content, Refusal):
                    session.refusals.append(content)
                    yield content
                else:
                    yield _open(session, file, content, decoder)
        except OSError:  # cancelled, or gone with the session
            yield Refusal(name, "the upload did not arrive whole; upload it again")
        finally:
            path.unlink(missing_ok=True)


def _open(session: Session, file: str, content: bytes, decoder: Decoder) -> Study | Refusal:
    try:
        cells, description = decoder.read_stored(content)
    except ImageError as error:
        refusal = Refusal(file, sentence(str(error)))
        session.refusals.append(refusal)
        return refusal
    return session.add(file, content, cells, description)


def _contents(path: Path, name: str) -> Iterator[tuple[str, bytes | Refusal]]:
    """Give a file's name and content, or those of an archive's members."""
    with path.open("rb") as file:
        is_archive = file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
    if not is_archive:
        try:
            yield name, read_bytes(path)
        except UnreadableImageError as error:
            yield name, Refusal(name, sentence(str(error)))
        return
    try:
        with zipfile.ZipFile(path) as archive:
            yield from _members(name, archive)
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        yield name, Refusal(name, "The archive is damaged; make it again.")


def _members(name: str, archive: zipfile.ZipFile) -> Iterator[tuple[str, bytes | Refusal]]:
    """Give an archive's files, none of which is ever written under its own path."""
    members = [info for info in archive.infolist() if not info.is_dir() and _wanted(info.filename)]
    if not members:
        yield name, Refusal(name, "The archive holds no files.")
    if len(members) > MOST_MEMBERS:
        reason = f"The archive holds {len(members):,} files; at most {MOST_MEMBERS:,} are opened."
        yield name, Refusal(name, reason)
        return
    left = ARCHIVE_BYTES
    for info in members:
        file = PurePosixPath(info.filename).name
        if info.flag_bits & 1:
            yield file, Refusal(file, "It is encrypted in its archive; unlock it first.")
            continue
        try:
            with archive.open(info) as member:
                content = member.read(min(left, 256 * MIB) + 1)
        except (zipfile.BadZipFile, NotImplementedError, OSError, EOFError, RuntimeError):
            yield file, Refusal(file, "It is damaged in its archive; make the archive again.")
            continue
        except Exception:  # zlib, lzma and bz2 have errors of their own
            yield file, Refusal(file, "It is damaged in its archive; make the archive again.")
            continue
        left -= len(content)
        if left < 0:
            yield name, Refusal(name, "The archive inflates to over 2 GiB; the rest is left out.")
            return
        try:
            yield file, read_bytes(content)
        except UnreadableImageError as error:
            yield file, Refusal(file, sentence(str(error)))


def _wanted(path: str) -> bool:
    """Leave out what packing programs and file managers add."""
    return "__MACOSX" not in path and PurePosixPath(path).name not in SKIPPED


def sentence(text: str) -> str:
    """Write a message as a sentence, without the names of classes of errors."""
    text = re.sub(r" \([A-Za-z]+(Error|Exception)\)", "", text)
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."
