"""Who calls, and what they may do.

    Authorization: Bearer <token of the identity provider>      OpenID Connect
    X-API-Key: <key>                                            known here by its SHA-256 alone

Three roles: `infer` sends images and sees their answers; `read` sees metrics and descriptions;
`admin` may do everything. A route names the roles that may call it, by `Requires`, or that anyone
may, by `Anyone`; an app with a route that does neither does not start.
"""

import asyncio
import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jwt
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute

from medqua.core.errors import ConfigError
from medqua.serve.settings import ROLES, Access, OpenIdConnect, Role, Settings

MOST_CLIENTS = 10_000
"""Clients whose rate is remembered; the one seen least lately is forgotten."""


@dataclass(frozen=True)
class Identity:
    """A caller."""

    name: str
    """As it stands in the audit log: `key:<name>`, `oidc:<subject>`, or `local`."""
    roles: frozenset[Role]
    """What they may do."""

    def may(self, *roles: Role) -> bool:
        """Tell whether they have one of these roles; an admin has all."""
        return "admin" in self.roles or not self.roles.isdisjoint(roles)


LOCAL = Identity("local", frozenset(ROLES))
"""Who calls a service without access control, which listens on this machine alone."""


def new_key() -> tuple[str, str]:
    """Return an API key and its SHA-256, hexadecimal."""
    key = "mq_" + secrets.token_urlsafe(32)
    return key, hashlib.sha256(key.encode()).hexdigest()


class RateLimit:
    """A bucket of permits for each client, filled at a steady rate.

    Args:
        rate: Permits a second; 0 sets no limit.
        burst: Most permits of a client.
    """

    def __init__(self, rate: float, burst: int) -> None:
        self._rate, self._burst = rate, burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str, permits: float = 1.0) -> float:
        """Take permits; with 0 only look.

        Returns:
            0, or the seconds until a permit is there.
        """
        if not self._rate:
            return 0.0
        now = time.monotonic()
        level, since = self._buckets.pop(client, (float(self._burst), now))
        level = min(float(self._burst), level + self._rate * (now - since))
        refused = level < max(permits, 1.0)
        self._buckets[client] = (level if refused else level - permits, now)
        if len(self._buckets) > MOST_CLIENTS:
            self._buckets.popitem(last=False)
        return (1.0 - level) / self._rate if refused else 0.0


class _Tokens:
    """Verifies bearer tokens of an identity provider."""

    def __init__(self, settings: OpenIdConnect) -> None:
        self._settings = settings
        self._keys = jwt.PyJWKClient(settings.jwks_url, timeout=5)

    def identify(self, token: str) -> Identity | None:
        """Return who a token names, None if it is not valid; blocks on the provider's keys."""
        settings = self._settings
        try:
            claims = jwt.decode(
                token,
                self._keys.get_signing_key_from_jwt(token).key,
                algorithms=list(settings.algorithms),
                audience=settings.audience,
                issuer=settings.issuer,
                leeway=settings.leeway_seconds,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError):
            return None
        found: Any = claims
        for part in settings.roles_claim.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        words = found.split() if isinstance(found, str) else found or ()
        if not isinstance(words, list | tuple):
            words = ()
        return Identity(f"oidc:{claims['sub']}"[:200], frozenset(r for r in ROLES if r in words))


class Authenticator:
    """Tells who calls.

    Args:
        access: Keys and identity provider.
        rate: Limit of each client.
    """

    def __init__(self, access: Access, rate: RateLimit) -> None:
        self._access, self._rate = access, rate
        self._tokens = None if access.oidc is None else _Tokens(access.oidc)

    async def identify(self, connection: HTTPConnection) -> Identity:
        """Return the caller.

        Raises:
            HTTPException: 401 without valid credentials, 429 above the rate.
        """
        address = f"address:{connection.client.host if connection.client else ''}"
        if self._access.open:
            identity: Identity | None = LOCAL
        else:
            self._limit(self._rate.take(address, 0.0))  # who failed often is not even heard
            identity = await self._credentials(connection)
        connection.scope["medqua.identity"] = identity
        self._limit(self._rate.take(identity.name if identity else address))
        if identity is None:
            raise HTTPException(
                401,
                "no valid credentials: send X-API-Key, or Authorization: Bearer",
                {"WWW-Authenticate": "Bearer"},
            )
        return identity

    async def _credentials(self, connection: HTTPConnection) -> Identity | None:
        key = connection.headers.get("x-api-key")
        if key is not None:
            digest = hashlib.sha256(key.encode()).hexdigest()
            for known in self._access.keys:
                if secrets.compare_digest(known.sha256, digest):
                    return Identity(f"key:{known.name}", frozenset(known.roles))
            return None
        scheme, _, token = connection.headers.get("authorization", "").partition(" ")
        if self._tokens is None or scheme.lower() != "bearer" or len(token) > 16_384:
            return None
        return await asyncio.to_thread(self._tokens.identify, token.strip())

    def _limit(self, seconds: float) -> None:
        if seconds:
            headers = {"Retry-After": str(max(1, round(seconds)))}
            raise HTTPException(429, "too many requests of one client; slow down", headers)


class Requires:
    """A dependency of a route: the caller has one of these roles."""

    def __init__(self, *roles: Role) -> None:
        self.roles = roles

    async def __call__(self, connection: HTTPConnection) -> Identity:
        """Return the caller.

        Raises:
            HTTPException: 401 without credentials, 403 without the role, 429 above the rate.
        """
        authenticator: Authenticator = connection.app.state.authenticator
        identity = await authenticator.identify(connection)
        if not identity.may(*self.roles):
            raise HTTPException(403, f"needed is one of the roles {', '.join(self.roles)}")
        return identity


class Anyone:
    """A dependency of a route that tells nothing worth hiding: whether the service lives."""

    async def __call__(self, connection: HTTPConnection) -> None:
        """Let the caller in."""
        connection.scope["medqua.open"] = True


def access_of(route: BaseRoute) -> tuple[Role, ...] | None:
    """Return the roles that may call a route; empty for anyone.

    Returns:
        None if the route does not say, so that nothing checks its callers.
    """
    if not isinstance(route, APIRoute):
        return None
    for call in _calls(route.dependant):
        if isinstance(call, Requires):
            return call.roles
        if isinstance(call, Anyone):
            return ()
    return None


def check_routes(app: FastAPI) -> None:
    """Refuse an app with a route that does not say who may call it.

    Raises:
        ConfigError: Such a route.
    """
    for route in app.routes:
        if access_of(route) is None:
            raise ConfigError(
                f"route {getattr(route, 'path', route)} does not say who may call it: give it "
                "Depends(Requires(...)) or Depends(Anyone())"
            )


def make_authenticator(settings: Settings) -> Authenticator:
    """Build what tells the callers of a service apart."""
    limits = settings.limits
    return Authenticator(settings.access, RateLimit(limits.requests_per_second, limits.burst))


def _calls(dependant: Dependant) -> Iterator[Any]:
    yield dependant.call
    for inner in dependant.dependencies:
        yield from _calls(inner)
