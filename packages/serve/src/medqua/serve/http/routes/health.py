"""Whether the service lives, whether it is of use, and its numbers."""

import asyncio
from typing import Any

from fastapi import APIRouter, Depends, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import Response

from medqua.serve.http.documents import problems
from medqua.serve.http.security import Anyone, Requires
from medqua.serve.http.service import json_response, service_of

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="Whether it lives", dependencies=[Depends(Anyone())])
async def healthz() -> dict[str, str]:
    """Return 200 as long as the process answers at all."""
    return {"status": "alive"}


@router.get(
    "/readyz",
    summary="Whether it is of use now",
    dependencies=[Depends(Anyone())],
    responses={503: {"description": "No warm model, or about to end."}},
)
async def readyz(request: Request) -> Response:
    """Return 200 if a worker has read a warm image and the service is not about to end."""
    ready = service_of(request).ready
    return json_response({"status": "ready" if ready else "not ready"}, 200 if ready else 503)


@router.get(
    "/metrics",
    summary="Numbers for Prometheus",
    dependencies=[Depends(Requires("read"))],
    response_class=Response,
    responses={**problems(), 200: {"content": {"text/plain": {}}}},
)
async def metrics(request: Request) -> Response:
    """Return counters, gauges and histograms in the text format of Prometheus."""
    registry = service_of(request).metrics.registry
    body = await asyncio.to_thread(generate_latest, registry)  # some numbers come from the disk
    return Response(body, media_type=CONTENT_TYPE_LATEST)


@router.get(
    "/v1/admin/status",
    summary="The service from within",
    dependencies=[Depends(Requires("admin"))],
    responses=problems(),
)
async def status(request: Request) -> dict[str, Any]:
    """Return processes, queues and provenance."""
    service = service_of(request)
    reader = service.need_reader()
    return {
        "ready": service.ready,
        "draining": service.draining,
        "workers": reader.workers.pids,
        "admitted": reader.batcher.admitted,
        "queued": reader.batcher.queued,
        "door": service.door is not None,
        "outbox": None
        if service.outgoing is None
        else {
            "waiting": service.outgoing.outbox.count_waiting(),
            "dead": service.outgoing.outbox.count_dead(),
        },
        "provenance": dict(reader.model.provenance),
    }


@router.post(
    "/v1/admin/outbox/revive",
    summary="Try again to send what was laid aside",
    dependencies=[Depends(Requires("admin"))],
    responses=problems(404),
)
async def revive(request: Request) -> dict[str, int]:
    """Let objects that were laid aside after their last attempt wait again; return how many."""
    service = service_of(request)
    if service.outgoing is None:
        raise HTTPException(404, "this service sends no reports: set archive.url or archive.host")
    revived = await asyncio.to_thread(service.outgoing.outbox.revive)
    return {"revived": revived}


@router.get(
    "/openapi.json",
    summary="This description",
    dependencies=[Depends(Requires("infer", "read"))],
    include_in_schema=False,
)
async def openapi(request: Request) -> dict[str, Any]:
    """Return the OpenAPI description of the service."""
    described: dict[str, Any] = request.app.openapi()
    return described
