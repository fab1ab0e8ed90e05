"""From a request's body to its files.

A body is a form (`multipart/form-data`, any field names), or one file as it is. What a file is,
its content tells; the declared type of a bare body is only asked whether it can be one.
"""

import asyncio
from collections.abc import Iterator
from typing import Annotated

from fastapi import Header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from medqua.core.errors import ConfigError, UnreadableImageError
from medqua.serve.http.guard import Allowance
from medqua.serve.settings import Limits
from medqua.serve.zip_archive import LimitError, Part, is_zip, unpack

BARE = (
    "application/dicom",
    "application/octet-stream",
    "application/zip",
    "application/x-zip-compressed",
    "image/jpeg",
    "image/png",
)
"""Media types of a body that is one file."""


class _InMemory(MultiPartParser):
    """A parser that keeps files, which hold patient data and are bounded, off the disk."""

    spool_max_size = 1 << 40


async def read_parts(request: Request, limits: Limits) -> list[Part]:
    """Read a request's files, those in ZIPs included.

    Raises:
        HTTPException: 400, 408, 413, 415 or 429: the body as a whole cannot be taken.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "multipart/form-data":
        files = await _form(request, limits)
    elif kind in BARE:
        files = [("", await request.body())]
    else:
        raise HTTPException(
            415, f"send multipart/form-data, or one file as {', '.join(BARE[:3])}, {BARE[4]} or PNG"
        )
    if not files or files == [("", b"")]:
        raise HTTPException(400, "no file in the request; send at least one")
    allowance: Allowance = request.scope["medqua.allowance"]
    try:
        return await asyncio.to_thread(lambda: list(_unpacked(files, limits, allowance)))
    except LimitError as error:
        raise HTTPException(413, str(error)) from None


async def _form(request: Request, limits: Limits) -> list[tuple[str, bytes]]:
    parser = _InMemory(
        request.headers, request.stream(), max_files=limits.files, max_fields=16, max_part_size=4096
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise HTTPException(400, f"the form cannot be read: {error.message}") from None
    except (KeyError, ValueError, UnicodeError):
        raise HTTPException(400, "the form cannot be read; is its boundary stated?") from None
    try:
        files = []
        for field, value in form.multi_items():
            if not isinstance(value, UploadFile):
                raise HTTPException(400, f"field {field[:40]!r} holds no file; send only files")
            files.append((value.filename or "", await value.read()))
        return files
    finally:
        await form.close()


def _unpacked(
    files: list[tuple[str, bytes]], limits: Limits, allowance: Allowance
) -> Iterator[Part]:
    """Yield all files, an archive's in its place."""
    seen = 0
    for name, content in files:
        parts = (
            _parts(name, content, limits, allowance) if is_zip(content) else [Part(name, content)]
        )
        for part in parts:
            seen += 1
            if seen > limits.files:
                raise LimitError(f"over {limits.files} files in one request; send them in parts")
            yield part


def _parts(name: str, content: bytes, limits: Limits, allowance: Allowance) -> Iterator[Part]:
    try:
        empty = True
        for part in unpack(name, content, limits, allowance.add):
            empty = False
            yield part
        if empty:
            yield Part(name, None, UnreadableImageError("the ZIP holds no file"))
    except UnreadableImageError as error:
        yield Part(name, None, error)


DeadlineHeader = Annotated[
    float | None, Header(description="Seconds in which the answer is of use.", ge=1)
]
"""`x_deadline_seconds` of a route, which OpenAPI tells of."""


def deadline_of(request: Request) -> float | None:
    """Return the seconds that a client allows in `X-Deadline-Seconds`.

    Raises:
        ConfigError: It is no number of at least 1.
    """
    text = request.headers.get("x-deadline-seconds")
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 1:
        raise ConfigError("X-Deadline-Seconds: give a number of seconds of at least 1")
    return seconds
