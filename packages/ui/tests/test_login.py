"""Who gets in, route by route: passwords, identity provider, roles, stolen names."""

import base64
import io
import json
import re
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import jwt
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from PIL import Image

from medqua.core.errors import ConfigError
from medqua.ui.login import LOCAL, Passwords, add_entry, make_entry
from medqua.ui.studies import Sessions

SECRET = "correct horse battery"
LOGIN = {
    ("GET", "/login"), ("POST", "/login"), ("GET", "/login/start"), ("GET", "/login/callback"),
    ("POST", "/logout"),
}  # fmt: skip


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("login") / "users.txt"
    add_entry(file, make_entry("ada", SECRET, "view,reveal,export"))
    add_entry(file, make_entry("bob", SECRET, "view"))
    return file


@pytest.fixture(scope="module")
def provider_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


class Identity:
    """An identity provider: what it is asked, and what it will claim."""

    def __init__(self, key: rsa.RSAPrivateKey) -> None:
        self.key, self.address = key, ""
        self.claims: dict[str, Any] = {}
        self.asked: dict[str, list[str]] = {}

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        if path == "/.well-known/openid-configuration":
            names = ("authorization_endpoint", "token_endpoint", "jwks_uri")
            ends = ("/authorize", "/token", "/jwks")
            told = {n: self.address + e for n, e in zip(names, ends, strict=True)}
            return {"issuer": self.address, **told}
        if path == "/jwks":
            key = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self.key.public_key()))
            return {"keys": [{**key, "kid": "1", "use": "sig", "alg": "RS256"}]}
        self.asked = parse_qs(body.decode())
        token = jwt.encode(self.claims, self.key, "RS256", headers={"kid": "1"})
        return {"id_token": token, "access_token": "x", "token_type": "Bearer"}


@pytest.fixture(scope="module")
def identity(provider_key: rsa.RSAPrivateKey) -> Iterator[Identity]:
    provider = Identity(provider_key)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = json.dumps(provider.answer(self.path, body)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        provider.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield provider
        server.shutdown()


@dataclass(frozen=True)
class Server:
    """A server with a login."""

    address: str
    audit: Path
    temporary: Path

    def log_in(self, client: httpx.Client, name: str = "ada", password: str = SECRET) -> int:
        form = {"name": name, "password": password}
        return client.post("/login", data=form, headers={"Origin": self.address}).status_code


@pytest.fixture(scope="module")
def server(
    users: Path, identity: Identity, serving: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    oidc = tmp_path_factory.mktemp("oidc") / "oidc.toml"
    oidc.write_text(f'[oidc]\nissuer = "{identity.address}"\nclient_id = "viewer"\n')
    with serving("--pictures-only", "--passwords", users, "--oidc", oidc) as running:
        address = running.address.rstrip("/")
        with httpx.Client(timeout=None) as client:  # it listens before it answers
            assert client.get(f"{address}/login").status_code == 200
        yield Server(address, running.audit, running.temporary)


def until_whole(client: httpx.Client) -> None:
    """Wait until Gradio's routes are there; the client is logged in."""
    while not client.get("/state/page").json()["whole"]:
        time.sleep(0.1)


@pytest.fixture
def stranger(server: Server) -> Iterator[httpx.Client]:
    """A browser without a session."""
    with httpx.Client(base_url=server.address, timeout=None) as client:
        yield client


ROUTES = """
import asyncio, json, re, sys
from pathlib import Path
from starlette.routing import Mount, Route
from medqua.ui.app import Settings, create_app

def walk(router, prefix=""):
    for route in router.routes:
        path = prefix + re.sub(r"\\{[^}]*\\}", "x", getattr(route, "path", ""))
        if isinstance(route, Mount) and hasattr(route.app, "routes"):
            yield from walk(route.app, path.rstrip("/"))
        elif isinstance(route, Mount):
            yield "GET", path + "/x"
        else:
            for method in getattr(route, "methods", None) or ["GET"]:
                yield method, path or "/"

folder = Path(sys.argv[1])
settings = Settings(passwords=folder / "users", audit=folder / "audit.jsonl")
app = create_app(settings)
asyncio.run(app.state.page.build())
print(json.dumps(sorted(set(walk(app.router)))))
"""


@pytest.fixture(scope="module")
def every(users: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """Method and path of every route, Gradio's too."""
    folder = tmp_path_factory.mktemp("routes")
    (folder / "users").write_text(users.read_text())
    (folder / "users").chmod(0o600)
    command = [sys.executable, "-c", ROUTES, str(folder)]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    found = {(method, path) for method, path in json.loads(told.stdout.splitlines()[-1])}
    spec = find_spec("gradio")  # its own routes are included as one, so they are read off
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).with_name("routes.py").read_text()
    for method, path in re.findall(r'@router\.(get|post|head)\(\s*"([^"]+)"', source):
        found.add((method.upper(), "/gradio_api" + re.sub(r"\{[^}]*\}", "x", path)))
    return sorted(found)


def test_nobody_gets_anything_but_the_login_page(
    every: list[tuple[str, str]], stranger: httpx.Client
):
    paths = {path for _, path in every}
    assert len(every) > 70
    theirs = {"/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/file=x", "/config"}
    assert theirs <= paths
    assert {"/worklist", "/export/x/x", "/viewer/studies/x/pixels", "/viewer/x"} <= paths
    for method, path in every:
        stranger.cookies.clear()
        answer = stranger.request(method, path)
        told = (method, path, answer.status_code)
        if (method, path) in LOGIN:
            assert answer.status_code in (200, 303, 401, 403), told
            assert "gradio" not in answer.text.lower(), told
            given = "medqua_session=" in answer.headers.get("set-cookie", "")
            assert not given or path == "/logout"
        elif (method, path) == ("GET", "/"):
            assert (answer.status_code, answer.headers["location"]) == (303, "/login")
        else:
            assert answer.status_code == 401, told
            assert answer.text in ("log in first", ""), told
    for path in ("/nothing", "/../config", "/CONFIG", "/viewer/../config", "/login/x"):
        assert stranger.get(path).status_code in (401, 404)


def test_with_a_login_only_the_routes_that_the_page_needs_are_open(
    every: list[tuple[str, str]], server: Server, stranger: httpx.Client
):
    assert server.log_in(stranger, "bob") == 303
    until_whole(stranger)
    opened = set()
    for method, path in every:
        if path in ("/logout", "/gradio_api/heartbeat/x", "/gradio_api/queue/data"):
            continue  # would end the session, or stream for ever
        if stranger.request(method, path).status_code != 404:
            opened.add(path)
    gradio = {path for path in opened if path.startswith("/gradio_api")}
    assert gradio == {"/gradio_api/startup-events", "/gradio_api/queue/join"}
    for name in ("upload", "file=x", "proxy=x", "x"):
        path = f"/gradio_api/{name}"
        assert stranger.get(path).status_code == 404
        assert stranger.post(path, files={"files": b"x"}).status_code == 404


def test_passwords_let_in_and_out_and_failures_are_slowed_and_audited(
    server: Server, stranger: httpx.Client
):
    page = stranger.get("/login")
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    assert stranger.post("/login", data={"name": "ada", "password": SECRET}).status_code == 403
    foreign = {"Origin": "https://evil.example"}
    assert stranger.post("/login", data={"name": "ada"}, headers=foreign).status_code == 403
    assert server.log_in(stranger) == 303
    cookie = stranger.cookies["medqua_session"]
    assert stranger.get("/state").json()["user"] == "ada"
    assert "HttpOnly" in stranger.post("/logout").headers["set-cookie"]
    stranger.cookies.set("medqua_session", cookie)
    assert stranger.get("/state").status_code == 401  # the session is gone, not only its cookie
    assert server.log_in(stranger, "carol", "wrong wrong wrong") == 401
    audit = server.audit.read_text()
    events = [json.loads(line)["event"] for line in audit.splitlines()]
    assert {"login", "logout", "login failed"} <= set(events)
    assert "carol" not in audit  # who mistypes may have typed a password there
    assert SECRET not in audit


@pytest.fixture
def file() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.arange(600, dtype=np.uint8).reshape(20, 30)).save(stream, "PNG")
    return stream.getvalue()


def test_two_users_cannot_reach_each_others_files_with_stolen_names(server: Server, file: bytes):
    with (
        httpx.Client(base_url=server.address, timeout=None) as ada,
        httpx.Client(base_url=server.address, timeout=None) as eve,
    ):
        assert server.log_in(ada) == server.log_in(eve) == 303
        _steal(server, ada, eve, file)


def _steal(server: Server, ada: httpx.Client, eve: httpx.Client, file: bytes) -> None:
    until_whole(ada)
    (name,) = ada.post("/worklist/files?name=a.png", content=file).json()["opened"]
    assert [s["name"] for s in ada.get("/worklist").json()["studies"]] == [name]
    assert ada.get(f"/viewer/studies/{name}/pixels").status_code == 200
    assert eve.get("/worklist").json()["studies"] == []
    kinds = ("report.pdf", "report.dcm", "findings.json", "findings.csv", "deidentified.dcm")
    stolen = [("GET", f"/viewer/studies/{name}/{part}") for part in ("description", "pixels")]
    stolen += [("GET", f"/export/{name}/{kind}") for kind in kinds]
    stolen += [("POST", f"/export/{name}/send"), ("DELETE", f"/worklist/{name}")]
    for method, path in stolen:
        assert eve.request(method, path).status_code == 404, path
    event = {"session_hash": "adaspage"}  # no whole event: Gradio refuses it, after the guard
    assert ada.post("/gradio_api/queue/join", json=event).status_code == 422
    assert eve.post("/gradio_api/queue/join", json=event).status_code == 404
    assert eve.get("/gradio_api/queue/data?session_hash=adaspage").status_code == 404
    assert eve.get("/gradio_api/heartbeat/adaspage").status_code == 404
    assert eve.post("/gradio_api/queue/join", content=b"[" * 100_000).status_code == 400
    assert eve.post("/gradio_api/queue/join", content=b"x" * 2_000_000).status_code == 413
    assert eve.delete("/worklist").json()["number"] > 0
    assert ada.get(f"/viewer/studies/{name}/pixels").status_code == 200
    assert list(server.temporary.rglob(f"{name}.*"))
    assert ada.post("/logout").status_code == 303
    assert not list(server.temporary.rglob(f"{name}.*"))


def test_roles_decide_what_may_be_seen_and_taken_out(
    server: Server, stranger: httpx.Client, file: bytes
):
    assert server.log_in(stranger, "bob") == 303
    (name,) = stranger.post("/worklist/files?name=a.png", content=file).json()["opened"]
    assert stranger.get(f"/viewer/studies/{name}/pixels").status_code == 200
    for kind in ("report.pdf", "findings.json", "deidentified.dcm"):
        assert stranger.get(f"/export/{name}/{kind}").status_code == 403
    assert stranger.get("/state").json()["roles"] == ["view"]


def follow(client: httpx.Client, identity: Identity, **claims: Any) -> Any:
    """Log in at the provider; it claims what it is told to."""
    start = client.get("/login/start")
    query = parse_qs(urlsplit(start.headers["location"]).query)
    identity.claims = {
        "iss": identity.address, "aud": "viewer", "sub": "s-1", "iat": time.time(),
        "exp": time.time() + 3600, "nonce": query["nonce"][0], "roles": ["view", "export", "x"],
        "preferred_username": "Dr Grace", **claims,
    }  # fmt: skip
    assert query["code_challenge_method"] == ["S256"]
    return client.get(f"/login/callback?code=c&state={query['state'][0]}")


def test_an_identity_provider_lets_in_whom_it_signs_for(
    server: Server, stranger: httpx.Client, identity: Identity
):
    answer = follow(stranger, identity)
    assert answer.status_code == 200
    assert "SameSite=Strict" in answer.headers["set-cookie"]
    told = stranger.get("/state").json()
    assert (told["user"], told["roles"]) == ("Dr Grace", ["export", "view"])
    assert identity.asked["code_verifier"][0]
    assert identity.asked["redirect_uri"] == [f"{server.address}/login/callback"]


@pytest.mark.parametrize(
    "claims",
    [
        {"nonce": "another"},
        {"aud": "another"},
        {"iss": "https://evil.example"},
        {"exp": 1},
        {"azp": "another"},
        {"roles": ["export"]},
        {"roles": None},
    ],
    ids=["nonce", "audience", "issuer", "expired", "party", "no view", "no roles"],
)
def test_an_answer_of_the_provider_that_is_not_for_us_lets_nobody_in(
    claims: dict[str, Any], stranger: httpx.Client, identity: Identity
):
    assert follow(stranger, identity, **claims).status_code == 401
    assert stranger.get("/state").status_code == 401


def test_a_login_that_began_in_another_browser_counts_for_nothing(
    stranger: httpx.Client, identity: Identity
):
    start = stranger.get("/login/start")
    state = parse_qs(urlsplit(start.headers["location"]).query)["state"][0]
    stranger.cookies.clear()
    assert stranger.get(f"/login/callback?code=c&state={state}").status_code == 401
    assert stranger.get("/login/callback?code=c&state=unknown").status_code == 401
    assert stranger.get("/login/callback?error=access_denied").status_code == 401


def test_a_password_file_is_private_salted_and_read_again(tmp_path: Path):
    file = tmp_path / "users"
    add_entry(file, make_entry("ada", SECRET, "view"))
    add_entry(file, make_entry("bob", SECRET, "view,reveal"))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    entries = [line.split("$")[-1] for line in file.read_text().splitlines()]
    assert len(set(entries)) == 2  # the same password, another salt
    assert SECRET not in file.read_text()
    passwords = Passwords(file)
    user = passwords.check("ada", SECRET)
    assert user is not None
    assert user.roles == {"view"}
    assert passwords.check("ada", SECRET + "x") is None
    assert passwords.check("eve", SECRET) is None
    assert passwords.valid(user)
    assert passwords.wait("ada", "192.0.2.1") == 0
    for _ in range(5):
        passwords.wait("ada", "192.0.2.1", failed=1.0)
    assert passwords.wait("ada", "192.0.2.1") > 0
    assert passwords.wait("ada", "192.0.2.2") == 0
    assert not passwords.valid(LOCAL)
    add_entry(file, make_entry("ada", SECRET + " new", "view"))
    assert not passwords.valid(user)
    file.write_text("")
    assert passwords.check("bob", SECRET) is None
    add_entry(file, make_entry("bob", SECRET, "view"))
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        Passwords(file)


@pytest.mark.parametrize(
    ("name", "password", "roles"),
    [
        ("a:b", SECRET, "view"),
        ("ada", "short", "view"),
        ("ada", SECRET, "export"),
        ("ada", SECRET, "view,root"),
    ],
)
def test_an_entry_that_cannot_be_is_refused(name: str, password: str, roles: str):
    with pytest.raises(ConfigError):
        make_entry(name, password, roles)


def test_scrypt_agrees_with_the_vector_of_rfc_7914(tmp_path: Path):
    """RFC 7914, section 12, third vector: the hash is the standard's own."""
    digest = bytes.fromhex(
        "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2"
        "d5432955613f0fcf62d49705242a9af9e61e85dc0d651e40dfcf017b45575887"
    )
    salt = base64.b64encode(b"SodiumChloride").decode()
    entry = f"scrypt$14$8$1${salt}${base64.b64encode(digest).decode()}"
    file = tmp_path / "users"
    file.write_text(f"ada:view:{entry}\n")
    file.chmod(0o600)
    assert Passwords(file).check("ada", "pleaseletmein") is not None


def test_sessions_end_after_the_longest_time_and_pages_belong_to_one(tmp_path: Path):
    now = [0.0]
    sessions = Sessions(tmp_path, longest_seconds=100.0, clock=lambda: now[0])
    one, two = sessions.begin(), sessions.begin()
    assert sessions.claim(one, "page")
    assert sessions.claim(one, "page")
    assert not sessions.claim(two, "page")
    sessions.end(one)
    assert sessions.claim(two, "page")
    now[0] = 101.0
    assert sessions.get(two) is None
    assert sessions.sweep() == 1
    sessions.close()
