"""What stands before every route: hosts, origins, the session's cookie, logins, security headers.

The list of what is let through is short and closed: our own routes, and those of Gradio's that the
page needs. Gradio has many more (files by path, a proxy, calls of functions by name, uploads into
one folder for all); none of them is reached here.
"""

import json
import re
from collections.abc import Iterable
from typing import Literal
from urllib.parse import parse_qs, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medqua.ui.cookies import cookie_of, session_cookie
from medqua.ui.login import LOCAL
from medqua.ui.login_routes import Doors
from medqua.ui.studies import Sessions

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
EVENT_BYTES = 1 << 20
"""Largest body of one of Gradio's events."""

VIEWER_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
"""The viewer's page: its own modules and style sheet, no inline code, nothing from elsewhere."""

PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
"""The application's page: Gradio needs inline code and eval; nothing comes from elsewhere."""

Kind = Literal["login", "asset", "ours", "event", "closed"]

_OURS = ("/state", "/worklist", "/studies/", "/export/", "/viewer/studies/", "/viewer/quantum/")
_ASSETS = ("/assets/", "/static/", "/svelte/", "/theme.css", "/favicon.ico", "/manifest.json")
_LOGIN = {
    "/login": ("GET", "POST"),
    "/login/start": ("GET",),
    "/login/callback": ("GET",),
    "/logout": ("POST",),
}
_GRADIO = {
    "/": ("GET", "HEAD"),
    "/config": ("GET",),
    "/theme.css": ("GET",),
    "/gradio_api/startup-events": ("GET",),
    "/gradio_api/queue/join": ("POST",),
    "/gradio_api/queue/data": ("GET",),
}
_HEARTBEAT = re.compile(r"/gradio_api/heartbeat/([A-Za-z0-9_-]{1,64})")


def kind_of(method: str, path: str) -> Kind:
    """Tell what a request is for; `closed` is answered 404 to everyone."""
    if path in _LOGIN:  # Gradio has routes of these names for other methods
        return "login" if method in _LOGIN[path] else "closed"
    if path.startswith(_OURS):
        return "ours"
    if path.startswith(("/viewer/", "/page/", *_ASSETS)):
        return "asset" if method in ("GET", "HEAD") else "closed"
    if method in _GRADIO.get(path, ()) or (method == "GET" and _HEARTBEAT.fullmatch(path)):
        return "event"
    return "closed"


class Guard:
    """ASGI middleware.

    A request under another host name than the server's is refused (a page elsewhere could have its
    name point here), so is one that another site's page sends. Without a session there is nothing
    but the login page; where nobody logs in, opening the application's page begins a session. A
    page's name, by which Gradio tells it its results, belongs to the session that first used it.
    """

    def __init__(
        self,
        app: ASGIApp,
        sessions: Sessions,
        hosts: Iterable[str] = (),
        doors: Doors | None = None,
    ) -> None:
        """Wrap an application.

        Args:
            app: The application.
            sessions: The server's sessions.
            hosts: Host names that it is served under, beside those of loopback.
            doors: Where users log in; None lets in whoever is on this machine.
        """
        self.app, self.sessions, self.doors = app, sessions, doors
        self.hosts = {*LOOPBACK, *hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # the application has no websockets
            return await send({"type": "websocket.close", "code": 1008})
        path, method = scope["path"], scope["method"]
        guarded = _Headers(send, path, scope["scheme"] == "https")
        headers = Headers(scope=scope)
        reply: Response | None = None
        if reason := self._refusal(headers):
            reply = PlainTextResponse(reason, 403)
        elif (kind := kind_of(method, path)) == "login" and self.doors is not None:
            return await self.app(scope, receive, guarded)
        else:
            token = await self._session(headers)
            if token is None and self.doors is None and (method, path) == ("GET", "/"):
                token = guarded.begun = self.sessions.begin(LOCAL)
            if token is None:
                reply = self._outside(method, path)
            elif kind in ("closed", "login"):
                reply = PlainTextResponse("not found", 404)
            else:
                scope.setdefault("state", {})["session"] = token
                if kind == "event":
                    receive, reply = await self._owned(scope, receive, token)
        if reply is not None:
            return await reply(scope, receive, guarded)
        await self.app(scope, receive, guarded)

    async def _session(self, headers: Headers) -> str | None:
        """Return the secret name of the session that a browser sends, if it is one."""
        token = cookie_of(headers)
        session = self.sessions.get(token, touch=False)
        if session is None or self.doors is None:
            return None if session is None else token
        if await run_in_threadpool(self.doors.valid, session.user):
            return token
        self.sessions.end(token)
        return None

    def _outside(self, method: str, path: str) -> Response:
        """Answer somebody without a session."""
        if self.doors is None:
            return PlainTextResponse("no session: open the application's page first", 403)
        if (method, path) == ("GET", "/"):
            return RedirectResponse("/login", 303)
        return PlainTextResponse("log in first", 401)

    async def _owned(
        self, scope: Scope, receive: Receive, token: str
    ) -> tuple[Receive, Response | None]:
        """Refuse an event of a page of somebody else's; the body is read and handed on."""
        path, page = scope["path"], None
        if found := _HEARTBEAT.fullmatch(path):
            page = found[1]
        elif path.endswith("/queue/data"):
            page = (parse_qs(scope["query_string"].decode("latin-1")).get("session_hash") or [""])[
                0
            ]
        elif path.endswith("/queue/join"):
            body = b""
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return receive, PlainTextResponse("gone", 400)
                body += message.get("body", b"")
                if len(body) > EVENT_BYTES:
                    return receive, PlainTextResponse("too long", 413)
                if not message.get("more_body"):
                    break
            try:
                told = json.loads(body)
                page = str(told["session_hash"])
            except (ValueError, KeyError, TypeError, RecursionError):
                return receive, PlainTextResponse("no event", 400)
            receive = _Again(body, receive)
        if page is not None and not self.sessions.claim(token, page):
            return receive, PlainTextResponse("not found", 404)
        return receive, None

    def _refusal(self, headers: Headers) -> str:
        """Tell why a request is refused; empty if it is not."""
        host = headers.get("host", "")
        if _name(host) not in self.hosts:
            return "this server is not reached under that host name; see --host-name"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return "requests of other sites' pages are refused"
        foreign = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        if foreign and headers.get("sec-fetch-mode") != "navigate":
            return "requests of other sites' pages are refused"
        return ""


class _Headers:
    """Sends an answer with the headers that keep a browser careful."""

    def __init__(self, send: Send, path: str, secure: bool) -> None:
        self._send, self._path, self._secure = send, path, secure
        self.begun: str | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            out = MutableHeaders(scope=message)
            policy = VIEWER_POLICY if self._path.startswith("/viewer/") else PAGE_POLICY
            out.setdefault("Content-Security-Policy", policy)
            out["X-Content-Type-Options"] = "nosniff"
            out["Referrer-Policy"] = "same-origin"
            out["Cross-Origin-Resource-Policy"] = "same-origin"
            out["Cross-Origin-Opener-Policy"] = "same-origin"
            out["Permissions-Policy"] = "camera=(), microphone=(), geolocation=()"
            if kind_of("GET", self._path) != "asset":
                out["Cache-Control"] = "no-store"
            else:
                out["Cache-Control"] = "private, max-age=3600"
            if self.begun:
                out.append("Set-Cookie", session_cookie(self.begun, self._secure))
        await self._send(message)


class _Again:
    """Gives a body that was read once more, then whatever follows it."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


def _name(host: str) -> str:
    """Return a Host header without its port."""
    return host if host.endswith("]") else host.rsplit(":", 1)[0]
