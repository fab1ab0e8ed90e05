"""What the page shows beside a picture: findings and header of one study, each under its name.

GET  /studies/NAME/findings     waits until the study is read: HTML, and the overlay's JSON
GET  /studies/NAME/header?look=WORDS      HTML of the header, personal values masked
POST /studies/NAME/reveal, /studies/NAME/hide     the same with them shown, or masked again
POST /studies/NAME/occlusion    what covering one region after another does, JSON

Every answer bears `study`, so that a page never shows what belongs to another one.
"""

import json
import logging
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from medqua.ui import panel, pieces
from medqua.ui.audit import AuditLog
from medqua.ui.desk import Desk
from medqua.ui.findings import Occluder
from medqua.ui.identity import identity
from medqua.ui.studies import Session, Sessions, Study

NO_MODEL = "No model is loaded: start without --pictures-only to see findings."

MOST_WAITING = 16
"""Requests that wait for a reading at a time, of all sessions; further ones wait for a place."""

logger = logging.getLogger("medqua.ui")

Work = Callable[[Session, Study], dict[str, Any]]


class Panel:
    """The routes.

    Args:
        sessions: The server's sessions.
        desk: Gives findings.
        audit: Told when personal data are revealed.
    """

    def __init__(self, sessions: Sessions, desk: Desk, audit: AuditLog) -> None:
        self._sessions, self._desk, self._audit = sessions, desk, audit
        self._waiting: anyio.CapacityLimiter | None = None

    def routes(self) -> list[BaseRoute]:
        """Return the routes; the guard has found the session of whoever gets here."""
        return [
            Route("/studies/{name}/findings", self._findings, methods=["GET"]),
            Route("/studies/{name}/header", self._header, methods=["GET"]),
            Route("/studies/{name}/reveal", self._reveal, methods=["POST"]),
            Route("/studies/{name}/hide", self._hide, methods=["POST"]),
            Route("/studies/{name}/occlusion", self._occlusion, methods=["POST"]),
        ]

    def _find(self, request: Request) -> tuple[Session, Study] | None:
        session = self._sessions.get(request.scope.get("state", {}).get("session"))
        study = None if session is None else session.studies.get(request.path_params["name"])
        return None if session is None or study is None else (session, study)

    async def _wait(self, request: Request, work: Work) -> Response:
        """Do what may wait for the model, in threads of its own."""
        if (found := self._find(request)) is None:
            return _absent()
        self._waiting = self._waiting or anyio.CapacityLimiter(MOST_WAITING)
        told = await anyio.to_thread.run_sync(lambda: work(*found), limiter=self._waiting)
        return JSONResponse({"study": found[1].name, **told})

    async def _findings(self, request: Request) -> Response:
        if (found := self._find(request)) is not None:
            found[0].in_view = found[1].name
        return await self._wait(request, self._read)

    def _read(self, session: Session, study: Study) -> dict[str, Any]:
        from medqua.ui.overlay import overlay_text

        reading = self._desk.read(session, study)
        if reading is None:
            return {"html": pieces.no_findings(NO_MODEL), "overlay": None}
        overlay = overlay_text(study, reading)
        return {
            "html": panel.findings(reading),
            "overlay": json.loads(overlay) if overlay else None,
        }

    async def _occlusion(self, request: Request) -> Response:
        return await self._wait(request, self._cover)

    def _cover(self, session: Session, study: Study) -> dict[str, Any]:
        from medqua.ui.overlay import occlusion_text

        told = ""
        if isinstance(self._desk.reader, Occluder):
            told = occlusion_text(study, self._desk.reader)
        return {"overlay": json.loads(told) if told else None}

    async def _header(self, request: Request) -> Response:
        if (found := self._find(request)) is None:
            return _absent()
        return await self._table(request, *found)

    async def _table(self, request: Request, session: Session, study: Study) -> Response:
        revealed = study.name in session.revealed
        look = request.query_params.get("look", "")[:200]
        try:
            rows = await run_in_threadpool(study.tags)
        except OSError:  # closed in the meantime
            return _absent()
        return JSONResponse(
            {
                "study": study.name,
                "html": pieces.tag_table(rows, look, revealed=revealed),
                "revealed": revealed,
                "rows": len(rows),
                "identity": identity(session, study),
            }
        )

    async def _hide(self, request: Request) -> Response:
        if (found := self._find(request)) is None:
            return _absent()
        session, study = found
        session.revealed.discard(study.name)
        return await self._table(request, session, study)

    async def _reveal(self, request: Request) -> Response:
        """Show personal data to somebody who may see them; audited first."""
        if (found := self._find(request)) is None:
            return _absent()
        session, study = found
        if not session.user.may("reveal"):
            return JSONResponse({"error": "This needs the role `reveal`."}, 403)
        client = request.client.host if request.client else ""
        try:
            await run_in_threadpool(
                lambda: self._audit.write(
                    "reveal", who=session.who, client=client, study=study.digest
                )
            )
        except OSError:
            logger.error("the audit log cannot be written: personal data stay masked")
            reason = "The audit log cannot be written, so personal data stay masked."
            return JSONResponse({"error": reason}, 503)
        session.revealed.add(study.name)
        return await self._table(request, session, study)


def _absent() -> Response:
    return JSONResponse({"error": "This study is no longer on the server."}, 404)
