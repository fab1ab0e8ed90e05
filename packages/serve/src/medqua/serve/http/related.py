"""`multipart/related` (RFC 2387), as DICOMweb carries objects: read from strangers, and written."""

import logging
import uuid
from collections.abc import AsyncIterator, Sequence

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException

from medqua.serve.settings import Limits

logging.getLogger("python_multipart.multipart").setLevel(logging.ERROR)  # it quotes bytes

DICOM = "application/dicom"

LONGEST_BOUNDARY = 200
"""RFC 2046 (5.1.1) allows 70 characters; Orthanc sends 73."""


async def read_related(
    content_type: str, stream: AsyncIterator[bytes], limits: Limits
) -> list[bytes]:
    """Read the parts of a body; what they are, their content tells.

    Args:
        content_type: Of the request.
        stream: Its body.
        limits: How many parts, and how large.

    Raises:
        HTTPException: 400 it is damaged or cut short, 413 over a limit, 415 of another type.
    """
    kind, options = parse_options_header(content_type)
    of = options.get(b"type", b"").decode("latin-1").strip().lower()
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/related" or of not in ("", DICOM):
        raise HTTPException(415, f'send multipart/related; type="{DICOM}"; boundary=...')
    if not 0 < len(boundary) <= LONGEST_BOUNDARY:
        raise HTTPException(400, "the Content-Type names no boundary, or one that is too long")
    parts = _Parts(limits)
    parser = MultipartParser(
        boundary,
        {"on_part_begin": parts.begin, "on_part_data": parts.add, "on_end": parts.end},
        max_header_count=16,
        max_header_size=4096,
    )
    try:
        async for chunk in stream:
            parser.write(chunk)
    except FormParserError:
        raise HTTPException(400, "the multipart body is damaged; send it again") from None
    if not parts.ended:
        raise HTTPException(400, "the multipart body is cut short; send it again")
    return [bytes(part) for part in parts.found]


def write_related(objects: Sequence[bytes]) -> tuple[bytes, str]:
    """Return DICOM files as a body, and its Content-Type."""
    boundary = uuid.uuid4().hex
    head = f"--{boundary}\r\nContent-Type: {DICOM}\r\n\r\n".encode()
    body = b"".join(head + data + b"\r\n" for data in objects) + f"--{boundary}--\r\n".encode()
    return body, f'multipart/related; type="{DICOM}"; boundary={boundary}'


class _Parts:
    """What a parser has found so far."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.found: list[bytearray] = []
        self.ended = False

    def begin(self) -> None:
        if len(self.found) >= self._limits.files:
            raise HTTPException(413, f"over {self._limits.files} parts; send them in several calls")
        self.found.append(bytearray())

    def add(self, data: bytes, start: int, end: int) -> None:
        part = self.found[-1]
        if len(part) + end - start > self._limits.file_bytes:
            raise HTTPException(413, f"an object is over {self._limits.file_bytes:,} bytes")
        part += data[start:end]

    def end(self) -> None:
        self.ended = True
