import asyncio
import hashlib
import json
import threading
import time
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.testclient import TestClient

from medqua.core.errors import ConfigError
from medqua.serve.http.app import create_app
from medqua.serve.http.guard import Allowance, Budget
from medqua.serve.http.security import RateLimit, Requires, access_of, new_key
from medqua.serve.settings import Settings

KEYS = {role: f"secret-{role}" for role in ("infer", "read", "admin")}
ISSUER, AUDIENCE = "https://id.example", "medqua"


@pytest.fixture(scope="module")
def signing_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="module")
def jwks_url(signing_key: rsa.RSAPrivateKey):
    """An identity provider's published keys."""
    published = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(signing_key.public_key()))
    body = json.dumps({"keys": [{**published, "kid": "1", "use": "sig", "alg": "RS256"}]}).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/jwks"
        server.shutdown()


@pytest.fixture(scope="module")
def settings(jwks_url: str) -> Settings:
    keys = [
        {"name": role, "sha256": hashlib.sha256(key.encode()).hexdigest(), "roles": [role]}
        for role, key in KEYS.items()
    ]
    oidc = {"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": jwks_url, "roles_claim": "x.roles"}
    return Settings.from_dict(
        {"access": {"keys": keys, "oidc": oidc}, "limits": {"requests_per_second": 0}}
    )


@pytest.fixture(scope="module")
def app(settings: Settings) -> FastAPI:
    return create_app(Path("unopened"), settings)


@pytest.fixture(scope="module")
def client(app: FastAPI) -> TestClient:
    """Calls an app that has not started: whoever gets past access control meets a defect."""
    return TestClient(app, raise_server_exceptions=False)


def routes(app: FastAPI) -> list[tuple[str, str, tuple[str, ...]]]:
    filled = {"{job}": 32 * "0", "{model}": "medqua"}
    found = []
    for route in app.routes:
        path = route.path
        for name, value in filled.items():
            path = path.replace(name, value)
        found += [(method, path, access_of(route)) for method in route.methods]
    return found


def test_every_route_asks_who_calls(app: FastAPI, client: TestClient):
    assert len(routes(app)) >= 19
    for method, path, roles in routes(app):
        assert roles is not None, path
        bare = client.request(method, path).status_code
        assert (bare == 401) == bool(roles), (method, path, bare)
        wrong = client.request(method, path, headers={"X-API-Key": "wrong"}).status_code
        assert (wrong == 401) == bool(roles)
        for role, key in KEYS.items():
            status = client.request(method, path, headers={"X-API-Key": key}).status_code
            allowed = not roles or role == "admin" or role in roles
            assert (status not in (401, 403)) == allowed, (method, path, role, status)
    open_paths = {path for _, path, roles in routes(app) if not roles}
    assert open_paths == {"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"}


def test_an_app_with_a_route_that_does_not_ask_is_not_built(settings: Settings):
    careless = APIRouter()

    @careless.get("/everything")
    def everything() -> str:
        return "all"

    with pytest.raises(ConfigError, match="/everything does not say who may call it"):
        create_app(Path("unopened"), settings, routers=[careless])


def claims(**others: object) -> dict[str, object]:
    now = int(time.time())
    usual = {"iss": ISSUER, "aud": AUDIENCE, "sub": "u1", "exp": now + 3600}
    usual["x"] = {"roles": ["read"]}
    return {name: value for name, value in (usual | others).items() if value is not None}


def sign(key: object, algorithm: str = "RS256", kid: str = "1", **others: object) -> str:
    return jwt.encode(claims(**others), key, algorithm=algorithm, headers={"kid": kid})


def ask(client: TestClient, token: str) -> int:
    return client.get("/metrics", headers={"Authorization": f"Bearer {token}"}).status_code


def test_tokens_of_the_provider(client: TestClient, signing_key: rsa.RSAPrivateKey):
    assert ask(client, sign(signing_key)) == 200
    assert ask(client, sign(signing_key, x={"roles": "other read"})) == 200
    for roles in (
        {},
        {"roles": ["infer"]},
        {"roles": "root"},
        {"roles": {"read": 1}},
        "read",
        None,
    ):
        assert ask(client, sign(signing_key, x=roles)) == 403


@pytest.mark.parametrize(
    "others",
    [
        {"exp": 1},
        {"exp": None},
        {"nbf": 2**32},
        {"iss": "https://other.example"},
        {"iss": None},
        {"aud": "other"},
        {"aud": None},
        {"sub": None},
    ],
)
def test_tokens_that_are_not_for_us(client: TestClient, signing_key: rsa.RSAPrivateKey, others):
    assert ask(client, sign(signing_key, **others)) == 401


def test_forged_tokens(client: TestClient, signing_key: rsa.RSAPrivateKey):
    other = rsa.generate_private_key(65537, 2048)
    assert ask(client, sign(other)) == 401
    assert ask(client, sign("s" * 32, "HS256")) == 401
    assert ask(client, jwt.encode(claims(), None, algorithm="none")) == 401
    assert ask(client, sign(signing_key)[:-6] + "AAAAAA") == 401
    for token in ("", "a.b.c", "é", "x" * 20_000):
        assert (
            ask(client, token.encode("latin-1").decode("latin-1") if token != "é" else "e") == 401
        )


@pytest.mark.anyio
async def test_a_slow_body_is_ended():
    """Asked without a network: a service with so short a limit would end others' bodies too."""

    async def body() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    own = APIRouter()

    @own.post("/own", dependencies=[Depends(Requires("infer"))])
    async def read(request: Request) -> int:
        return len(await request.body())

    settings = Settings.from_dict({"limits": {"body_seconds": 0.1}})
    transport = httpx.ASGITransport(create_app(Path("unopened"), settings, routers=[own]))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answer = await client.post("/own", content=body())
    assert answer.status_code == 408
    assert answer.headers["connection"] == "close"
    assert answer.json() == {"error": "the body took over 0.1 s"}


def test_guessing_keys_is_slowed(settings: Settings):
    limited = {"requests_per_second": 0.01, "burst": 3}
    document = {"access": {"keys": [vars(settings.access.keys[0])]}, "limits": limited}
    client = TestClient(create_app(Path("unopened"), Settings.from_dict(document)))
    codes = [client.get("/metrics", headers={"X-API-Key": str(n)}).status_code for n in range(5)]
    assert codes == [401, 401, 401, 429, 429]
    answer = client.get("/metrics", headers={"X-API-Key": KEYS["infer"]})
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) > 0


def test_each_client_has_its_own_rate(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr("medqua.serve.http.security.time.monotonic", lambda: now[0])
    rate = RateLimit(1000.0, 2)
    assert [rate.take("a") for _ in range(3)] == [0, 0, 0.001]
    assert rate.take("b") == 0
    now[0] += 0.001
    assert rate.take("a") == 0
    assert RateLimit(0.0, 1).take("a") == 0


def test_a_new_key_fits_its_hash():
    key, digest = new_key()
    assert hashlib.sha256(key.encode()).hexdigest() == digest
    assert len(key) > 40
    assert new_key()[0] != key


def test_bytes_in_flight_are_bounded_and_given_back():
    budget = Budget(10)
    first, second = Allowance(budget), Allowance(budget)
    first.add(8)
    with pytest.raises(Exception, match="try again later"):
        second.add(3)
    first.release()
    second.add(3)
    assert budget.used == 3
