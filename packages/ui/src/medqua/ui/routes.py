"""The viewer's routes: its static files, and a study's description and stored values."""

from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from medqua.ui.studies import Sessions, Study

VIEWER = Path(__file__).parent / "viewer"
"""The static module, as it is shipped."""

AROUND = Path(__file__).parent / "static"
"""What moves the page around it."""


class _Pixels(FileResponse):
    chunk_size = 1 << 20  # each piece costs a turn of the event loop and one of its threads


def viewer_routes(sessions: Sessions) -> list[BaseRoute]:
    """Return the routes under `/viewer`.

    `/viewer/studies/NAME/description`: JSON as told by `medqua.core.vision.stored.read_stored`,
    without tags. `/viewer/studies/NAME/pixels`: `frames` x `rows` x `columns` stored values of 16
    bits, little endian, compressed on the way where the browser takes gzip and is not on this
    machine, to which compressing costs more than sending. Both are for the session that opened the
    study alone: to any other it does not exist (404).
    """

    def find(request: Request) -> Study | None:
        session = sessions.get(request.scope.get("state", {}).get("session"))
        return None if session is None else session.studies.get(request.path_params["name"])

    async def description(request: Request) -> Response:
        study = find(request)
        if study is None:
            return PlainTextResponse("no such study", 404)
        return FileResponse(study.description, media_type="application/json")

    async def pixels(request: Request) -> Response:
        study = find(request)
        if study is None:
            return PlainTextResponse("no such study", 404)
        path, headers = study.pixels, {"Vary": "Accept-Encoding"}
        near = request.client is not None and request.client.host in ("127.0.0.1", "::1")
        if "gzip" in request.headers.get("accept-encoding", "") and (
            not near or "x-forwarded-for" in request.headers
        ):
            path = await run_in_threadpool(study.compressed)
            headers["Content-Encoding"] = "gzip"
        return _Pixels(path, media_type="application/octet-stream", headers=headers)

    return [
        Route("/viewer/studies/{name}/description", description),
        Route("/viewer/studies/{name}/pixels", pixels),
        Mount("/page", StaticFiles(directory=AROUND)),
        Mount("/viewer", StaticFiles(directory=VIEWER, html=True)),
    ]
