"""`POST /v1/findings`: files in, findings and reports out, in one exchange."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from medqua.core.errors import ConfigError, ImageError
from medqua.serve.http.documents import (
    BINARY,
    FILES_BODY,
    FINDINGS_EXAMPLE,
    FindingsDocument,
    problems,
)
from medqua.serve.http.forms import Form, Written, form_of, respond
from medqua.serve.http.security import Requires
from medqua.serve.http.service import Service, json_response, service_of, tell_audit, unless_gone
from medqua.serve.http.uploads import DeadlineHeader, deadline_of, read_parts
from medqua.serve.jobs.ledger import SUPERSEDED
from medqua.serve.pacs.errors import SpoolError
from medqua.serve.processes.batcher import Priority
from medqua.serve.processes.clerk import ReportError, grounds_of, objects_of, picture_of
from medqua.serve.processes.reader import Answer
from medqua.serve.zip_archive import Part

router = APIRouter(prefix="/v1", tags=["findings"], dependencies=[Depends(Requires("infer"))])

_WITH_RESULTS: dict[str, Any] = {"model": FindingsDocument}


@router.post(
    "/findings",
    summary="Name the findings of chest radiographs",
    response_model=FindingsDocument,
    openapi_extra=FILES_BODY,
    responses={
        **problems(408, 413, 415),
        200: {
            "content": {
                "application/json": {"example": FINDINGS_EXAMPLE},
                **dict.fromkeys(
                    ("application/dicom", "multipart/related", "application/zip"), BINARY
                ),
            }
        },
        406: {"description": "Not in this form, or the report of one file is wanted of several."},
        422: _WITH_RESULTS | {"description": "No file could be used; each has its reason."},
        503: _WITH_RESULTS | {"description": "No file was read, by no fault of theirs."},
        504: _WITH_RESULTS | {"description": "No file was read before its deadline."},
    },
)
async def findings(
    request: Request,
    x_deadline_seconds: DeadlineHeader = None,
    x_priority: Annotated[str, Header(description="urgent, normal or bulk.")] = "normal",
    format: Annotated[
        Form | None,
        Query(description="Form of the answer, where Accept cannot be set: json the findings, sr "
              "the report of one file, multipart the reports, zip the reports and results.json."),
    ] = None,
    send: Annotated[bool, Query(description="Send the reports to the archive too.")] = False,
) -> Response:  # fmt: skip
    """Answer DICOM, JPG or PNG files, or ZIPs of them.

    Each file has its own `status` in the answer: 200 with findings, or 413, 422, 503 or 504 with a
    reason. The answer as a whole is 200 if any file has findings, else the status of the first.

    By `Accept` or `format` the answer is JSON, or the files' reports as DICOM (Comprehensive 3D
    SR); where no file has one, it is JSON in any case. With `send=true` they are on disk when this
    is answered, and sent until the archive has them.
    """
    service = service_of(request)
    form = form_of(request.headers.get("accept", ""), format)
    if send and service.outgoing is None:
        raise HTTPException(422, "no archive is named to send to: set archive.url or archive.host")
    reader = service.need_reader()
    deadline = reader.deadline(deadline_of(request))
    priority = priority_of(x_priority)
    reader.batcher.enter()  # no body is read for a client that will be refused
    reader.batcher.leave()
    parts = await read_parts(request, service.settings.limits)
    if form == "sr" and len(parts) > 1:
        raise HTTPException(406, "the report of one file; ask for multipart/related or a ZIP")
    answers = await unless_gone(request, service.answer(parts, deadline, priority))
    statuses = [answer.status for answer in answers]
    tell_audit(request, [answer.sha256 for answer in answers], statuses)
    reports: list[Written] = []
    if form != "json" or send:
        reports = await unless_gone(request, _reports(service, parts, answers, send=send))
    document = {
        "request_id": request.scope["medqua.request_id"],
        "provenance": dict(reader.model.provenance),
        "results": [answer.to_dict() for answer in answers],
    }
    for told, report in zip(document["results"], reports, strict=False):
        told["report"] = report.to_dict(sent=send)
    if form != "json" and any(report.objects for report in reports):
        response = respond(form, document, reports)
    else:
        status = 200 if 200 in statuses else statuses[0]
        response = json_response(document, 422 if form != "json" and status == 200 else status)
    return response


async def _reports(
    service: Service, parts: Sequence[Part], answers: list[Answer], *, send: bool
) -> list[Written]:
    """Write the reports of a request, and have them sent if asked for.

    The findings of a report that was made before are those that it told; `answers` has them then.

    Raises:
        HTTPException: 503, they cannot be kept for sending.
    """
    arrived, now = time.time(), datetime.now().astimezone().isoformat()
    provenance = dict(service.need_reader().model.provenance)
    reports = []
    for number, (part, answer) in enumerate(zip(parts, answers, strict=True)):
        if answer.status != 200 or part.content is None:
            reports.append(Written(reason="the file has no findings"))
            continue
        told, clerk, settings = answer.to_dict(), service.clerk, service.settings.report
        try:
            grounds = await clerk.do(grounds_of, part.content, provenance, settings.device, now)
            if service.jobs is not None:
                entered = await asyncio.to_thread(
                    service.jobs.reports.enter, told, grounds, arrived, send=send
                )
                if entered is None:
                    reports.append(Written(reason=SUPERSEDED))
                    continue
                told, grounds = entered
                findings = tuple(told["findings"])
                answers[number] = replace(answer, findings=findings, quantum=told["quantum"])
            picture = await clerk.do(picture_of, part.content) if settings.capture else None
            objects = await clerk.do(objects_of, told, grounds, picture, settings.key_object)
            if send and service.outgoing is not None:
                await service.outgoing.put([content for _, content in objects])
        except (ImageError, ReportError) as error:
            reports.append(Written(reason=str(error)))
        except SpoolError as error:
            raise HTTPException(503, str(error), {"Retry-After": "60"}) from None
        else:
            reports.append(Written(tuple(objects)))
    return reports


def priority_of(word: str) -> Priority:
    """Return the priority that a client names.

    Raises:
        ConfigError: There is none of this name.
    """
    try:
        return Priority[word.upper()]
    except KeyError:
        raise ConfigError("X-Priority: give urgent, normal or bulk") from None
