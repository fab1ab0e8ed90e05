"""What stands between the network and the app: certificates, slow heads, the end.

The app behind it is a small one, so that no model has to start.
"""

import json
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

APP = """
import asyncio, logging, sys
from fastapi import FastAPI
from medqua.serve import settings
from medqua.serve.http import metrics, server, service

app = FastAPI()
app.state.service = service.Service(settings.Settings())
under_way = []

@app.get("/slow")
async def slow() -> str:
    under_way.append(1)
    await asyncio.sleep(2)
    return "answered"

@app.get("/under-way")
async def count() -> int:
    return len(under_way)

@app.get("/draining")
async def draining() -> bool:
    return app.state.service.draining

metrics.log.addHandler(logging.StreamHandler())
metrics.log.setLevel("INFO")
metrics.log.handlers[0].setFormatter(logging.Formatter("%(told)s"))
words = dict(word.split("=") for word in sys.argv[1:])
if "head_seconds" in words:
    server.HEAD_SECONDS = float(words.pop("head_seconds"))
listen = settings.Listen(port=0, **{k: settings.Path(v) for k, v in words.items()})
server.serve(app, settings.Settings(listen=listen))
"""


@contextmanager
def running(*words: str) -> Iterator[tuple[int, subprocess.Popen]]:
    """A server in a process of its own, and its port."""
    command = [sys.executable, "-c", APP, *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        told = ""
        for line in process.stderr:
            told += line
            if "port" in line:
                break
        try:
            yield json.loads(line.replace("'", '"'))["port"], process
        except ValueError:
            raise RuntimeError(told + process.stderr.read()) from None
        finally:
            process.terminate()
            process.wait(900)


@dataclass
class Secured:
    """A server that wants certificates, and what its clients have."""

    url: str
    folder: Path


@pytest.fixture(scope="module")
def secured(
    tmp_path_factory: pytest.TempPathFactory, issue: Callable[..., Any]
) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    authority = issue("authority")
    authorities, _ = authority.write(folder, "authority")
    certificate, key = issue("service", authority).write(folder, "service")
    issue("client", authority).write(folder, "client")
    issue("stranger").write(folder, "stranger")
    words = {"certificate": certificate, "private_key": key, "client_authorities": authorities}
    with running(*(f"{key}={path}" for key, path in words.items())) as (port, _):
        yield Secured(f"https://127.0.0.1:{port}", folder)


def context(secured: Secured, client: str | None, authority: str = "authority") -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=str(secured.folder / f"{authority}.pem"))
    if client is not None:
        made.load_cert_chain(secured.folder / f"{client}.pem", secured.folder / f"{client}.key")
    return made


def test_a_client_of_the_authority_is_served(secured: Secured):
    trusted = context(secured, "client")
    with httpx.Client(base_url=secured.url, verify=trusted, timeout=None) as client:
        assert client.get("/draining").json() is False


@pytest.mark.parametrize("client", [None, "stranger"])
def test_a_client_without_its_certificate_is_not(secured: Secured, client: str | None):
    with (
        httpx.Client(base_url=secured.url, verify=context(secured, client), timeout=None) as asking,
        pytest.raises(httpx.TransportError),
    ):
        asking.get("/draining")


def test_a_service_of_another_authority_is_not_believed(secured: Secured):
    with (
        httpx.Client(base_url=secured.url, verify=context(secured, "client", "stranger")) as client,
        pytest.raises(httpx.ConnectError, match=r"(?i)certificate verify failed"),
    ):
        client.get("/draining")


def test_plain_text_is_not_answered(secured: Secured):
    plain = secured.url.replace("https://", "http://")
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{plain}/draining", timeout=None)


def test_a_head_that_does_not_end_is_cut(eventually: Callable[..., Any]):
    """Also one that dribbles, and one on a connection that has been answered before."""
    with running("head_seconds=1") as (port, _):

        def dribble(used: bool) -> None:
            with socket.create_connection(("127.0.0.1", port)) as client:
                if used:
                    client.sendall(b"GET /draining HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    assert client.recv(4096).startswith(b"HTTP/1.1 200")
                client.settimeout(0.1)
                while True:
                    try:
                        client.sendall(b"GET /draining HTTP/1.1\r\n" if used else b"X")
                        if not client.recv(4096):
                            return
                    except TimeoutError:
                        continue
                    except OSError:
                        return

        def slow() -> str | None:
            try:
                return str(httpx.get(f"http://127.0.0.1:{port}/slow", timeout=None).json())
            except httpx.TransportError:  # the machine was too busy to send even this head
                return None

        with ThreadPoolExecutor(2) as threads:
            list(threads.map(dribble, (False, True)))
        assert eventually(slow) == "answered"  # longer than a head may take


def test_the_end_answers_who_is_under_way_and_takes_no_others():
    with running() as (port, process), ThreadPoolExecutor(1) as threads:
        url = f"http://127.0.0.1:{port}"
        early = threads.submit(httpx.get, f"{url}/slow", timeout=None)
        with httpx.Client(base_url=url) as other:
            assert other.get("/draining").json() is False
            while not other.get("/under-way").json():
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            told = []
            try:
                while True:
                    told.append(other.get("/draining").json())
            except httpx.TransportError:
                pass  # no new connection
        assert told == sorted(told)  # `/readyz` tells what this tells
        assert early.result().json() == "answered"
        process.wait(900)
        assert "rror" not in process.stderr.read()
