"""The audit log knows every request, or the request fails (PS3.15 section A.5)."""

import hashlib
import io
import json
import os
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.responses import JSONResponse
from starlette.testclient import TestClient

from medqua.serve.audit import AuditError, verify
from medqua.serve.http.guard import Answered, Guard
from medqua.serve.http.security import new_key
from medqua.serve.settings import Settings

SECRETS = {role: new_key() for role in ("infer", "read", "admin")}


def png(seed: int = 0) -> bytes:
    levels = np.random.default_rng(seed).integers(0, 256, (80, 70), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def locked(
    bundle_folder: Path, start_service: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("locked")
    keys = ", ".join(
        f'{{name = "{role}", sha256 = "{digest}", roles = ["{role}"]}}'
        for role, (_, digest) in SECRETS.items()
    )
    served = start_service(
        bundle_folder, folder, f"access.keys=[{keys}]", "batching.threads=1",
        "limits.body_bytes=1_000_000",
    )  # fmt: skip
    yield served
    served.end()


def entries(served: Any) -> list[dict[str, Any]]:
    file = served.folder / "audit.jsonl"
    assert verify(file) > 0
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_request_is_in_the_log_once_with_who_and_how_it_ended(locked) -> None:
    key = {role: {"X-API-Key": secret} for role, (secret, _) in SECRETS.items()}
    asked: dict[str, tuple[int, str]] = {}

    def ask(method: str, path: str, who: str, status: int, **more: Any) -> httpx.Response:
        request_id = f"r-{len(asked)}"
        headers = {**more.pop("headers", {}), **key.get(who, {}), "X-Request-Id": request_id}
        answer = client.request(method, path, headers=headers, **more)
        assert answer.status_code == status, (path, answer.text)
        known = who in key and status not in (413, 404)  # whose credentials were not looked at
        asked[request_id] = (status, f"key:{who}" if known else "")
        return answer

    file, other = png(), png(1)
    with locked.client as client:
        ask("GET", "/v1/admin/status", "nobody", 401)
        ask("POST", "/v1/findings", "", 401, files={"f": file}, headers={"X-API-Key": "mq_wrong"})
        ask("GET", "/metrics", "", 401, headers={"Authorization": "Bearer x.y.z"})
        ask("GET", "/v1/admin/status", "infer", 403)
        ask("POST", "/v1/findings", "read", 403, files={"f": file})
        table = {"Content-Type": "text/csv"}
        ask("POST", "/v1/findings", "infer", 415, content=b"x", headers=table)
        ask("POST", "/v1/findings", "infer", 413, content=bytes(1_000_001))
        ask("POST", "/v1/findings", "infer", 422, files={"f": b"no image"})
        ask("POST", "/v1/findings", "infer", 200, files=[("f", file), ("f", other)])
        ask("GET", "/nowhere", "infer", 404)
        ask("GET", "/metrics", "read", 200)
        ask("GET", "/v1/admin/status", "admin", 200)
        tensor = {"name": "image", "shape": [1, 112, 112], "datatype": "FP32"}
        image = np.linspace(0, 1, 112 * 112, dtype=np.float32)
        ask("POST", "/v2/models/medqua/infer", "infer", 200,
            json={"inputs": [{**tensor, "data": image.tolist()}]})  # fmt: skip
        ask("POST", "/v2/models/medqua/infer", "infer", 422,
            json={"inputs": [{**tensor, "data": [0.5] * len(image)}]})  # fmt: skip
        made = ask("POST", "/v1/jobs", "infer", 202, files={"f": file}).json()["id"]
        again = ask("GET", f"/v1/jobs/{made}", "infer", 200).json()
        while again["status"] != "done":
            time.sleep(0.1)  # a client that asks without a pause is refused
            again = ask("GET", f"/v1/jobs/{made}", "infer", 200).json()
        results = ask("GET", f"/v1/jobs/{made}/results", "infer", 200)
        ask("DELETE", f"/v1/jobs/{made}", "infer", 204)
        for probe in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"):
            assert client.get(probe).status_code == 200
    logged = [entry for entry in entries(locked) if entry["action"] not in ("start", "stop")]
    assert Counter(entry["request_id"] for entry in logged) == Counter(dict.fromkeys(asked, 1))
    by_id = {entry["request_id"]: entry for entry in logged}
    for request_id, (status, who) in asked.items():
        entry = by_id[request_id]
        assert (entry["status"], entry["who"]) == (status, who), entry
        assert entry["address"] == "127.0.0.1"
    hashes = [hashlib.sha256(content).hexdigest() for content in (file, other)]
    assert (by_id["r-8"]["what"], by_id["r-8"]["outcome"]) == (hashes, [200, 200])
    assert by_id["r-12"]["what"] == [hashlib.sha256(image.tobytes()).hexdigest()]
    assert by_id["r-14"]["what"] == hashes[:1]
    download = next(entry for entry in logged if entry["action"].endswith("/results"))
    assert download["result"] == hashlib.sha256(results.content).hexdigest()
    assert download["what"] == hashes[:1]
    [answer] = [json.loads(line) for line in results.text.splitlines()]
    assert len(answer["bundle"]) == 64
    assert (answer["export"], answer["version"]) == (None, answer["version"])


def test_what_the_service_keeps_is_for_its_owner_alone(locked) -> None:
    for path in locked.folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path.name


def test_a_second_service_on_the_spool_is_refused_by_name(bundle_folder: Path, locked) -> None:
    spool = locked.folder / "spool"
    command = [sys.executable, "-m", "medqua.serve", "app", str(bundle_folder), "listen.port=0"]
    done = subprocess.run(
        [*command, f"storage.spool={spool}"], capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 2
    told = " ".join(done.stderr.split())
    assert f"in use by another service (process {locked.process.pid})" in told
    assert str(spool) in told.replace(" ", "")
    with locked.client as client:
        assert client.get("/readyz").status_code == 200


def test_an_answer_that_cannot_be_written_down_does_not_leave(tmp_path: Path) -> None:
    told: list[Answered] = []

    def record(answered: Answered) -> None:
        told.append(answered)
        raise AuditError("the audit log cannot be written: No space left on device")

    settings = Settings.load(None, [f"storage.audit={tmp_path / 'audit'}"])
    app = Guard(JSONResponse({"secret": 1}), settings, lambda ended: None, record)
    client = TestClient(app, base_url="http://localhost")
    answer = client.get("/", headers={"X-Request-Id": "r"})
    assert answer.status_code == 503
    assert "nothing is answered" in answer.json()["error"]
    assert "secret" not in answer.text
    assert answer.headers["X-Request-Id"] == "r"
    assert (told[0].status, told[0].who) == (200, "")


def test_defects_and_clients_that_left_are_written_down(tmp_path: Path) -> None:
    told: list[Answered] = []
    settings = Settings.load(None, [f"storage.audit={tmp_path / 'audit'}"])

    async def defect(*_: Any) -> None:
        raise RuntimeError("a defect")

    async def silent(*_: Any) -> None:
        pass

    for app, status in ((defect, 500), (silent, 499)):
        client = TestClient(
            Guard(app, settings, lambda ended: None, told.append),
            base_url="http://localhost", raise_server_exceptions=False,
        )  # fmt: skip
        with suppress(AssertionError):  # of the test client, that nothing was answered
            client.get("/")
        assert told[-1].status == status


def test_a_line_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    """A disk that fills in the middle of a line: RLIMIT_FSIZE cuts a write as it does."""
    file = tmp_path / "audit"
    program = """
import resource, sys
from pathlib import Path
from medqua.serve.audit import AuditError, AuditLog
log = AuditLog(Path(sys.argv[1]))
told = dict(who="a", action="b", what=["c" * 64], outcome=[200], result="d" * 64)
log.record(request_id="1", **told)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (Path(sys.argv[1]).stat().st_size + 100, hard))
for _ in range(3):
    try:
        log.record(request_id="2", **told)
    except AuditError as error:
        print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
log.record(request_id="3", **told)
log.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(file)], capture_output=True, text=True, check=True,
        env=os.environ,
    )  # fmt: skip
    assert done.stdout.count("the audit log cannot be written: File too large") == 3
    assert verify(file) == 2
    assert [json.loads(line)["request_id"] for line in file.read_text().splitlines()] == ["1", "3"]
