"""One large file over HTTP: resumed where it stopped, whole and checked or not there at all."""

import hashlib
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

from medqua.core.errors import DataError

CHUNK = 1 << 20
"""Bytes read at a time."""


def download(url: str, path: Path, *, md5: str, timeout: float = 60.0) -> None:
    """Download a file beside its final name and move it there once its sum is right.

    An interrupted download leaves `NAME.partial`, and the next call goes on from its end.

    Args:
        url: An http or https address.
        path: Where the file shall be.
        md5: Expected MD5, hexadecimal.
        timeout: Longest silence of the server, in seconds.

    Raises:
        DataError: The address is no web address, the server fails, or the sum is wrong (the
            file is then removed, so that the next try starts afresh).
    """
    if not url.startswith(("https://", "http://")):
        raise DataError(f"{url} is no http or https address")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        _continue(url, partial, timeout)
    except (urllib.error.URLError, HTTPException, OSError) as error:
        raise DataError(
            f"downloading {url} failed ({error}): run the command again, it goes on where it "
            "stopped; or fetch the file by other means and give its path as data.root"
        ) from error
    with partial.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        partial.unlink()
        raise DataError(
            f"{url} came with MD5 {found}, published is {md5}: it was removed; run the "
            "command again"
        )
    partial.replace(path)


def _continue(url: str, partial: Path, timeout: float) -> None:
    """Fetch what is not there yet; a server that knows no ranges sends everything again."""
    there = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "medqua-train"})
    if there:
        request.add_header("Range", f"bytes={there}-")
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and there:  # nothing beyond its end: it is complete
            return
        raise
    with response, partial.open("ab" if response.status == 206 else "wb") as file:
        expected = response.headers.get("Content-Length")
        received = 0
        while chunk := response.read(CHUNK):
            file.write(chunk)
            received += len(chunk)
    if expected is not None and received != int(expected):
        raise OSError(f"the connection ended after {received:,} of {int(expected):,} bytes")
