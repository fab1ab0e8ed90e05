"""In which form a client wants its answer: as JSON, or with reports as DICOM.

Accept                                          format      answer
application/json, or none                       json        the findings
application/dicom                               sr          the report of one file
multipart/related; type="application/dicom"     multipart   the reports of all files
application/zip                                 zip         the reports, and results.json
"""

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from starlette.exceptions import HTTPException
from starlette.responses import Response

from medqua.serve.http.related import DICOM, write_related

Form = Literal["json", "sr", "multipart", "zip"]
FORMS: tuple[Form, ...] = get_args(Form)

_OF: dict[str, Form] = {
    "application/json": "json",
    "application/*": "json",
    "*/*": "json",
    DICOM: "sr",
    "multipart/related": "multipart",
    "application/zip": "zip",
}


@dataclass(frozen=True)
class Written:
    """A written report, or why a file has none."""

    objects: tuple[tuple[str, bytes], ...] = ()
    """SOP instance UID and DICOM file of the report, then of what comes with it."""
    reason: str = ""
    """Why there is none."""

    def to_dict(self, *, sent: bool) -> dict[str, Any]:
        """Return plain JSON values."""
        if not self.objects:
            return {"sop_instance_uid": None, "queued": False, "reason": self.reason}
        return {"sop_instance_uid": self.objects[0][0], "queued": sent, "reason": None}


def form_of(accept: str, named: Form | None) -> Form:
    """Return the form that a client wants.

    Args:
        accept: Its Accept header (RFC 9110, 12.5.1).
        named: Its parameter `format`, which goes before the header.

    Raises:
        HTTPException: 406, none that can be given.
    """
    if named is not None:
        return named
    wanted: list[tuple[float, Form]] = []
    for entry in accept.split(",") if accept.strip() else ["*/*"]:
        kind, *parameters = (part.strip().lower() for part in entry.split(";"))
        told = dict(parameter.partition("=")[::2] for parameter in parameters)
        if kind not in _OF or told.get("type", DICOM).strip('"') != DICOM:
            continue
        try:
            weight = float(told.get("q", "1"))
        except ValueError:
            weight = 0.0
        if weight > 0:
            wanted.append((weight, _OF[kind]))
    if not wanted:
        raise HTTPException(
            406,
            f'give Accept as application/json, {DICOM}, multipart/related; type="{DICOM}", '
            "or application/zip",
        )
    return max(wanted, key=lambda entry: entry[0])[1]


def respond(form: Form, document: dict[str, Any], reports: Sequence[Written]) -> Response:
    """Return reports in a form other than JSON.

    Args:
        form: Which.
        document: What the JSON answer would be; a ZIP holds it too.
        reports: Of each file, in order.
    """
    written = {uid: content for report in reports for uid, content in report.objects}
    if form == "sr":
        return Response(next(iter(written.values())), media_type=DICOM)
    if form == "multipart":
        body, kind = write_related(list(written.values()))
        return Response(body, headers={"Content-Type": kind})
    return Response(zipped(document, reports), media_type="application/zip")


def zipped(document: Any, reports: Sequence[Written]) -> bytes:
    """Return a ZIP of `results.json` and of the objects, named by their SOP instance UIDs."""
    stream = io.BytesIO()
    written = {uid: content for report in reports for uid, content in report.objects}
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("results.json", json.dumps(document, allow_nan=False, indent=1))
        for uid, content in written.items():
            archive.writestr(f"{uid}.dcm", content)
    return stream.getvalue()
