"""The service as an ASGI app.

    app = create_app(Path("runs/mimic/bundle"), Settings.load(Path("serve.toml")))

Routes are in `findings`, `job_routes`, `inference_protocol` and `health`; what all requests pass
first is in `guard`, and who may call what in `security`.
"""

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
from medqua.serve import findings, health, inference_protocol, job_routes
from medqua.serve.audit import AuditLog
from medqua.serve.batcher import OverloadError
from medqua.serve.guard import Guard, problem
from medqua.serve.jobs import JobStore
from medqua.serve.reader import Reader
from medqua.serve.runner import JobRunner, OnResult
from medqua.serve.security import check_routes, make_authenticator
from medqua.serve.service import ClientGoneError, Service
from medqua.serve.settings import Settings


def create_app(
    directory: Path,
    settings: Settings | None = None,
    *,
    on_result: OnResult | None = None,
    routers: Sequence[APIRouter] = (),
) -> FastAPI:
    """Build the app; the model is opened when it starts.

    Args:
        directory: Bundle or export.
        settings: How it is run; by default on loopback, without spool and audit log.
        on_result: Handed every answer of a job, as to send a report to an archive.
        routers: More routes; each must say who may call it.

    Raises:
        ConfigError: A route does not say who may call it.
    """
    settings = settings or Settings()
    service = Service(settings)
    app = FastAPI(
        title="MedQua",
        version=version("medqua-serve"),
        summary="Calibrated findings of chest radiographs. Research use only, not for diagnosis.",
        lifespan=lambda app: _running(service, directory, on_result),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.state.service = service
    app.state.authenticator = make_authenticator(settings)
    ours = (findings.router, job_routes.router, inference_protocol.router, health.router)
    for router in (*ours, *routers):
        app.router.routes.extend(router.routes)  # plain routes, so that `check_routes` sees each
    app.add_middleware(Guard, settings=settings, ended=service.metrics.ended)
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
    service: Service, directory: Path, on_result: OnResult | None
) -> AsyncIterator[None]:
    """Open what the service needs, and close it in the opposite order."""
    settings = service.settings
    storage = settings.storage
    try:
        if storage.audit is not None:
            service.audit = AuditLog(storage.audit)
        if storage.spool is not None:
            service.jobs = JobStore(storage.spool, storage.spool_bytes)
        async with Reader.open(directory, settings, service.metrics.observer()) as reader:
            service.reader = reader
            service.metrics.watch(reader)
            if service.jobs is not None:
                keep = 3600 * storage.keep_hours
                service.runner = JobRunner(service.jobs, reader, on_result, keep)
                service.runner.start()
            try:
                yield
            finally:
                service.draining = True
                if service.runner is not None:
                    await service.runner.close()
    except MedQuaError as error:
        service.failure = error
        raise
    finally:
        if service.jobs is not None:
            service.jobs.close()
        if service.audit is not None:
            service.audit.close()


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
