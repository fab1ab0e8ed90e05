"""The outermost layer: what every request passes, before anything of it is believed.

It gives the request an id, bounds its body in bytes and time and all bodies together in memory,
lets nobody in by a borrowed host name, and tells log and metrics how it ended. Where an audit log
is kept, no answer leaves before its line is there (PS3.15 A.5): of every request but those that
anyone may make, whether it was let in or not.
"""

import asyncio
import hashlib
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medqua.serve.audit import AuditError
from medqua.serve.settings import Limits, Settings

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class Ended:
    """How a request ended; nothing in it comes from the client but a checked id."""

    request_id: str
    """Given by the client, or made."""
    method: str
    """HTTP method, `OTHER` for one that is not known."""
    route: str
    """The route's pattern, such as `/v1/jobs/{job}`; `none` where none matched."""
    status: int
    """HTTP status; 499 where the client was gone."""
    seconds: float
    """From its head to the end of its answer, in seconds."""
    client: str
    """Who called, as access control knows them; empty where it does not."""


@dataclass(frozen=True)
class Answered:
    """An answer that is about to leave, for the audit log."""

    who: str
    """Who called, as access control knows them; empty where it does not."""
    address: str
    """Their network address."""
    request_id: str
    """Given by the client, or made."""
    action: str
    """Method and route."""
    status: int
    """HTTP status; 499 where the client was gone."""
    what: tuple[str, ...]
    """SHA-256 of the files, as the route told them."""
    outcome: tuple[int, ...]
    """Status of each, as the route told them."""
    result: str
    """SHA-256 of the answer's body, hexadecimal."""


class Budget:
    """Bytes that may be in memory at a time, all requests together."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0


class Allowance:
    """What one request has taken of the budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget, self._taken = budget, 0

    def add(self, size: int) -> None:
        """Take bytes.

        Raises:
            HTTPException: 429, the budget is used up.
        """
        if self._budget.used + size > self._budget.limit:
            raise HTTPException(
                429, "too many bytes are being read; try again later", {"Retry-After": "5"}
            )
        self._budget.used += size
        self._taken += size

    def release(self) -> None:
        """Give all back."""
        self._budget.used -= self._taken
        self._taken = 0


class Guard:
    """ASGI middleware.

    Args:
        app: What it guards.
        settings: Limits, and who may call.
        ended: Told how each request ended.
        record: Writes an answer into the audit log, before it leaves; raises `AuditError` where it
            cannot, so that the answer does not.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        ended: Callable[[Ended], None],
        record: Callable[[Answered], None] = lambda answered: None,
    ) -> None:
        self._app, self._limits, self._ended = app, settings.limits, ended
        self._record, self._audited = record, settings.storage.audit is not None
        self._budget = Budget(settings.limits.bytes_in_flight)
        self._hosts = (*LOOPBACK, *settings.listen.hostnames) if settings.access.open else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        start = time.monotonic()
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        allowance = Allowance(self._budget)
        scope["medqua.request_id"], scope["medqua.allowance"] = request_id, allowance
        status = 499

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                told = MutableHeaders(scope=message)
                told["X-Request-Id"] = request_id
                told["X-Content-Type-Options"] = "nosniff"
                told["Cache-Control"] = "no-store"
            await send(message)

        held = _Held(tell, lambda status, body: self._write_down(scope, status, body))
        outward = held if self._audited else tell
        try:
            refusal = self._refusal(headers)
            if refusal is None:
                bounded = _Bounded(receive, self._limits, allowance, start)
                await self._app(scope, bounded, outward)
            else:
                await refusal(scope, receive, outward)
            if self._audited and not held.complete:  # its client is gone, and nothing is sent
                with suppress(AuditError):
                    await self._write_down(scope, 499, b"")
        except Exception:  # a defect, which is answered 500 further out
            if self._audited and not held.complete:
                with suppress(AuditError):
                    await self._write_down(scope, 500, b"")
            raise
        finally:
            allowance.release()
            route = scope.get("route")
            self._ended(
                Ended(
                    request_id,
                    _method(scope),
                    getattr(route, "path", "none"),
                    status,
                    time.monotonic() - start,
                    getattr(scope.get("medqua.identity"), "name", ""),
                )
            )

    async def _write_down(self, scope: Scope, status: int, body: bytes) -> None:
        """Write a request into the audit log, unless it is one that anyone may make.

        Raises:
            AuditError: It cannot be written.
        """
        route = scope.get("route")
        if scope.get("medqua.open"):
            return
        what, outcome = scope.get("medqua.audit", ((), ()))
        client = scope.get("client")
        who = getattr(scope.get("medqua.identity"), "name", "")
        action = f"{_method(scope)} {getattr(route, 'path', 'none')}"

        def write() -> None:
            result = hashlib.sha256(body).hexdigest()
            address, request_id = client[0] if client else "", scope["medqua.request_id"]
            self._record(Answered(who, address, request_id, action, status, what, outcome, result))

        await asyncio.to_thread(write)

    def _refusal(self, headers: Headers) -> JSONResponse | None:
        """Refuse what its head already shows to be too large, or to come by a web page's trick."""
        length = headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length) > self._limits.body_bytes:
            return problem(413, f"the body is over {self._limits.body_bytes:,} bytes")
        if self._hosts is None:
            return None
        host = headers.get("host", "")
        name = re.sub(r":\d+$", "", host)
        origin = headers.get("origin")
        if name not in self._hosts or (origin is not None and origin.split("://")[-1] != host):
            return problem(
                403, "without access control, calls are taken from this machine's own programs only"
            )
        return None


class _Held:
    """An answer that is kept until it is complete and stands in the audit log."""

    def __init__(self, send: Send, record: Callable[[int, bytes], Awaitable[None]]) -> None:
        self._send, self._record = send, record
        self._start: Message | None = None
        self._body = bytearray()
        self.complete = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._body += message.get("body", b"")
        if message.get("more_body", False) or self._start is None:
            return
        self.complete = True
        status, body = int(self._start["status"]), bytes(self._body)
        try:
            await self._record(status, body)
        except AuditError as error:
            refusal = problem(503, f"{error}; nothing is answered before it can be")
            start = {"type": "http.response.start", "status": 503, "headers": refusal.raw_headers}
            self._start, body = start, bytes(refusal.body)
        await self._send(self._start)
        await self._send({"type": "http.response.body", "body": body})


class _Bounded:
    """A body that ends in an error when it is too long or too slow."""

    def __init__(
        self, receive: Receive, limits: Limits, allowance: Allowance, start: float
    ) -> None:
        self._receive, self._limits, self._allowance = receive, limits, allowance
        self._until = start + limits.body_seconds
        self._size, self._complete = 0, False

    async def __call__(self) -> Message:
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout(max(0.0, self._until - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(
                408, f"the body took over {self._limits.body_seconds:g} s", {"Connection": "close"}
            ) from None
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self._size += size
            if self._size > self._limits.body_bytes:
                raise HTTPException(413, f"the body is over {self._limits.body_bytes:,} bytes")
            self._allowance.add(size)
            self._complete = not message.get("more_body", False)
        return message


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in _METHODS else "OTHER"


_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")


def problem(status: int, reason: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return an error as every route of the service gives it."""
    return JSONResponse({"error": reason}, status, headers)
