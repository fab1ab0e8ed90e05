import io
import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest
from PIL import Image


def png(seed: int) -> bytes:
    levels = np.random.default_rng(seed).integers(0, 256, (70, 66), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def wait(client: httpx.Client, eventually: Callable[..., Any]) -> Callable[[str], dict]:
    """Wait for the end of a job, and return what is told of it."""

    def ended(job: str) -> dict | None:
        told = client.get(f"/v1/jobs/{job}").json()
        return told if told["status"] == "done" else None

    return lambda job: eventually(lambda: ended(job))


def post(client: httpx.Client, count: int, **headers: str) -> httpx.Response:
    files = [("f", (f"{i}.png", png(i))) for i in range(count)] + [("f", ("bad", b"bad"))]
    return client.post("/v1/jobs", files=files, headers=headers)


def test_a_job_from_acceptance_to_table(client: httpx.Client, served, wait):
    response = post(client, 5)
    assert response.status_code == 202, response.text
    job = response.json()
    assert (job["files"], job["finished"]) == (6, None)
    assert response.headers["location"] == f"/v1/jobs/{job['id']}"
    assert wait(job["id"])["answered"] == 6
    lines = client.get(f"/v1/jobs/{job['id']}/results").text.splitlines()
    answers = [json.loads(line) for line in lines]
    assert [a["source"] for a in answers] == ["0.png", "1.png", "2.png", "3.png", "4.png", "bad"]
    assert [a["status"] for a in answers] == [200] * 5 + [422]
    body = client.get(f"/v1/jobs/{job['id']}/results", params={"format": "parquet"}).content
    table = pl.read_parquet(io.BytesIO(body))
    assert table["source"].to_list() == [a["source"] for a in answers]
    assert table["Cardiomegaly"].null_count() == 1
    assert not list((served.folder / "spool" / "content" / job["id"]).iterdir())
    assert client.delete(f"/v1/jobs/{job['id']}").status_code == 204
    assert client.get(f"/v1/jobs/{job['id']}").status_code == 404


def test_the_same_request_makes_one_job(client: httpx.Client, wait):
    key = {"Idempotency-Key": "one"}
    first, again = post(client, 2, **key).json(), post(client, 2, **key).json()
    assert first["id"] == again["id"]
    assert post(client, 3, **key).status_code == 422
    wait(first["id"])


def test_what_is_not_there_or_not_ready(client: httpx.Client, wait):
    assert client.get(f"/v1/jobs/{32 * '0'}").status_code == 404
    assert client.get("/v1/jobs/..%2f..%2fetc").status_code in (404, 422)
    assert client.get("/v1/jobs/x").status_code == 422
    job = post(client, 8).json()["id"]
    early = client.get(f"/v1/jobs/{job}/results")
    assert early.status_code in (200, 409)
    wait(job)
    assert client.get(f"/v1/jobs/{job}/results", params={"format": "xml"}).status_code == 422


@pytest.mark.parametrize("key", ["", "a b", "x" * 129])
def test_keys_that_are_none(client: httpx.Client, key: str):
    assert post(client, 0, **{"Idempotency-Key": key}).status_code == 422
