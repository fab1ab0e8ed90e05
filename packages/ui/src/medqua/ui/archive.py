"""An archive's studies by DICOMweb: search (QIDO-RS, PS3.18 10.6) and fetch (WADO-RS, 10.4).

What an archive sends is as little trusted as a file from elsewhere: objects are kept as bytes and
read in the process that can be killed, answers are bounded, redirects are not followed.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import requests

from medqua.core.errors import ConfigError
from medqua.serve.objects.identity import is_uid
from medqua.serve.pacs.errors import (
    PacsGarbledError,
    PacsRejectedError,
    PacsTimeoutError,
    PacsUnreachableError,
)

MOST_FOUND = 100
"""Studies of one search."""

MOST_INSTANCES = 500
"""Images of one study that are fetched."""

ANSWER_BYTES = 16 << 20
"""Largest list that an archive may answer."""

OBJECT_BYTES = 256 << 20
"""Largest object that is fetched."""

NO_IMAGES = {
    "AU", "DOC", "ECG", "HD", "KO", "PLAN", "PR", "REG", "RESP", "RTDOSE", "RTPLAN", "RTRECORD",
    "RTSTRUCT", "SEG", "SM", "SR",
}  # fmt: skip
"""Modalities of series that hold nothing to look at here."""

FIELDS = {
    "patient": "PatientID",
    "name": "PatientName",
    "accession": "AccessionNumber",
    "date": "StudyDate",
    "modality": "ModalitiesInStudy",
}
"""What can be searched for, and the attribute it is."""

_SHOWN = {
    "name": "00100010",
    "patient": "00100020",
    "date": "00080020",
    "modality": "00080061",
    "description": "00081030",
    "images": "00201208",
}


@dataclass(frozen=True)
class Archive:
    """An archive's DICOMweb service."""

    url: str
    """Its base, such as `https://pacs.example/dicom-web`."""
    token_file: Path | None = None
    """File with its bearer token."""
    authorities: Path | None = None
    """Certificate authorities, PEM; the system's by default."""
    connect_seconds: float = 5.0
    """Wait for a connection, in seconds."""
    read_seconds: float = 30.0
    """Wait for the next bytes, in seconds."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise ConfigError(f"--archive {self.url!r} is no address; give its DICOMweb base")
        if parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
            raise ConfigError(
                "--archive is another machine by http: images would travel in the clear; give its "
                "https address"
            )
        if self.token_file is not None and not self.token_file.is_file():
            raise ConfigError(f"{self.token_file} is not there; give --archive-token-file a file")

    @property
    def shown(self) -> str:
        """Its host, for people."""
        return urlsplit(self.url).hostname or ""

    def search(self, wanted: Mapping[str, str]) -> list[dict[str, str]]:
        """Return the studies that match.

        Args:
            wanted: Values by the names of `FIELDS`, with the wildcards that the archive knows;
                dates as `YYYYMMDD` or `YYYYMMDD-YYYYMMDD`.

        Raises:
            ConfigError: Nothing, or something else, is searched for.
            PacsError: The archive does not answer as it should.
        """
        query = {}
        for name, value in wanted.items():
            text = str(value).strip()
            if name not in FIELDS or len(text) > 64 or any(ord(c) < 32 for c in text):
                raise ConfigError("search for a patient's ID or name, an accession or a date")
            if name == "date" and text and not re.fullmatch(r"\d{8}|\d{8}-(\d{8})?|-\d{8}", text):
                raise ConfigError("give the date as YYYYMMDD, or two of them as from-to")
            if text:  # parts of a name are parted by a wildcard: people type spaces for carets
                query[FIELDS[name]] = re.sub(r"[\^ ]+", "*", text) if name == "name" else text
        if not query.keys() - {"ModalitiesInStudy"}:
            raise ConfigError("say whom to search for: ID, name, accession number or date")
        found = []
        fields = "StudyDescription,NumberOfStudyRelatedInstances,ModalitiesInStudy"
        for study in self._list(
            "/studies", query | {"limit": str(MOST_FOUND), "includefield": fields}
        ):
            uid = _value(study, "0020000D")
            if is_uid(uid):
                found.append({"uid": uid} | {name: _value(study, t) for name, t in _SHOWN.items()})
        return found[:MOST_FOUND]

    def instances(self, study: str) -> list[str]:
        """Return the paths of a study's images.

        Raises:
            ConfigError: That is no UID.
            PacsError: The archive does not answer as it should.
        """
        if not is_uid(study):
            raise ConfigError("that is no study")
        paths: list[str] = []
        for series in self._list(f"/studies/{study}/series", {}):
            uid = _value(series, "0020000E")
            if _value(series, "00080060") in NO_IMAGES or not is_uid(uid):
                continue
            for instance in self._list(f"/studies/{study}/series/{uid}/instances", {}):
                sop = _value(instance, "00080018")
                if is_uid(sop) and len(paths) < MOST_INSTANCES:
                    paths.append(f"/studies/{study}/series/{uid}/instances/{sop}")
        return paths

    def fetch(self, path: str) -> bytes:
        """Return one object as it is stored.

        Raises:
            PacsError: The archive does not answer as it should.
        """
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        kind, body = self._get(path, {}, accept, OBJECT_BYTES)
        boundary = re.search(r'boundary="?([^";]{1,200})"?', kind)
        if boundary is None:
            raise PacsGarbledError("the archive's answer holds no object")
        mark = b"--" + boundary[1].encode()
        head, _, rest = body.partition(mark)[2].partition(b"\r\n\r\n")
        content, end, _ = rest.partition(b"\r\n" + mark)
        if not end or len(head) > 4096:
            raise PacsGarbledError("the archive's answer ends before its object does")
        return content

    def store(self, data: bytes) -> None:
        """Store an object (STOW-RS).

        Raises:
            PacsError: It was not stored.
        """
        from medqua.serve.pacs.dicomweb import DicomWebArchive  # its library takes a second

        send = DicomWebArchive(
            self.url, self._token(), self.authorities, self.connect_seconds, self.read_seconds
        )
        send(data)

    def _token(self) -> str:
        try:
            return "" if self.token_file is None else self.token_file.read_text().strip()
        except OSError:
            raise PacsRejectedError("the archive's token cannot be read") from None

    def _list(self, path: str, query: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
        _, body = self._get(path, query, "application/dicom+json", ANSWER_BYTES)
        if not body:
            return
        try:
            answer = json.loads(body)
            yield from (entry for entry in answer if isinstance(entry, dict))
        except (ValueError, TypeError, RecursionError):
            raise PacsGarbledError("the archive's answer is no list of objects") from None

    def _get(
        self, path: str, query: Mapping[str, str], accept: str, most: int
    ) -> tuple[str, bytes]:
        headers = {"Accept": accept}
        # wildcards as they are: Orthanc does not know them again when they are percent-encoded
        asked = f"?{urlencode(query, quote_via=quote, safe='*,-')}" if query else ""
        if token := self._token():
            headers["Authorization"] = f"Bearer {token}"
        try:
            with requests.Session() as session:
                session.trust_env = False
                if self.authorities is not None:
                    session.verify = str(self.authorities)
                with session.get(
                    self.url.rstrip("/") + path + asked, headers=headers, stream=True,
                    timeout=(self.connect_seconds, self.read_seconds), allow_redirects=False,
                ) as answer:  # fmt: skip
                    if answer.status_code not in (200, 204):
                        raise PacsRejectedError(f"the archive answered {answer.status_code}")
                    body = bytearray()
                    for chunk in answer.iter_content(1 << 20):
                        body += chunk
                        if len(body) > most:
                            raise PacsGarbledError(f"the archive sends over {most >> 20} MiB")
                    return answer.headers.get("Content-Type", ""), bytes(body)
        except requests.Timeout:
            raise PacsTimeoutError("the archive did not answer in time") from None
        except OSError as error:  # requests' own errors are of this class
            kind = type(error).__name__
            raise PacsUnreachableError(f"the archive cannot be reached ({kind})") from None


def _value(entry: Mapping[str, Any], tag: str) -> str:
    """Return an attribute of DICOM JSON (PS3.18 F) as text; empty where it is not as it must be."""
    try:
        values = entry.get(tag, {}).get("Value", [])
        parts = [v.get("Alphabetic", "") if isinstance(v, dict) else str(v) for v in values]
        return ", ".join(parts)[:256]
    except (AttributeError, TypeError):
        return ""
