"""Everything that is known to break readers of files, while others are being served."""

import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import psutil
import pytest

MIB = 1 << 20


def settled(process: psutil.Process, most: int) -> int:
    """Return the resident memory of the service, given time to come down to `most` bytes."""
    until = time.monotonic() + 20
    while (used := process.memory_info().rss) > most and time.monotonic() < until:
        time.sleep(0.5)
    return used


@pytest.mark.slow
def test_hostile_files_under_load(served, shared_data: Path, radiograph: bytes):
    files = [p for p in sorted((shared_data / "malformed").rglob("*")) if p.is_file()]
    assert len(files) > 200
    process = psutil.Process(served.process.pid)
    load: list[int] = []
    stop = threading.Event()

    def others() -> None:
        with served.client as client:
            while not stop.is_set():
                load.append(client.post("/v1/findings", files={"f": radiograph}).status_code)

    with served.client as client:
        for _ in range(20):
            client.post("/v1/findings", files={"f": radiograph})
    before = process.memory_info().rss
    threads = [threading.Thread(target=others) for _ in range(2)]
    for thread in threads:
        thread.start()
    statuses: dict[str, int] = {}
    with httpx.Client(base_url=served.url, timeout=120) as client:
        for path in files:
            kind = random.Random(path.name).choice(("application/dicom", "image/png"))
            content = path.read_bytes()
            if len(content) % 2:
                response = client.post("/v1/findings", files={"f": (path.name, content)})
            else:
                response = client.post(
                    "/v1/findings", content=content, headers={"Content-Type": kind}
                )
            statuses[path.name] = response.status_code
    stop.set()
    for thread in threads:
        thread.join()
    assert set(statuses.values()) <= {200, 400, 413, 422, 504}, statuses
    assert set(load) == {200}
    assert served.process.poll() is None
    after = settled(process, before + 64 * MIB)
    print(f"{len(files)} files: {Counter(statuses.values())}; {len(load)} requests of the load: "
          f"{Counter(load)}; {before / MIB:.0f} MiB before, {after / MIB:.0f} after")  # fmt: skip
    assert after <= before + 64 * MIB
    with served.client as client:
        assert client.get("/readyz").status_code == 200
        assert client.get("/v1/admin/status").json()["admitted"] == 0


@pytest.mark.slow
def test_a_worker_killed_at_any_time_loses_no_request(
    bundle_folder, start_service, tmp_path, radiograph
):
    kills = int(os.environ.get("MEDQUA_TEST_KILLS", "3"))
    service = start_service(bundle_folder, tmp_path, "limits.requests_per_second=0")
    dice, stop = random.Random(11), threading.Event()
    load: list[int] = []

    def others() -> None:
        with service.client as client:
            while not stop.is_set():
                load.append(client.post("/v1/findings", files={"f": radiograph}).status_code)

    threads = [threading.Thread(target=others) for _ in range(4)]
    for thread in threads:
        thread.start()
    killed: set[int] = set()
    with service.client as client:
        while len(killed) < kills:
            time.sleep(0.3 * dice.random())
            if client.get("/readyz").status_code != 200:
                continue  # a second kill before it is back would be answered 503, as documented
            seen = len(load)
            (pid,) = client.get("/v1/admin/status").json()["workers"]
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
            while len(load) < seen + 2 * len(threads):  # everyone has been through it
                time.sleep(0.02)
        stop.set()
        for thread in threads:
            thread.join()
        assert set(load) == {200}
        assert client.get("/v1/admin/status").json()["admitted"] == 0
    print(f"{len(killed)} workers killed, {len(load)} requests answered 200")
    service.end()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "ended"])
def test_ended_at_any_time_each_file_is_answered_once(
    how: signal.Signals, bundle_folder, start_service, tmp_path, radiograph
):
    kills = int(os.environ.get("MEDQUA_TEST_KILLS", "3"))
    dice = random.Random(7)
    jobs: dict[str, int] = {}
    service = start_service(
        bundle_folder, tmp_path, "batching.max_batch_size=1", "batching.max_queue=4"
    )
    for number in range(kills):
        count = dice.randint(5, 30)
        parts = [("f", (f"{number}-{i}", radiograph)) for i in range(count)]
        with service.client as client:
            key = {"Idempotency-Key": str(number)}
            accepted = client.post("/v1/jobs", files=parts, headers=key)
            assert accepted.status_code == 202
            jobs[accepted.json()["id"]] = count
        time.sleep(dice.random())
        os.kill(service.process.pid, how)
        service.process.wait(30)
        service.end()
        if how == signal.SIGTERM:
            assert service.process.returncode == -how  # drained, then by the signal, as servers do
            assert [line for line in service.log if line["level"] != "info"] == []
            assert "Traceback" not in "".join(service.text)
        service = start_service(bundle_folder, tmp_path)
        with service.client as client:  # who has not heard an answer asks again
            again = client.post("/v1/jobs", files=parts, headers=key)
            assert again.json()["id"] in jobs
    with service.client as client:
        until = time.monotonic() + 120
        while any(client.get(f"/v1/jobs/{job}").json()["status"] != "done" for job in jobs):
            assert time.monotonic() < until
            time.sleep(0.2)
        for job, count in jobs.items():
            lines = client.get(f"/v1/jobs/{job}/results").text.splitlines()
            assert len(lines) == count
            assert all('"status": 200' in line for line in lines)
    service.end()
