"""The service as an ASGI app.

    app = create_app(Path("runs/mimic/bundle"), Settings.load(Path("serve.toml")))

Routes are in `findings`, `job_routes`, `inference_protocol` and `health`; what all requests pass
first is in `guard`, and who may call what in `security`.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from medqua.core.errors import ConfigError, MedQuaError
from medqua.serve.audit import AuditError, AuditLog, Repository
from medqua.serve.http.guard import Guard, problem
from medqua.serve.http.metrics import log
from medqua.serve.http.routes import explanation, findings, health, inference_protocol, stow
from medqua.serve.http.routes import jobs as job_routes
from medqua.serve.http.security import check_routes, make_authenticator
from medqua.serve.http.service import ClientGoneError, Service
from medqua.serve.jobs.incoming import Audited, Inbox, open_door, waker
from medqua.serve.jobs.outgoing import Outgoing
from medqua.serve.jobs.runner import JobRunner
from medqua.serve.jobs.store import JobStore
from medqua.serve.pacs.dimse import Keeps
from medqua.serve.processes.batcher import OverloadError
from medqua.serve.processes.reader import Reader
from medqua.serve.processes.workers import Workers
from medqua.serve.settings import Settings


def create_app(
    directory: Path,
    settings: Settings | None = None,
    *,
    routers: Sequence[APIRouter] = (),
    workers: Workers | None = None,
) -> FastAPI:
    """Build the app; the model is opened when it starts.

    Args:
        directory: Bundle or export.
        settings: How it is run; by default on loopback, without spool and audit log.
        routers: More routes; each must say who may call it.
        workers: Of this model and these settings, launched while the app is built.

    Raises:
        ConfigError: A route does not say who may call it.
    """
    settings = settings or Settings()
    service = Service(settings)
    app = FastAPI(
        title="MedQua",
        version=version("medqua-serve"),
        summary="Calibrated findings of chest radiographs. Research use only, not for diagnosis.",
        lifespan=lambda app: _running(service, directory, workers),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.state.service = service
    app.state.authenticator = make_authenticator(settings)
    ours = (findings, explanation, job_routes, stow, inference_protocol, health)
    for router in (*(module.router for module in ours), *routers):
        app.router.routes.extend(router.routes)  # plain routes, so that `check_routes` sees each
    app.add_middleware(
        Guard, settings=settings, ended=service.metrics.ended, record=service.write_down
    )
    app.add_exception_handler(OverloadError, _overloaded)
    app.add_exception_handler(ConfigError, _mistaken)
    app.add_exception_handler(ClientGoneError, _gone)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(ExceptionGroup, _grouped)
    app.add_exception_handler(Exception, _defect)
    check_routes(app)
    return app


@asynccontextmanager
async def _running(
    service: Service, directory: Path, workers: Workers | None
) -> AsyncIterator[None]:
    """Open what the service needs, and close it in the opposite order."""
    settings = service.settings
    storage = settings.storage
    try:
        if storage.audit is not None:
            service.audit = AuditLog(storage.audit)
            if storage.audit_repository:
                service.repository = Repository(
                    storage.audit, storage.audit_repository, settings.report.device,
                    storage.audit_authorities,
                )  # fmt: skip
                service.metrics.watch_repository(service.repository)
            service.audit.record_activity("start")
        if storage.spool is not None:
            service.jobs = JobStore(storage.spool, storage.spool_bytes)
        observer = service.metrics.observer()
        async with Reader.open(directory, settings, observer, workers) as reader:
            service.reader = reader
            service.metrics.watch(reader)
            try:
                await _open_doors(service, reader)
                yield
            finally:
                service.draining = True
                await _close_doors(service)
    except MedQuaError as error:
        service.failure = error
        raise
    finally:
        service.clerk.close()
        if service.jobs is not None:
            service.jobs.close()
        if service.audit is not None:
            try:
                service.audit.record_activity("stop")
            except AuditError as error:
                log.error("the end is not in the audit log", extra={"told": {"error": str(error)}})
            if service.repository is not None:
                await asyncio.to_thread(service.repository.close)
            service.audit.close()


async def _open_doors(service: Service, reader: Reader) -> None:
    """Begin to answer jobs, to send reports, and to take images from the archive."""
    settings, store = service.settings, service.jobs
    if store is None:
        return
    if settings.archive.named:
        service.outgoing = Outgoing(settings, store, service.clerk, service.audit)
        service.metrics.watch_outgoing(service.outgoing)
        service.clerk.start()
    keep = 3600 * settings.storage.keep_hours
    service.runner = JobRunner(store, reader, service.clerk, service.outgoing, keep)
    service.runner.start()
    service.metrics.watch_jobs(store, service.runner)
    if service.outgoing is not None:
        service.inbox = Inbox(store, waker(service.runner.wake))
        if settings.door.peers:
            kept: Keeps = service.inbox
            if service.audit is not None:
                kept = Audited(service.inbox, service.audit)
            service.door = open_door(kept, settings)
            told = {"host": settings.door.host, "port": service.door.port}
            log.info("door open", extra={"told": told})


async def _close_doors(service: Service) -> None:
    """Take nothing more in, then stop reading, then stop sending; what waits is on disk."""
    if service.door is not None:
        await asyncio.to_thread(service.door.close)
    if service.runner is not None:
        await service.runner.close()
    if service.outgoing is not None:
        await service.outgoing.close()


async def _overloaded(request: Request, error: Exception) -> Response:
    seconds = error.retry_after if isinstance(error, OverloadError) else 1
    return problem(429, str(error), {"Retry-After": str(seconds)})


async def _mistaken(request: Request, error: Exception) -> Response:
    return problem(422, str(error))


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


async def _refused(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        return await _defect(request, error)
    headers = dict(error.headers) if error.headers else None
    return problem(error.status_code, str(error.detail), headers)


async def _invalid(request: Request, error: Exception) -> Response:
    """Name the parameters that are wrong, without repeating what was sent."""
    if not isinstance(error, RequestValidationError):
        return await _defect(request, error)
    told = {".".join(map(str, e["loc"])): e["msg"] for e in error.errors()}
    return problem(422, "; ".join(f"{where}: {what}" for where, what in told.items()))


async def _grouped(request: Request, error: Exception) -> Response:
    """Answer what one file of several raised as if it had been the only one."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, OverloadError):
        return await _overloaded(request, error)
    return await _refused(request, error)


async def _defect(request: Request, error: Exception) -> Response:
    return problem(500, "a defect of the service; its log tells more under this request's id")
