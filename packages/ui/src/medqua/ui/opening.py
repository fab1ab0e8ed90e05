"""The application's page: a light one at once, Gradio's when it is built.

Gradio takes seconds to be imported. Until then the page takes files and shows their pictures; what
Gradio shows beside them (findings, header, circuits, help) follows.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import anyio.to_thread
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from medqua.ui import pieces, workplace
from medqua.ui.studies import Session, Sessions

logger = logging.getLogger("medqua.ui")

FAILED = "The rest of the page could not be built; the server's console tells why."

FIRST = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>MedQua</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/page/first.css"><style>{{style}}</style>
{workplace.HEAD}<script type="module" src="/page/first.js"></script></head>
<body>{workplace.BANNER}
<main id="work"><div id="left" class="column">{workplace.LEFT}</div>
<div id="middle" class="column">{pieces.VIEWER}</div>
<div id="right" class="column"><p id="rest" class="quiet" role="status">Findings, header, circuits
and help are being loaded. Files can be opened meanwhile.</p>
<button type="button" id="show-rest" hidden>Show findings, header, circuits and help</button>
</div></main>
<div id="opened" hidden><input aria-label="Study in view"></div></body></html>
"""


class Page:
    """ASGI application: the light page, and from `build` on Gradio's.

    Args:
        make: Builds Gradio's application; called in a thread.
        sessions: The server's sessions.
        arrive: Called in a thread with the session of a browser that opens the light page.
    """

    def __init__(
        self,
        make: Callable[[], Starlette],
        sessions: Sessions,
        arrive: Callable[[Session], object],
    ) -> None:
        self._make, self._sessions, self._arrive = make, sessions, arrive
        self._whole: Starlette | None = None
        self._problem = ""
        style = (Path(__file__).parent / "page.css").read_text()
        self._first = FIRST.format(style=style)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer by whichever page there is."""
        if self._whole is not None:
            return await self._whole(scope, receive, send)
        reply: Response = PlainTextResponse("being loaded", 503, {"Retry-After": "1"})
        if scope["path"] == "/" and scope["method"] in ("GET", "HEAD"):
            session = self._session(Request(scope), touch=True)
            task = None if session is None else BackgroundTask(self._arrive, session)
            reply = HTMLResponse(self._first, background=task)
        await reply(scope, receive, send)

    @property
    def routes(self) -> Sequence[BaseRoute]:
        """Gradio's routes, once there are some."""
        return () if self._whole is None else self._whole.routes

    def state_routes(self) -> list[BaseRoute]:
        """Return the route by which the light page learns that the whole one is there."""
        return [Route("/state/page", self._state, methods=["GET"])]

    async def build(self) -> None:
        """Build Gradio's page; a failure is told on the console and in the light page."""
        try:
            self._whole = await anyio.to_thread.run_sync(self._make, abandon_on_cancel=True)
        except Exception:
            self._problem = FAILED
            logger.exception("the page could not be built: files are opened without it")

    async def run(self, built: Callable[[], Awaitable[None]]) -> None:
        """Build Gradio's page and keep it running until cancelled.

        Args:
            built: Called once it is there, or has failed.
        """
        await self.build()
        if self._whole is None:
            return await built()
        async with self._whole.router.lifespan_context(self._whole):
            await built()
            await asyncio.Event().wait()

    async def _state(self, request: Request) -> Response:
        if self._session(request, touch=True) is None:
            return JSONResponse({"error": "this session has ended"}, 403)
        return JSONResponse({"whole": self._whole is not None, "problem": self._problem})

    def _session(self, request: Request, *, touch: bool) -> Session | None:
        return self._sessions.get(request.scope.get("state", {}).get("session"), touch=touch)
