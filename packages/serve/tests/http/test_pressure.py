"""A service under pressure: more clients than places, and clients that go.

Its worker is stopped and let go on by signals, so that requests are under way for as long as a
test needs them to be.
"""

import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

PLACES = 3


@pytest.fixture(scope="module")
def narrow(bundle_folder: Path, start_service, tmp_path_factory) -> Iterator:
    """A service with three places."""
    served = start_service(
        bundle_folder, tmp_path_factory.mktemp("narrow"), "batching.threads=1",
        f"batching.max_queue={PLACES}", "batching.max_batch_size=1", "limits.body_seconds=900",
        "limits.requests_per_second=0",
    )  # fmt: skip
    yield served
    served.end()


@contextmanager
def stopped(served) -> Iterator[None]:
    """Stop the model's process for a while."""
    with served.client as client:
        (pid,) = client.get("/v1/admin/status").json()["workers"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def admitted(served) -> int:
    with served.client as client:
        number: int = client.get("/v1/admin/status").json()["admitted"]
    return number


def connect(served) -> socket.socket:
    host, port = served.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)))


def request(body: bytes, length: int | None = None) -> bytes:
    """Return a request with a PNG, whose length may be stated as more than it is."""
    return (
        b"POST /v1/findings HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
        + f"Content-Length: {length or len(body)}\r\n\r\n".encode()
        + body
    )


def post(served, content: bytes) -> httpx.Response:
    with served.client as client:
        return client.post("/v1/findings", content=content, headers={"Content-Type": "image/png"})


def test_a_client_that_goes_while_it_waits_gives_its_place_back(
    narrow, radiograph: bytes, eventually
):
    with stopped(narrow):
        for _ in range(2):
            clients = [connect(narrow) for _ in range(PLACES)]
            for client in clients:
                client.sendall(request(radiograph))
            eventually(lambda: admitted(narrow) == PLACES)
            for client in clients:
                client.close()
            eventually(lambda: admitted(narrow) == 0)
    assert post(narrow, radiograph).status_code == 200


def test_an_upload_that_ends_too_early_takes_no_place(narrow, radiograph: bytes, eventually):
    for _ in range(PLACES + 1):
        with connect(narrow) as client:
            client.sendall(request(radiograph, len(radiograph) + 1))
            client.shutdown(socket.SHUT_WR)
            assert client.recv(4096) == b""
    eventually(lambda: admitted(narrow) == 0)
    assert post(narrow, radiograph).status_code == 200


def test_overload_is_answered_429_and_loses_nobody(narrow, radiograph: bytes, eventually):
    with ThreadPoolExecutor(PLACES) as threads:
        with stopped(narrow):
            early = [threads.submit(post, narrow, radiograph) for _ in range(PLACES)]
            eventually(lambda: admitted(narrow) == PLACES)
            refused = [post(narrow, radiograph) for _ in range(3)]
        assert [answer.result().status_code for answer in early] == [200] * PLACES
    for answer in refused:
        assert answer.status_code == 429
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert "try again later" in answer.json()["error"]
    assert post(narrow, radiograph).status_code == 200
