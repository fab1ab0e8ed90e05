"""`/v1/jobs`: files in now, answers later, through whatever happens in between."""

import asyncio
import hashlib
import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from medqua.core.errors import ImageError
from medqua.serve.http.documents import BINARY, FILES_BODY, JOB_EXAMPLE, JobDocument, problems
from medqua.serve.http.forms import Written, zipped
from medqua.serve.http.security import Identity, Requires
from medqua.serve.http.service import Service, json_response, service_of, tell_audit
from medqua.serve.http.uploads import read_parts
from medqua.serve.jobs.store import Job, JobStore, KeyReusedError, SpoolFullError
from medqua.serve.processes.clerk import ReportError, report_of

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

Infer = Annotated[Identity, Depends(Requires("infer"))]
JobId = Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="As POST /v1/jobs gave it.")]
_EXAMPLE = {"content": {"application/json": {"example": JOB_EXAMPLE}}}


@router.post(
    "",
    status_code=202,
    summary="Leave files to be answered later",
    response_model=JobDocument,
    openapi_extra=FILES_BODY,
    responses={**problems(404, 408, 413, 415, 422, 503), 202: _EXAMPLE},
)
async def create(
    request: Request,
    identity: Infer,
    idempotency_key: Annotated[
        str | None,
        Header(description="Name of this request: sent again, it makes no second job.",
               min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+$"),
    ] = None,
    send: Annotated[bool, Query(description="Send the reports to the archive.")] = False,
) -> Response:  # fmt: skip
    """Accept files. Once 202 is answered they are on disk, and will be answered once each."""
    service, store = service_of(request), _store(request)
    if send and service.outgoing is None:
        raise HTTPException(422, "no archive is named to send to: set archive.url or archive.host")
    parts = await read_parts(request, service.settings.limits)
    hashes = [hashlib.sha256(part.content or b"").hexdigest() for part in parts]
    tell_audit(request, hashes, [])
    try:
        job, _ = await asyncio.to_thread(
            store.accept, identity.name, parts, idempotency_key, send=send
        )
    except KeyReusedError as error:
        raise HTTPException(422, str(error)) from None
    except SpoolFullError as error:
        raise HTTPException(429, str(error), {"Retry-After": "60"}) from None
    if service.runner is not None:
        service.runner.wake()
    response = json_response(job.to_dict(), 202)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return response


@router.get(
    "/{job}",
    summary="See how far a job is",
    response_model=JobDocument,
    responses={**problems(404, 422), 200: _EXAMPLE},
)
async def progress(request: Request, identity: Infer, job: JobId) -> Response:
    """Return how many files of a job are answered."""
    return json_response((await _find(request, identity, job)).to_dict())


@router.get(
    "/{job}/results",
    summary="Get the answers of a finished job",
    response_class=Response,
    responses={
        **problems(404, 409, 422),
        200: {
            "description": "One answer a file, in the order of the files.",
            "content": {
                "application/jsonl": {"schema": {"type": "string"}},
                "application/vnd.apache.parquet": {
                    "schema": {"type": "string", "format": "binary"}
                },
                "application/zip": BINARY,
            },
        },
    },
)
async def results(
    request: Request,
    identity: Infer,
    job: JobId,
    format: Annotated[
        Literal["jsonl", "parquet", "sr"], Query(description="Form of them; sr is a ZIP.")
    ] = "jsonl",
) -> Response:
    """Return the answers as JSON lines, as a Parquet table, or as a ZIP of DICOM reports."""
    found = await _find(request, identity, job)
    if found.finished is None:
        raise HTTPException(
            409, f"{found.answered} of {found.files} files are answered", {"Retry-After": "5"}
        )
    service, store = service_of(request), _store(request)
    answers = await asyncio.to_thread(store.results, job)
    statuses = [answer["status"] for answer in answers]
    tell_audit(request, [answer["sha256"] for answer in answers], statuses)
    if format == "jsonl":
        body = "".join(json.dumps(answer) + "\n" for answer in answers).encode()
        response = Response(body, media_type="application/jsonl")
    elif format == "sr":
        response = Response(await _reports(service, job, answers), media_type="application/zip")
    else:
        from medqua.serve.jobs.tables import parquet, tabulate

        model = service.need_reader().model
        body = await asyncio.to_thread(
            lambda: parquet(tabulate(answers, model.labels), model.provenance)
        )
        response = Response(body, media_type="application/vnd.apache.parquet")
    return response


@router.delete("/{job}", status_code=204, summary="Forget a job", responses=problems(404, 422))
async def delete(request: Request, identity: Infer, job: JobId) -> Response:
    """Delete a job with its files and answers, finished or not."""
    await _find(request, identity, job)
    await asyncio.to_thread(_store(request).delete, job)
    return Response(status_code=204)


async def _reports(service: Service, job: str, answers: list[dict[str, Any]]) -> bytes:
    """Return a ZIP of the reports of a job, and of `results.json`, which names them."""
    grounds = await asyncio.to_thread(_jobs(service).grounds, job)
    reports = []
    for answer, ground in zip(answers, grounds, strict=True):
        if ground is None:
            reports.append(Written(reason="no findings, or no DICOM image with UIDs"))
            continue
        try:
            reports.append(Written((await service.clerk.do(report_of, answer, ground),)))
        except (ImageError, ReportError) as error:
            reports.append(Written(reason=str(error)))
        answer["report"] = reports[-1].to_dict(sent=False)["sop_instance_uid"]
    return await asyncio.to_thread(zipped, answers, reports)


def _store(request: Request) -> JobStore:
    return _jobs(service_of(request))


def _jobs(service: Service) -> JobStore:
    store = service.jobs
    if store is None:
        raise HTTPException(503, "this service keeps no jobs: set storage.spool")
    return store


async def _find(request: Request, identity: Identity, job: str) -> Job:
    """Return a job of the caller, or of anyone for an admin."""
    owner = None if identity.may("admin") else identity.name
    found = await asyncio.to_thread(_store(request).job, job, owner)
    if found is None:
        raise HTTPException(404, "no such job of yours")
    return found
