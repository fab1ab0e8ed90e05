"""What is owed reaches the outbox once, whatever ends in between."""

import asyncio
import hashlib
import json
import os
import signal
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from medqua.core.errors import ConfigError, ImageError
from medqua.core.findings import CHEXPERT_NAMES, Calibration, name_findings
from medqua.serve.audit import AuditLog, verify
from medqua.serve.jobs.incoming import Audited, Inbox
from medqua.serve.jobs.outgoing import Outgoing
from medqua.serve.jobs.store import JobStore
from medqua.serve.pacs.errors import SpoolError
from medqua.serve.processes.clerk import Clerk, ReportError, grounds_of, report_of
from medqua.serve.processes.reader import Answer
from medqua.serve.settings import Settings
from medqua.serve.zip_archive import Part

FINDINGS = name_findings(
    np.linspace(-3, 3, 14, dtype=np.float32)[None], CHEXPERT_NAMES, Calibration.identity(14)
)[0].to_dict()["findings"]
ANSWER = Answer("", 200, tuple(FINDINGS))
WHEN = "2026-01-02T03:04:05"


@pytest.fixture(scope="module")
def clerk() -> Any:
    clerk = Clerk()
    yield clerk
    clerk.close()


@pytest.fixture
def image(shared_data: Path) -> bytes:
    return (shared_data / "dicom" / "cxr_NIH_DX_implicit_nofinding.dcm").read_bytes()


@pytest.fixture
def settings(tmp_path: Path, closed_port: int) -> Settings:
    return Settings.load(
        None, [f"storage.spool={tmp_path}", f"archive.url=http://127.0.0.1:{closed_port}"]
    )


async def until(what: Callable[[], Any]) -> None:
    async with asyncio.timeout(900):
        while not what():
            await asyncio.sleep(0.02)


@pytest.mark.anyio
async def test_a_report_is_in_the_outbox_once_though_it_is_written_twice(
    clerk: Clerk, image: bytes, settings: Settings, tmp_path: Path
) -> None:
    store = JobStore(tmp_path, 1 << 30)
    arrived: list[None] = []
    inbox = Inbox(store, lambda: arrived.append(None))
    assert inbox.put(image) == inbox.put(image)
    assert len(arrived) == 1
    [task] = store.waiting(9)
    grounds = await clerk.do(grounds_of, image, {"bundle": "ab"}, "MedQua", WHEN)
    assert store.answer(task, ANSWER, grounds)
    audit = AuditLog(tmp_path / "audit.jsonl")
    outgoing = Outgoing(settings, store, clerk, audit)
    await until(lambda: store.counts()[1] == 0)
    await outgoing.close()
    Audited(inbox, audit).put(image)
    audit.close()
    queued, received = map(json.loads, (tmp_path / "audit.jsonl").read_text().splitlines())
    assert verify(tmp_path / "audit.jsonl") == 2
    assert (queued["action"], received["action"]) == ("report to outbox", "C-STORE")
    assert queued["request_id"] == received["request_id"]
    assert received["what"] == [hashlib.sha256(image).hexdigest()]
    [name] = outgoing.outbox.waiting()
    store._db.execute("UPDATE files SET owes = 1")  # as after a kill before it was noted as paid
    outgoing = Outgoing(settings, store, clerk)
    await until(lambda: store.counts()[1] == 0)
    await until(lambda: outgoing.courier.total.failed)  # nobody takes it
    await outgoing.close()
    assert list(outgoing.outbox.waiting()) == [name]
    report = dcmread(BytesIO(outgoing.outbox.read(name)))
    assert report.StudyInstanceUID == dcmread(BytesIO(image)).StudyInstanceUID
    store.close()


@pytest.mark.anyio
async def test_a_report_that_cannot_be_written_holds_up_no_other(
    clerk: Clerk, image: bytes, settings: Settings, tmp_path: Path
) -> None:
    store = JobStore(tmp_path, 1 << 30)
    job, _ = store.accept("a", [Part("1", image), Part("2", image), Part("3", b"x")], send=True)
    grounds = await clerk.do(grounds_of, image, {}, "MedQua", WHEN)
    for task, ground in zip(store.waiting(9), [grounds, grounds, None], strict=True):
        store.answer(task, ANSWER, ground)
    spoiled = json.dumps({**grounds, "image": {"bad": 1}})
    store._db.execute("UPDATE files SET grounds = ? WHERE number = 0", (spoiled,))
    assert store.counts() == (0, 2)
    store.expire(-1.0)  # what is owed is not forgotten
    assert store.job(job.id, None) is not None
    outgoing = Outgoing(settings, store, clerk)
    await until(lambda: store.counts()[1] == 0)
    assert outgoing.unwritten == 1
    assert outgoing.outbox.count_waiting() == 1
    await outgoing.close()
    store.expire(-1.0)
    assert store.job(job.id, None) is None
    store.close()


@pytest.mark.anyio
async def test_a_clerk_that_is_lost_is_started_anew(clerk: Clerk, image: bytes) -> None:
    grounds = await clerk.do(grounds_of, image, {}, "MedQua", WHEN)
    first = await clerk.do(report_of, ANSWER.to_dict(), grounds)
    with pytest.raises(ReportError, match="lost"):
        await clerk.do(os._exit, 3)
    assert await clerk.do(report_of, ANSWER.to_dict(), grounds) == first
    with pytest.raises(ReportError, match="KeyError"):
        await clerk.do(report_of, {}, {"image": None})
    with pytest.raises(ImageError, match="none"):
        await clerk.do(grounds_of, b"no image", {}, "MedQua", WHEN)
    [process] = clerk._running
    os.kill(process.pid, signal.SIGTERM)  # as systemd does to the whole group
    assert await clerk.do(report_of, ANSWER.to_dict(), grounds) == first


def test_jobs_of_the_archive_go_first_and_a_lost_one_is_taken_again(tmp_path: Path) -> None:
    store = JobStore(tmp_path, 20)
    store.accept("a", [Part("x", b"1")])
    inbox = Inbox(store, lambda: None)
    job = inbox.put(b"2")
    first = store.waiting(9)[0]
    assert (first.job, first.send) == (job, True)
    store.answer(first, Answer("", 503, error="WorkerLostError", reason="lost"))
    again = inbox.put(b"2")
    assert again != job
    store.answer(store.waiting(9)[0], Answer("", 422, error="OutOfScopeError", reason="no chest"))
    assert inbox.put(b"2") == again
    with pytest.raises(SpoolError, match="full"):
        inbox.put(bytes(30))
    store.close()


def test_a_spool_of_the_first_version_is_taken_over(tmp_path: Path) -> None:
    import sqlite3

    (tmp_path / "content" / "old").mkdir(parents=True)
    (tmp_path / "content" / "old" / "0").write_bytes(b"image")
    with sqlite3.connect(tmp_path / "jobs.sqlite") as old:
        old.executescript(
            "CREATE TABLE jobs (id TEXT PRIMARY KEY, owner TEXT NOT NULL, key TEXT, body TEXT NOT "
            "NULL, created REAL NOT NULL, finished REAL, UNIQUE (owner, key));"
            "CREATE TABLE files (job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE, number "
            "INTEGER NOT NULL, name TEXT NOT NULL, size INTEGER NOT NULL, answer TEXT, "
            "PRIMARY KEY (job, number));"
            "INSERT INTO jobs VALUES ('old', 'a', NULL, 'b', 1.0, NULL);"
            "INSERT INTO files VALUES ('old', 0, 'x', 5, NULL);"
        )
    old.close()
    store = JobStore(tmp_path, 1000)
    [task] = store.waiting(9)
    assert store.read(task) == b"image"
    assert not task.send
    assert store.answer(task, ANSWER)
    assert store.counts() == (0, 0)
    store.close()


@pytest.mark.parametrize(("name", "content"), [("gone", None), ("empty", " \n")])
def test_a_token_that_is_nowhere_is_said_at_the_start(
    tmp_path: Path, name: str, content: str | None
) -> None:
    from medqua.serve.jobs.outgoing import sender

    file = tmp_path / name
    if content is not None:
        file.write_text(content)
    told = Settings.load(
        None,
        [f"storage.spool={tmp_path}", "archive.url=http://a", f"archive.token_file={file}"],
    )
    with pytest.raises(ConfigError, match="token_file"):
        sender(told.archive)
