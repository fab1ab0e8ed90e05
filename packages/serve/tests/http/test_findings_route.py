import io
import json
import zipfile
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from medqua.core.model import Bundle
from medqua.serve.audit import verify
from medqua.serve.processes.batcher import BATCH_TOLERANCE


def test_many_files_each_with_its_own_status(
    client: httpx.Client, radiograph: bytes, bundle: Bundle
):
    files = [
        ("files", ("a.png", radiograph)),
        ("files", ("b.dcm", b"no image")),
        ("files", ("c.png", b"")),
        ("files", ("d.png", radiograph, "text/html")),
    ]
    response = client.post("/v1/findings", files=files, headers={"X-Request-Id": "abc.1"})
    assert response.status_code == 200
    document = response.json()
    assert document["request_id"] == response.headers["x-request-id"] == "abc.1"
    assert document["provenance"]["intended_use"] == "Research use only, not for diagnosis."
    results = document["results"]
    assert [(r["source"], r["status"]) for r in results] == [
        ("a.png", 200), ("b.dcm", 422), ("c.png", 422), ("d.png", 200),
    ]  # fmt: skip
    expected = [f.probability for f in bundle.predict([radiograph])[0]]
    for result in (results[0], results[3]):
        found = [finding["probability"] for finding in result["findings"]]
        assert found == pytest.approx(expected, abs=BATCH_TOLERANCE)
    assert results[1]["refusal"] == {
        "error": "UnreadableImageError",
        "reason": "the file is neither DICOM, JPG nor PNG",
    }


def test_a_bare_body_of_any_binary_type(client: httpx.Client, radiograph: bytes):
    for kind in ("image/png", "application/dicom", "application/octet-stream"):
        response = client.post("/v1/findings", content=radiograph, headers={"Content-Type": kind})
        assert response.status_code == 200, response.text


def test_no_file_of_use_gives_its_status_to_the_whole(client: httpx.Client):
    response = client.post("/v1/findings", files={"files": b"no image"})
    assert response.status_code == 422
    assert response.json()["results"][0]["status"] == 422


def test_zip(client: httpx.Client, radiograph: bytes):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("study/1.png", radiograph)
        archive.writestr("../../evil.png", radiograph)
        archive.writestr("/etc/passwd", b"root")
        archive.writestr("__MACOSX/1.png", b"noise")
        archive.writestr("folder/", b"")
    response = client.post("/v1/findings", files={"f": ("s.zip", packed.getvalue())})
    found = {r["source"]: r["status"] for r in response.json()["results"]}
    assert found == {
        "s.zip/study/1.png": 200,
        "s.zip/../../evil.png": 200,
        "s.zip//etc/passwd": 422,
    }


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ({"json": {"a": 1}}, 415),
        ({"content": b""}, 415),
        ({"content": b"x", "headers": {"Content-Type": "text/html"}}, 415),
        ({"content": b"", "headers": {"Content-Type": "image/png"}}, 400),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}, 400),
        ({"data": {"files": "text"}, "files": {"a": b"x"}}, 400),
        ({"content": b"0" * 20_000_001, "headers": {"Content-Type": "image/png"}}, 413),
        ({"files": {"a": b"x"}, "headers": {"X-Deadline-Seconds": "-1"}}, 422),
        ({"files": {"a": b"x"}, "headers": {"X-Deadline-Seconds": "nan"}}, 422),
        ({"files": {"a": b"x"}, "headers": {"X-Priority": "first"}}, 422),
        ({"files": {"a": b"x"}, "headers": {"Host": "evil.example"}}, 403),
        ({"files": {"a": b"x"}, "headers": {"Origin": "https://evil.example"}}, 403),
    ],
)
def test_what_cannot_be_read_is_refused(client: httpx.Client, arguments, status: int):
    try:
        response = client.post("/v1/findings", **arguments)
    except httpx.WriteError:  # closed before all of a body that is too large was sent
        assert status == 413
        return
    assert response.status_code == status, response.text
    assert response.json()["error"]


def test_too_many_files_and_zip_bombs(client: httpx.Client):
    many = [("f", (str(i), b"x")) for i in range(1001)]
    assert client.post("/v1/findings", files=many).status_code == 400
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(200 << 20))
    response = client.post("/v1/findings", files={"f": packed.getvalue()})
    assert response.status_code == 422
    assert "when unpacked" in response.json()["results"][0]["refusal"]["reason"]


def test_metrics_health_and_description(client: httpx.Client, radiograph: bytes):
    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").json() == {"status": "ready"}
    client.post("/v1/findings", files={"f": radiograph})
    text = client.get("/metrics").text
    for name in ("medqua_files_total", "medqua_batch_seconds_bucket", "medqua_workers_ready 1.0"):
        assert name in text
    described = client.get("/openapi.json").json()
    example = described["paths"]["/v1/findings"]["post"]["responses"]["200"]["content"]
    assert example["application/json"]["example"]["results"]


def test_nothing_of_a_file_is_logged(
    served, client: httpx.Client, radiograph: bytes, eventually: Callable[..., Any]
):
    secret = "DOE^JANE"
    client.post("/v1/findings", files={"f": (f"{secret}.png", radiograph)})
    client.post(f"/v1/{secret}", params={"name": secret}, headers={"X-Request-Id": f"{secret}!"})
    client.get("/healthz", headers={"X-Request-Id": "last"})
    eventually(lambda: any(e.get("request_id") == "last" for e in served.log))
    assert any(e.get("route") == "/v1/findings" for e in served.log)
    assert not any(secret in line for line in served.text)
    assert secret not in (served.folder / "audit.jsonl").read_text()


def test_requests_are_audited(served, client: httpx.Client, radiograph: bytes):
    import hashlib

    response = client.post("/v1/findings", files={"f": radiograph}, headers={"X-Request-Id": "aud"})
    file = served.folder / "audit.jsonl"
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    (entry,) = [entry for entry in entries if entry["request_id"] == "aud"]
    assert entry["who"] == "local"
    assert entry["action"] == "POST /v1/findings"
    assert entry["what"] == [hashlib.sha256(radiograph).hexdigest()]
    assert entry["outcome"] == [200]
    assert entry["result"] == hashlib.sha256(response.content).hexdigest()
    assert verify(file) == len(entries)
