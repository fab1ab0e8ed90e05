"""What stands before every route: hosts, origins, the session's cookie, security headers."""

from collections.abc import Iterable
from http.cookies import SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medqua.ui.studies import Sessions

COOKIE = "medqua_session"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")

VIEWER_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
"""The viewer's page: its own modules and style sheet, no inline code, nothing from elsewhere."""

PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'"
)
"""The application's page: Gradio needs inline code and eval; nothing comes from elsewhere."""


class Guard:
    """ASGI middleware.

    A request under another host name than the server's is refused (a page elsewhere could have its
    name point here), so is one that another site's page sends, and so is whatever is no plain page
    or asset without a session. Only opening the application's page begins one.
    """

    def __init__(self, app: ASGIApp, sessions: Sessions, hosts: Iterable[str] = ()) -> None:
        """Wrap an application.

        Args:
            app: The application.
            sessions: The server's sessions.
            hosts: Host names that it is served under, beside those of loopback.
        """
        self.app = app
        self.sessions = sessions
        self.hosts = {*LOOPBACK, *hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # the application has no websockets
            return await send({"type": "websocket.close", "code": 1008})
        headers = Headers(scope=scope)
        refusal = self._refusal(headers)
        if refusal:
            return await PlainTextResponse(refusal, 403)(scope, receive, send)
        path, begun = scope["path"], None
        token = _cookie(headers)
        if self.sessions.get(token) is None:
            if path == "/" and scope["method"] == "GET":
                begun = token = self.sessions.begin()
            elif not _is_asset(path):
                reply = PlainTextResponse("no session: open the application's page first", 403)
                return await reply(scope, receive, send)
        scope.setdefault("state", {})["session"] = token
        policy = VIEWER_POLICY if path.startswith("/viewer/") else PAGE_POLICY

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                out = MutableHeaders(scope=message)
                out["Content-Security-Policy"] = policy
                out["X-Content-Type-Options"] = "nosniff"
                out["Referrer-Policy"] = "no-referrer"
                out["Cross-Origin-Resource-Policy"] = "same-origin"
                out["Cross-Origin-Opener-Policy"] = "same-origin"
                out["Permissions-Policy"] = "camera=(), microphone=(), geolocation=()"
                if not _is_asset(path):
                    out["Cache-Control"] = "no-store"
                if begun:
                    secure = "; Secure" if scope["scheme"] == "https" else ""
                    out.append(
                        "Set-Cookie", f"{COOKIE}={begun}; Path=/; HttpOnly; SameSite=Strict{secure}"
                    )
            await send(message)

        await self.app(scope, receive, send_guarded)

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


def _name(host: str) -> str:
    """Return a Host header without its port."""
    return host if host.endswith("]") else host.rsplit(":", 1)[0]


def _is_asset(path: str) -> bool:
    """Tell whether a path is the same for everyone: scripts, styles, fonts, icons."""
    if path.startswith("/viewer/"):
        return not path.startswith("/viewer/studies/")
    parts = ("/assets/", "/static/", "/theme.css", "/favicon.ico", "/svelte/", "/manifest.json")
    return path.startswith(parts)


def _cookie(headers: Headers) -> str | None:
    """Return the session's name that a browser sent."""
    cookie: SimpleCookie = SimpleCookie(headers.get("cookie", ""))
    return cookie[COOKIE].value if COOKIE in cookie else None
