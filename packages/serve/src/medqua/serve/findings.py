"""`POST /v1/findings`: files in, findings out, in one exchange."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request
from starlette.responses import Response

from medqua.core.errors import ConfigError
from medqua.serve.batcher import Priority
from medqua.serve.documents import FILES_BODY, FINDINGS_EXAMPLE, FindingsDocument, problems
from medqua.serve.security import Requires
from medqua.serve.service import json_response, service_of, unless_gone
from medqua.serve.uploads import deadline_of, read_parts

router = APIRouter(prefix="/v1", tags=["findings"], dependencies=[Depends(Requires("infer"))])

_WITH_RESULTS: dict[str, Any] = {"model": FindingsDocument}


@router.post(
    "/findings",
    summary="Name the findings of chest radiographs",
    response_model=FindingsDocument,
    openapi_extra=FILES_BODY,
    responses={
        **problems(408, 413, 415),
        200: {"content": {"application/json": {"example": FINDINGS_EXAMPLE}}},
        422: _WITH_RESULTS | {"description": "No file could be used; each has its reason."},
        503: _WITH_RESULTS | {"description": "No file was read, by no fault of theirs."},
        504: _WITH_RESULTS | {"description": "No file was read before its deadline."},
    },
)
async def findings(
    request: Request,
    x_deadline_seconds: Annotated[
        float | None, Header(description="Seconds in which the answer is of use.", ge=1)
    ] = None,
    x_priority: Annotated[str, Header(description="urgent, normal or bulk.")] = "normal",
) -> Response:
    """Answer DICOM, JPG or PNG files, or ZIPs of them.

    Each file has its own `status` in the answer: 200 with findings, or 413, 422, 503 or 504 with a
    reason. The answer as a whole is 200 if any file has findings, else the status of the first.
    """
    service = service_of(request)
    reader = service.need_reader()
    deadline = reader.deadline(deadline_of(request))
    priority = priority_of(x_priority)
    reader.batcher.enter()  # no body is read for a client that will be refused
    reader.batcher.leave()
    parts = await read_parts(request, service.settings.limits)
    answers = await unless_gone(request, service.answer(parts, deadline, priority))
    statuses = [answer.status for answer in answers]
    document = {
        "request_id": request.scope["medqua.request_id"],
        "provenance": dict(reader.model.provenance),
        "results": [answer.to_dict() for answer in answers],
    }
    response = json_response(document, 200 if 200 in statuses else statuses[0])
    hashes = [answer.sha256 for answer in answers]
    await service.record(request, hashes, statuses, bytes(response.body))
    return response


def priority_of(word: str) -> Priority:
    """Return the priority that a client names.

    Raises:
        ConfigError: There is none of this name.
    """
    try:
        return Priority[word.upper()]
    except KeyError:
        raise ConfigError("X-Priority: give urgent, normal or bulk") from None
