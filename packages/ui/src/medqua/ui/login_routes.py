"""The login page and what it leads to: the only routes that somebody without a session reaches."""

import base64
import hashlib
from html import escape
from pathlib import Path
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from medqua.ui.audit import AuditLog
from medqua.ui.cookies import COOKIE, cookie_of, session_cookie
from medqua.ui.login import Passwords, User
from medqua.ui.login_oidc import LoginError, Provider
from medqua.ui.studies import Sessions

BINDING = "medqua_login"
"""Cookie of a browser on its way to the identity provider and back."""

FORM_BYTES = 8192

_STYLE = Path(__file__).with_name("login.css").read_text()
_DIGEST = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_DIGEST}'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)


class Doors:
    """Where users log in.

    Args:
        sessions: Where a login begins a session.
        audit: Told of logins, failed ones too.
        passwords: The password file; None takes no passwords.
        provider: The identity provider; None has none.
    """

    def __init__(
        self,
        sessions: Sessions,
        audit: AuditLog,
        passwords: Passwords | None = None,
        provider: Provider | None = None,
    ) -> None:
        self._sessions, self._audit = sessions, audit
        self._passwords, self._provider = passwords, provider

    def valid(self, user: User) -> bool:
        """Tell whether a user who logged in may still be here."""
        if user.name.startswith("user:"):
            return self._passwords is not None and self._passwords.valid(user)
        return self._provider is not None and user.name.startswith("oidc:")

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        return [
            Route("/login", self._page, methods=["GET"]),
            Route("/login", self._enter, methods=["POST"]),
            Route("/login/start", self._start, methods=["GET"]),
            Route("/login/callback", self._callback, methods=["GET"]),
            Route("/logout", self._leave, methods=["POST"]),
        ]

    async def _page(self, request: Request) -> Response:
        return self._html("")

    def _html(self, problem: str, status: int = 200, body: str = "") -> Response:
        parts = [f'<p class="problem" role="alert">{escape(problem)}</p>'] if problem else []
        if body:
            parts.append(body)
        elif self._passwords is not None:
            parts.append(
                '<form method="post" action="/login"><label for="name">User</label>'
                '<input id="name" name="name" autocomplete="username" required autofocus>'
                '<label for="password">Password</label><input id="password" name="password" '
                'type="password" autocomplete="current-password" required>'
                "<button>Log in</button></form>"
            )
        if self._provider is not None and not body:
            parts.append('<a class="button" href="/login/start">Log in with your account</a>')
        return HTMLResponse(
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>MedQua: log in'
            '</title><meta name="viewport" content="width=device-width, initial-scale=1">'
            f"{'<meta http-equiv=refresh content=0;url=/>' if body else ''}<style>{_STYLE}</style>"
            '</head><body><main><h1>MedQua</h1><p class="research">Research use only. '
            f"Not a medical device, not for diagnosis.</p>{''.join(parts)}</main></body></html>",
            status,
            {"Content-Security-Policy": _POLICY},
        )

    async def _enter(self, request: Request) -> Response:
        if self._passwords is None:
            return PlainTextResponse("not found", 404)
        if request.headers.get("origin") is None:  # browsers always send it with a form
            return self._html("This login did not come from the login page.", 403)
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > FORM_BYTES:
                return self._html("That is too long for a name and a password.", 413)
        form = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
        name, password = form.get("name", [""])[0].strip(), form.get("password", [""])[0]
        client = request.client.host if request.client else ""
        if seconds := self._passwords.wait(name, client):
            return self._html(f"Too many tries. Wait {max(1, round(seconds))} seconds.", 429)
        user = await run_in_threadpool(self._passwords.check, name, password)
        if user is None:
            self._passwords.wait(name, client, failed=1.0)
            await run_in_threadpool(self._told, "login failed", "unknown", client)
            return self._html("User and password do not belong together.", 401)
        return await self._begin(request, user, RedirectResponse("/", 303))

    async def _start(self, request: Request) -> Response:
        if self._provider is None:
            return PlainTextResponse("not found", 404)
        redirect = f"{request.url.scheme}://{request.headers['host']}/login/callback"
        try:
            address, binding = await run_in_threadpool(self._provider.begin, redirect)
        except LoginError as error:
            return self._html(str(error), 503)
        reply = RedirectResponse(address, 303)
        reply.set_cookie(
            BINDING, binding, max_age=600, path="/login", httponly=True, samesite="lax",
            secure=request.url.scheme == "https",
        )  # fmt: skip
        return reply

    async def _callback(self, request: Request) -> Response:
        if self._provider is None:
            return PlainTextResponse("not found", 404)
        query = request.query_params
        state, code = query.get("state", "")[:256], query.get("code", "")[:4096]
        binding = request.cookies.get(BINDING, "")
        client = request.client.host if request.client else ""
        try:
            if not code:
                raise LoginError("The identity provider did not log you in. Log in again.")
            user = await run_in_threadpool(self._provider.finish, state, code, binding)
        except LoginError as error:
            await run_in_threadpool(self._told, "login failed", "unknown", client)
            return self._html(str(error), 401)
        # a page of ours that goes on by itself: the cookie is for navigations within this site
        page = self._html("", body='<p>You are logged in. <a href="/">Go on</a></p>')
        page.delete_cookie(BINDING, path="/login")
        return await self._begin(request, user, page)

    async def _begin(self, request: Request, user: User, reply: Response) -> Response:
        client = request.client.host if request.client else ""
        try:
            await run_in_threadpool(self._told, "login", user.name, client)
        except OSError:
            return self._html("The audit log cannot be written, so nobody is let in.", 503)
        self._sessions.end(cookie_of(request.headers))
        token = self._sessions.begin(user)
        reply.headers.append("Set-Cookie", session_cookie(token, request.url.scheme == "https"))
        return reply

    async def _leave(self, request: Request) -> Response:
        token = cookie_of(request.headers)
        session = self._sessions.get(token, touch=False)
        if session is not None:
            client = request.client.host if request.client else ""
            await run_in_threadpool(self._sessions.end, token)
            await run_in_threadpool(self._told, "logout", session.user.name, client)
        reply = RedirectResponse("/login", 303)
        reply.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
        reply.headers["Clear-Site-Data"] = '"cache", "storage"'
        return reply

    def _told(self, event: str, who: str, client: str) -> None:
        self._audit.write(event, who=who, client=client, study="")
