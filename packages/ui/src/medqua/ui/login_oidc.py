"""Login at an identity provider: OpenID Connect, authorization code flow with PKCE.

    [oidc]
    issuer = "https://id.hospital.example/realms/main"
    client_id = "medqua-viewer"
    client_secret_file = "/etc/medqua/oidc-secret"     # left out for a public client
    roles_claim = "roles"                               # dots lead into nested objects

What the provider says is believed only in a token that its published keys have signed, for this
client, with the nonce of this login; the answer counts only in the browser that began it.
"""

import base64
import hashlib
import hmac
import secrets
import threading
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import jwt
import requests

from medqua.core.errors import ConfigError, MedQuaError
from medqua.ui.login import ROLES, User

MINUTES_TO_LOG_IN = 10
MOST_PENDING = 1000
"""Logins under way at a time; the oldest is forgotten."""


class LoginError(MedQuaError, RuntimeError):
    """A login that did not succeed; the message is for the user."""


@dataclass(frozen=True)
class ProviderSettings:
    """Where users log in."""

    issuer: str
    """Issuer URL."""
    client_id: str
    """This viewer's name at the provider."""
    client_secret_file: str = ""
    """File with its secret; empty for a public client."""
    roles_claim: str = "roles"
    """Claim of the ID token that lists roles."""
    algorithms: tuple[str, ...] = ("RS256", "ES256")
    """Signature algorithms taken."""

    @classmethod
    def load(cls, file: Path) -> "ProviderSettings":
        """Read the section `[oidc]` of a TOML file.

        Raises:
            ConfigError: It cannot be read, or a value is wrong.
        """
        try:
            table = dict(tomllib.loads(file.read_text())["oidc"])
            table["algorithms"] = tuple(table.get("algorithms", cls.algorithms))
            settings = cls(**table)
        except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{file} has no section [oidc] that can be read ({type(error).__name__}): it needs "
                "issuer and client_id; client_secret_file, roles_claim and algorithms may be there"
            ) from None
        parts = urlsplit(settings.issuer)
        local = parts.hostname in ("127.0.0.1", "localhost", "::1")
        if not parts.hostname or (parts.scheme != "https" and not local):
            raise ConfigError(f"oidc.issuer is {settings.issuer!r}: give its https address")
        if any(name[:2] in ("HS", "no") for name in settings.algorithms):
            raise ConfigError("oidc.algorithms: give signatures by a public key, such as RS256")
        return settings


@dataclass(frozen=True)
class _Pending:
    """A login that was begun."""

    nonce: str
    verifier: str
    binding: str
    redirect: str
    until: float


class Provider:
    """An identity provider.

    Args:
        settings: Which.
    """

    def __init__(self, settings: ProviderSettings) -> None:
        self._settings, self._lock = settings, threading.Lock()
        self._pending: dict[str, _Pending] = {}
        self._described: Mapping[str, Any] | None = None
        self._keys: jwt.PyJWKClient | None = None

    def begin(self, redirect: str) -> tuple[str, str]:
        """Begin a login.

        Args:
            redirect: Where the provider sends the browser afterwards.

        Returns:
            Address to send the browser to, and a secret for it to keep in a cookie.

        Raises:
            LoginError: The provider does not answer.
        """
        description = self._description()
        state, binding, nonce = (secrets.token_urlsafe(32) for _ in range(3))
        verifier = secrets.token_urlsafe(48)
        now = time.monotonic()
        pending = _Pending(nonce, verifier, binding, redirect, now + 60 * MINUTES_TO_LOG_IN)
        with self._lock:
            self._pending = {s: p for s, p in self._pending.items() if p.until > now}
            while len(self._pending) >= MOST_PENDING:
                self._pending.pop(next(iter(self._pending)))
            self._pending[state] = pending
        digest = hashlib.sha256(verifier.encode()).digest()
        query = {
            "response_type": "code",
            "client_id": self._settings.client_id,
            "redirect_uri": redirect,
            "scope": "openid profile",
            "state": state,
            "nonce": nonce,
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }
        address = str(description["authorization_endpoint"])
        return f"{address}{'&' if '?' in address else '?'}{urlencode(query)}", binding

    def finish(self, state: str, code: str, binding: str) -> User:
        """End a login: fetch the token and believe what it says.

        Args:
            state: As the provider gave it back.
            code: The provider's code.
            binding: The browser's secret.

        Raises:
            LoginError: Anything is not as it must be.
        """
        with self._lock:
            pending = self._pending.pop(state, None)
        if (
            pending is None
            or pending.until < time.monotonic()
            or not hmac.compare_digest(pending.binding.encode(), binding.encode())
        ):
            raise LoginError("This login has ended or was begun elsewhere. Log in again.")
        claims = self._claims(self._token(code, pending), pending.nonce)
        found: Any = claims
        for part in self._settings.roles_claim.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        words = found.split() if isinstance(found, str) else found
        words = words if isinstance(words, list | tuple) else ()
        roles = frozenset(role for role in ROLES if role in words)
        if "view" not in roles:
            raise LoginError("Your account may not use this viewer: ask for the role `view`.")
        shown = claims.get("preferred_username") or claims.get("name") or claims["sub"]
        return User(f"oidc:{claims['sub']}"[:200], roles, str(shown)[:64])

    def _token(self, code: str, pending: _Pending) -> str:
        body = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": pending.redirect,
            "client_id": self._settings.client_id,
            "code_verifier": pending.verifier,
        }
        if self._settings.client_secret_file:
            try:
                body["client_secret"] = Path(self._settings.client_secret_file).read_text().strip()
            except OSError:
                raise LoginError(
                    "The viewer cannot read its client secret; tell its keeper."
                ) from None
        answer = _ask("POST", str(self._description()["token_endpoint"]), body)
        return str(answer.get("id_token", ""))

    def _claims(self, token: str, nonce: str) -> dict[str, Any]:
        settings = self._settings
        try:
            if self._keys is None:
                self._keys = jwt.PyJWKClient(str(self._description()["jwks_uri"]), timeout=5)
            claims: dict[str, Any] = jwt.decode(
                token,
                self._keys.get_signing_key_from_jwt(token).key,
                algorithms=list(settings.algorithms),
                audience=settings.client_id,
                issuer=settings.issuer,
                leeway=30,
                options={"require": ["exp", "iat", "iss", "aud", "sub", "nonce"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError):
            raise LoginError("The identity provider's answer is not valid. Log in again.") from None
        if not hmac.compare_digest(str(claims["nonce"]).encode(), nonce.encode()):
            raise LoginError("The identity provider's answer is of another login. Log in again.")
        if claims.get("azp", settings.client_id) != settings.client_id:
            raise LoginError("The identity provider's answer is for another application.")
        return claims

    def _description(self) -> Mapping[str, Any]:
        """Return the provider's own description (OpenID Connect Discovery 1.0)."""
        if self._described is None:
            issuer = self._settings.issuer.rstrip("/")
            told = _ask("GET", f"{issuer}/.well-known/openid-configuration")
            needed = ("authorization_endpoint", "token_endpoint", "jwks_uri")
            if told.get("issuer") != self._settings.issuer or not all(n in told for n in needed):
                raise LoginError("The identity provider describes itself wrongly; tell its keeper.")
            self._described = told
        return self._described


def _ask(method: str, url: str, body: Mapping[str, str] | None = None) -> dict[str, Any]:
    try:
        with requests.Session() as session:
            session.trust_env = False
            answer = session.request(method, url, data=body, timeout=(3, 10), allow_redirects=False)
            if answer.status_code != 200:
                raise LoginError("The identity provider refuses the login. Log in again.")
            told = answer.json()
    except (OSError, ValueError):
        raise LoginError("The identity provider cannot be reached. Try again later.") from None
    return told if isinstance(told, dict) else {}
