"""`POST /v1/explanation`: one file in; its findings out, and how they came about."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from medqua.core.errors import MedQuaError
from medqua.serve.http.documents import FILES_BODY, ExplanationDocument, problems
from medqua.serve.http.security import Requires
from medqua.serve.http.service import json_response, service_of, tell_audit, unless_gone
from medqua.serve.http.uploads import DeadlineHeader, deadline_of, read_parts
from medqua.serve.processes.reader import refused

router = APIRouter(prefix="/v1", tags=["findings"], dependencies=[Depends(Requires("infer"))])

NOT_HERE = (
    "this service runs an export, which does not tell how its answers come about; have it serve "
    "the bundle"
)

_WITH_RESULT: dict[str, Any] = {"model": ExplanationDocument}


@router.post(
    "/explanation",
    summary="Name the findings of one chest radiograph, and tell how they came about",
    response_model=ExplanationDocument,
    openapi_extra=FILES_BODY,
    responses={
        **problems(408, 413, 415),
        422: _WITH_RESULT | {"description": "The file cannot be used, for the reason told."},
        501: {"description": "The service runs an export, which does not tell."},
        503: _WITH_RESULT | {"description": "It was not read, by no fault of the file."},
        504: _WITH_RESULT | {"description": "It was not read before its deadline."},
    },
)
async def explanation(
    request: Request,
    x_deadline_seconds: DeadlineHeader = None,
    rows: Annotated[
        int | None,
        Query(description="With columns: cover regions of the file, which has so many rows, in "
              "turn, and tell how the findings change (occlusion sensitivity).", ge=1, le=65535),
    ] = None,
    columns: Annotated[int | None, Query(description="Columns of it.", ge=1, le=65535)] = None,
) -> Response:  # fmt: skip
    """Answer one DICOM, JPG or PNG file, read alone.

    `explanation` has `classical`, the findings with the quantum path taken away; `routes`, what
    each adapter did with each visual token of the image; `validation`, what findings of such
    probabilities were worth in validation; `image`, how the file became the model's image. With
    `rows` and `columns` it has the occlusion map alone.
    """
    service = service_of(request)
    reader = service.need_reader()
    if not reader.model.explains:
        raise HTTPException(501, NOT_HERE)
    if (rows is None) != (columns is None):
        raise HTTPException(422, "give both rows and columns, or none")
    deadline = reader.deadline(deadline_of(request))
    parts = await read_parts(request, service.settings.limits)
    if len(parts) > 1:
        raise HTTPException(413, f"{len(parts)} files; send one")
    (part,) = parts
    told: dict[str, Any] | None = None
    if part.content is None:
        answer = refused(part.name, 422, part.refusal or MedQuaError("no content"))
    else:
        covering = None if rows is None or columns is None else (rows, columns)
        answer, told = await unless_gone(request, reader.explain(part.content, deadline, covering))
    document = {
        "request_id": request.scope["medqua.request_id"],
        "provenance": dict(reader.model.provenance),
        "result": answer.to_dict() | {"source": part.name},
        "explanation": told,
    }
    tell_audit(request, [answer.sha256], [answer.status])
    return json_response(document, answer.status)
