"""DICOMweb STOW-RS in (PS3.18 10.5): images come by HTTP, their reports go back to the archive.

An object counts as stored when it is on disk and will be answered. This is no archive: what came
in is read once and deleted, and cannot be retrieved.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from medqua.core.errors import ImageError
from medqua.serve.http.documents import DICOM_BODY, STORED_EXAMPLE, problems
from medqua.serve.http.related import DICOM, read_related
from medqua.serve.http.security import Requires
from medqua.serve.http.service import json_response, service_of, tell_audit
from medqua.serve.jobs.incoming import Inbox
from medqua.serve.objects.heads import Head, read_head
from medqua.serve.objects.identity import is_uid
from medqua.serve.pacs.dimse import IMAGES
from medqua.serve.pacs.errors import SpoolError

ANSWER = "application/dicom+json"
_JSON = (ANSWER, "application/json", "application/*", "*/*")

OUT_OF_RESOURCES = 0xA700
OTHER_STUDY = 0xA900
"""Data Set does not match SOP Class; also of an instance that is not of the study of the URL."""
NOT_UNDERSTOOD = 0xC000
CLASS_NOT_SUPPORTED = 0x0122
ELEMENTS_DISCARDED = 0xB006
"""A warning: an object of ours, which is not read."""

router = APIRouter(
    prefix="/dicom-web", tags=["dicomweb"], dependencies=[Depends(Requires("infer"))]
)
_TOLD: dict[int | str, dict[str, Any]] = {
    **problems(408, 413, 415, 503),
    200: {
        "description": "All are stored, and will be answered.",
        "content": {ANSWER: {"schema": {"type": "object"}, "example": STORED_EXAMPLE}},
    },
    202: {"description": "Some failed, or have warnings; the body says which and why."},
    406: {"description": f"Answers are {ANSWER}."},
    409: {"description": "All failed; the body says why."},
}


@dataclass(frozen=True)
class Stored:
    """What became of one object."""

    head: Head
    """Its identity."""
    failure: int = 0
    """Failure Reason (0008,1197), 0 if it is stored."""
    warning: int = 0
    """Warning Reason (0008,1196), 0 for none."""


@router.post(
    "/studies",
    summary="Store images (STOW-RS): their reports go to the archive",
    response_class=Response,
    openapi_extra=DICOM_BODY,
    responses=_TOLD,
)
async def store(request: Request) -> Response:
    """Take DICOM objects in. What 200 or 202 names as stored is on disk, and is answered once."""
    return await _store(request, None)


@router.post(
    "/studies/{study}",
    summary="Store images of one study (STOW-RS)",
    response_class=Response,
    openapi_extra=DICOM_BODY,
    responses=_TOLD,
)
async def store_study(
    request: Request,
    study: Annotated[str, Path(description="Study instance UID.", max_length=64)],
) -> Response:
    """Take DICOM objects in that are of this study; others fail."""
    if not is_uid(study):
        raise HTTPException(400, "the study of the URL is no UID")
    return await _store(request, study)


async def _store(request: Request, study: str | None) -> Response:
    service = service_of(request)
    accepted = request.headers.get("accept", "*/*").split(",")
    if not any(kind.split(";")[0].strip().lower() in _JSON for kind in accepted):
        raise HTTPException(406, f"answers are {ANSWER}")
    if service.inbox is None:
        raise HTTPException(404, "no archive is named for reports: set archive.url or archive.host")
    kind = request.headers.get("content-type", "")
    if kind.split(";")[0].strip().lower() == DICOM:
        objects = [await request.body()]
    else:
        objects = await read_related(kind, request.stream(), service.settings.limits)
    if not any(objects):
        raise HTTPException(400, "no object in the request; send at least one")
    hashes = [hashlib.sha256(data).hexdigest() for data in objects]
    stored = [await asyncio.to_thread(take, service.inbox, data, study) for data in objects]
    failed = [one for one in stored if one.failure]
    if len(failed) == len(stored):
        full = all(one.failure == OUT_OF_RESOURCES for one in failed)
        status, headers = (503, {"Retry-After": "60"}) if full else (409, {})
    else:
        whole = not failed and not any(one.warning for one in stored)
        status, headers = 200 if whole else 202, {}
    response = json_response(document(stored), status)
    response.headers.update({**headers, "Content-Type": ANSWER})
    outcome = [one.failure or one.warning or 200 for one in stored]
    tell_audit(request, hashes, outcome)
    return response


def take(inbox: Inbox, data: bytes, study: str | None) -> Stored:
    """Take one object in.

    Args:
        inbox: Where it goes.
        data: The object.
        study: What its study instance UID must be; None takes any.
    """
    try:
        head = read_head(data)
    except ImageError:
        return Stored(Head("", "", "", False), NOT_UNDERSTOOD)
    if not (head.sop_class and head.instance and head.study):
        return Stored(head, NOT_UNDERSTOOD)
    if study is not None and head.study != study:
        return Stored(head, OTHER_STUDY)
    if head.own:
        return Stored(head, warning=ELEMENTS_DISCARDED)
    if head.sop_class not in IMAGES:
        return Stored(head, CLASS_NOT_SUPPORTED)
    try:
        inbox.put(data)
    except SpoolError:
        return Stored(head, OUT_OF_RESOURCES)
    return Stored(head)


def document(stored: Sequence[Stored]) -> dict[str, Any]:
    """Return the Store Instances Response Module in DICOM's JSON (PS3.18, annex I.2)."""
    taken, failed = [], []
    for one in stored:
        item = {
            "00081150": _value("UI", one.head.sop_class),
            "00081155": _value("UI", one.head.instance),
        }
        if one.failure:
            failed.append({**item, "00081197": _value("US", one.failure)})
        elif one.warning:
            taken.append({**item, "00081196": _value("US", one.warning)})
        else:
            taken.append(item)
    told: dict[str, Any] = {"00081190": {"vr": "UR"}}  # nothing can be retrieved
    if taken:
        told["00081199"] = {"vr": "SQ", "Value": taken}
    if failed:
        told["00081198"] = {"vr": "SQ", "Value": failed}
    return told


def _value(vr: str, value: str | int) -> dict[str, Any]:
    return {"vr": vr, "Value": [value]} if value else {"vr": vr}
