"""Findings from a running service (`serve:app`) instead of a model in this process.

    medqua-ui --server https://engine.example --server-key-file /etc/medqua/key

The service is asked by `POST /v1/explanation`, or where it runs an export, which has none, by
`POST /v1/findings`; with an API key or a bearer token. A file that it refuses is a reading with its
reason; a service that does not answer is an `EngineUnavailableError`, and the file is asked about
again once it does.
"""

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests

from medqua.core.errors import ConfigError, MedQuaError
from medqua.core.findings.domain import UNJUDGED
from medqua.core.findings.labels import Code
from medqua.core.findings.result import Finding, Findings
from medqua.core.findings.validation import Validation
from medqua.core.vision.image import ImageSpec
from medqua.ui.findings import Reading, Row

if TYPE_CHECKING:
    from medqua.serve.inference.explain import Occlusion

KEY_VARIABLE, TOKEN_VARIABLE = "MEDQUA_SERVER_KEY", "MEDQUA_SERVER_TOKEN"
ASK_EVERY = 2.0
"""Seconds for which what the service said of its health is believed."""

NOT_EXPLAINED = (404, 501)
"""HTTP statuses of a service that explains nothing: an older one, or of an export."""

GARBLED = (ValueError, KeyError, TypeError, AttributeError, IndexError)
NO_SERVICE = "What answers under --server is no MedQua service of this version."

LATER = (408, 429, 499, 500, 502, 503, 504)
"""HTTP statuses that are no fault of the file."""


class EngineUnavailableError(MedQuaError, RuntimeError):
    """The engine does not answer now; it is worth asking again."""


@dataclass(frozen=True)
class Credentials:
    """What the viewer shows the service. A file is read again for each request: tokens end."""

    key: Path | str = ""
    """API key, or the file that holds it."""
    token: Path | str = ""
    """Bearer token of the identity provider, or the file that holds it."""

    @classmethod
    def choose(cls, key_file: Path | None, token_file: Path | None) -> "Credentials":
        """Take the files that are named, else `MEDQUA_SERVER_KEY`, else `MEDQUA_SERVER_TOKEN`.

        Raises:
            ConfigError: Both files are named, or one cannot be read.
        """
        if key_file and token_file:
            raise ConfigError("give --server-key-file or --server-token-file, not both")
        if not (key_file or token_file):
            key = os.environ.get(KEY_VARIABLE, "")
            return cls(key, "" if key else os.environ.get(TOKEN_VARIABLE, ""))
        chosen = cls(key_file or "", token_file or "")
        try:
            chosen.headers()
        except OSError as error:
            raise ConfigError(
                f"{key_file or token_file} cannot be read ({error.strerror}): give a file that "
                "holds the key or token alone"
            ) from None
        return chosen

    def headers(self) -> dict[str, str]:
        """Return the headers of a request.

        Raises:
            OSError: A file cannot be read.
        """
        if key := _text(self.key):
            return {"X-API-Key": key}
        token = _text(self.token)
        return {"Authorization": f"Bearer {token}"} if token else {}


class ServerReader:
    """A service that reads files, asked over HTTP.

    Args:
        url: Its base, such as `https://engine.example:8443`.
        credentials: Key or token.
        authorities: Certificate authorities, PEM; the system's by default.
        seconds: Wait for an answer, in seconds.

    Raises:
        ConfigError: The URL is none, or would send a key in the clear to another machine.
    """

    def __init__(
        self,
        url: str,
        credentials: Credentials | None = None,
        *,
        authorities: Path | None = None,
        seconds: float = 90.0,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise ConfigError(f"--server {url!r} is no address; give one as http://127.0.0.1:8080")
        if parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
            raise ConfigError(
                "--server is another machine by http: images and keys would travel in the clear; "
                "give its https address"
            )
        self._url, self._seconds = url.rstrip("/"), seconds
        self._credentials = credentials or Credentials()
        self._verify: bool | str = True if authorities is None else str(authorities)
        self._lock = threading.Lock()
        self._state, self._asked = "", float("-inf")

    @property
    def state(self) -> str:
        """Empty when ready, else a sentence why it is not; asks the service now and then."""
        with self._lock:
            if time.monotonic() - self._asked >= ASK_EVERY:
                try:
                    status = self._request("GET", "/readyz", timeout=3.0).status_code
                    self._state = "" if status == 200 else "The engine is not ready yet."
                except EngineUnavailableError as error:
                    self._state = str(error)
                self._asked = time.monotonic()
            return self._state

    def read(self, file: str, content: bytes) -> Reading:
        """Read one file. Its name stays here: names may tell who the patient is.

        Raises:
            EngineUnavailableError: The service does not answer now.
        """
        start = time.monotonic()
        answer = self._ask("/v1/explanation", content)
        if answer.status_code in NOT_EXPLAINED:
            answer = self._ask("/v1/findings", content)
        try:
            document = answer.json()
            if "error" in document:
                return self._without(answer.status_code, str(document["error"]))
            result = document["result"] if "result" in document else document["results"][0]
            told = document.get("explanation")
            return _reading(result, document["provenance"], told, time.monotonic() - start)
        except (*GARBLED, ConfigError):
            raise EngineUnavailableError(NO_SERVICE) from None

    def occlude(self, content: bytes, size: tuple[int, int]) -> "Occlusion | None":
        """Have one region after another covered; None if the file or the service does not allow it.

        Raises:
            EngineUnavailableError: The service does not answer now.
        """
        answer = self._ask("/v1/explanation", content, {"rows": size[0], "columns": size[1]})
        if answer.status_code in LATER:
            raise EngineUnavailableError("The engine is busy; it will be asked again.")
        if answer.status_code != 200:
            return None
        from medqua.serve.inference.maps import occlusion_from_dict

        try:
            return occlusion_from_dict(answer.json()["explanation"])
        except GARBLED:
            raise EngineUnavailableError(NO_SERVICE) from None

    def _ask(
        self, path: str, content: bytes, query: Mapping[str, int] | None = None
    ) -> requests.Response:
        answer = self._request(
            "POST",
            path,
            data=content,
            query=query,
            headers={"Content-Type": "application/octet-stream"},
            timeout=self._seconds,
        )
        if answer.status_code in (401, 403):
            raise EngineUnavailableError(
                "The engine does not take the viewer's key or token: give another with "
                "--server-key-file or --server-token-file."
            )
        return answer

    def _without(self, status: int, reason: str) -> Reading:
        if status in LATER:
            raise EngineUnavailableError("The engine is busy; it will be asked again.")
        return Reading((), reason, (), {}, 0.0)

    def _request(
        self,
        method: str,
        path: str,
        *,
        timeout: float,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, int] | None = None,
    ) -> requests.Response:
        try:
            with requests.Session() as session:
                session.trust_env = False  # no proxy sees images
                session.verify = self._verify
                told = {**(headers or {}), **self._credentials.headers()}
                return session.request(
                    method, self._url + path, data=data, headers=told, params=query,
                    timeout=(3.0, timeout), allow_redirects=False,
                )  # fmt: skip
        except OSError as error:  # requests' own errors are of this class
            kind = type(error).__name__
            raise EngineUnavailableError(
                f"The engine cannot be reached ({kind}); it will be asked again."
            ) from None


def _reading(
    result: Mapping[str, Any],
    provenance: Mapping[str, Any],
    explanation: Mapping[str, Any] | None,
    seconds: float,
) -> Reading:
    """Turn one file's answer into a reading.

    Raises:
        EngineUnavailableError: It was not read, by no fault of its own.
    """
    told = {
        "Bundle": str(provenance.get("bundle", ""))[:12],
        "Backbone": Path(str(provenance.get("backbone", ""))).name,
        "Image profile": str(provenance.get("profile", "")),
        "Quantum engine": ", ".join(provenance.get("engines", ())) or "none",
        "Calibrated": "yes" if provenance.get("calibrated") else "no",
        "Trained on": str(provenance.get("domain", "not stated")),
        "Intended use": str(provenance.get("intended_use", "")),
    }
    notes = tuple(map(str, result["notes"]))
    if result["findings"] is None:
        if result["status"] in LATER:
            raise EngineUnavailableError("The engine is busy; it will be asked again.")
        return Reading((), str(result["refusal"]["reason"]), notes, told, seconds)
    findings = Findings(
        tuple(
            Finding(
                str(finding["label"]),
                None if finding["code"] is None else Code(**finding["code"]),
                float(finding["logit"]),
                float(finding["probability"]),
                finding.get("call", "not judged"),
            )
            for finding in result["findings"]
        )
    )
    record = dict(provenance)
    if explanation is None:
        rows = tuple(Row(f.label, f.probability, None, f.call) for f in findings)
        return Reading(rows, "", notes, told, seconds, findings, record, service=True)
    from medqua.serve.inference.maps import routes_from_dict  # torch, once

    classical, validation = explanation["classical"], explanation["validation"]
    others = [None] * len(findings) if classical is None else [c["probability"] for c in classical]
    known = (None,) * len(findings)
    validated = (
        known
        if validation is None or UNJUDGED in notes
        else Validation.from_dict(validation).labels
    )
    rows = tuple(
        Row(finding.label, finding.probability, other and float(other), finding.call, label)
        for finding, other, label in zip(findings, others, validated, strict=True)
    )
    routes = explanation["routes"] and routes_from_dict(explanation["routes"])
    image = ImageSpec.from_dict(explanation["image"])
    return Reading(rows, "", notes, told, seconds, findings, record, routes, image)


def _text(source: Path | str) -> str:
    return (source.read_text() if isinstance(source, Path) else source).strip()
