"""The viewer's routes: its static files, a study's description and stored values, and its view."""

import json
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from medqua.ui.identity import identity
from medqua.ui.studies import Session, Sessions, Study

VIEWER = Path(__file__).parent / "viewer"
"""The static module, as it is shipped."""

AROUND = Path(__file__).parent / "static"
"""What moves the page around it."""


VIEW_BYTES = 65_536
"""Largest view that is kept."""


class _Pixels(FileResponse):
    chunk_size = 1 << 20  # each piece costs a turn of the event loop and one of its threads


def viewer_routes(sessions: Sessions) -> list[BaseRoute]:
    """Return the routes under `/viewer`.

    `/viewer/studies/NAME/description`: JSON as told by `medqua.core.vision.stored.read_stored`,
    without tags, with `identity` as of `medqua.ui.identity` and `seen`, how the picture was last
    seen, or null. PUT `/viewer/studies/NAME/view` keeps that: a JSON object of the viewer's, with
    `at`, the browser's time; an older one never takes the place of a newer one.
    `/viewer/studies/NAME/pixels`: `frames` x `rows` x `columns` stored values of 16
    bits, little endian, compressed on the way where the browser takes gzip and is not on this
    machine, to which compressing costs more than sending. Both are for the session that opened the
    study alone: to any other it does not exist (404).
    """

    def find(request: Request) -> tuple[Session, Study] | None:
        session = sessions.get(request.scope.get("state", {}).get("session"))
        study = None if session is None else session.studies.get(request.path_params["name"])
        return None if session is None or study is None else (session, study)

    async def description(request: Request) -> Response:
        if (found := find(request)) is None:
            return PlainTextResponse("no such study", 404)
        session, study = found
        try:
            told = json.loads(await run_in_threadpool(study.description.read_bytes))
        except OSError:  # closed in the meantime
            return PlainTextResponse("no such study", 404)
        seen = session.views.get(study.name)
        told |= {"identity": identity(session, study), "seen": seen and json.loads(seen)}
        return JSONResponse(told)

    async def view(request: Request) -> Response:
        if (found := find(request)) is None:
            return PlainTextResponse("no such study", 404)
        session, study = found
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > VIEW_BYTES:
                return PlainTextResponse("too long", 413)
        try:
            at = float(json.loads(body)["at"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return PlainTextResponse("send a JSON object with `at`", 400)
        kept = session.views.get(study.name)
        if kept is None or json.loads(kept)["at"] < at:
            session.views[study.name] = body.decode()
        return Response(status_code=204)

    async def pixels(request: Request) -> Response:
        if (found := find(request)) is None:
            return PlainTextResponse("no such study", 404)
        _, study = found
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
        Route("/viewer/studies/{name}/view", view, methods=["PUT"]),
        Route("/viewer/studies/{name}/pixels", pixels),
        Mount("/page", StaticFiles(directory=AROUND)),
        Mount("/viewer", StaticFiles(directory=VIEWER, html=True)),
    ]
