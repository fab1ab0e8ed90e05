"""The service in replicas on a local Ray cluster, one node of which is killed under load."""

import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from medqua.core.errors import ConfigError
from medqua.serve.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")

TRIES = 20


def png(seed: int) -> bytes:
    levels = np.random.default_rng(seed).integers(0, 256, (70, 66), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.slow
def test_a_node_killed_under_load_leaves_no_request_without_its_answer(
    nodes: Any, environment: dict[str, str], bundle_folder: Path, free_port: int
):
    command = [sys.executable, "-m", "medqua.serve", "cluster", "app", str(bundle_folder)]
    command += ["--address", nodes.address, "--least", "2", "--most", "2"]
    command += [f"listen.port={free_port}", "batching.decoders=1"]
    app = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    try:
        assert app.stdout is not None
        line = app.stdout.readline()
        assert line.startswith("serving at http://"), line
        url = line.removeprefix("serving at ").strip()
        answered = threading.Semaphore(0)
        repeated: Counter[int] = Counter()

        def ask(number: int) -> dict[str, Any]:
            for _ in range(TRIES):
                try:
                    answer = httpx.post(
                        f"{url}/v1/findings", files={"file": png(number)}, timeout=60
                    )
                    if answer.status_code == 200:
                        answered.release()
                        return answer.json()
                except httpx.TransportError:
                    pass
                repeated[number] += 1
                time.sleep(2)
            raise AssertionError(f"request {number} was not answered in {TRIES} tries")

        count = 200
        with ThreadPoolExecutor(4) as clients:
            asked = [clients.submit(ask, number) for number in range(count)]
            for _ in range(20):
                answered.acquire(timeout=60)
            nodes.kill()
            told = [future.result() for future in asked]
        assert all(len(answer["results"]) == 1 for answer in told)
        assert all(answer["results"][0]["status"] == 200 for answer in told)
        again = [ask(number) for number in range(0, count, 50)]
        for number, answer in zip(range(0, count, 50), again, strict=True):
            first = told[number]["results"][0]["findings"]
            for one, other in zip(first, answer["results"][0]["findings"], strict=True):
                assert one["probability"] == pytest.approx(other["probability"], abs=1e-4)
    finally:
        app.terminate()
        app.wait(90)
        app.stdout.close()


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"storage": {"spool": "spool"}}, r"storage\.spool"),
        (
            {"listen": {"certificate": "a", "private_key": "b", "client_authorities": "c"}},
            "client_authorities",
        ),
    ],
)
def test_what_replicas_cannot_keep_is_refused(document: dict[str, Any], message: str):
    from medqua.serve.cluster.replicas import check

    with pytest.raises(ConfigError, match=message):
        check(Settings.from_dict(document))


def test_each_replica_has_an_audit_log_of_its_own():
    from medqua.serve.cluster.replicas import own_file

    assert own_file(Path("log/audit.jsonl"), "api#x1") == Path("log/audit-api#x1.jsonl")
