"""A spool has one owner, nobody else enters it, and no file of it holds up another."""

import asyncio
import json
import os
import sqlite3
import stat
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from medqua.core.errors import ConfigError
from medqua.serve.jobs import runner as running
from medqua.serve.jobs.runner import JobRunner
from medqua.serve.jobs.store import SCHEMA, JobStore
from medqua.serve.pacs.errors import SpoolError
from medqua.serve.pacs.spool import Spool
from medqua.serve.processes.clerk import Clerk
from medqua.serve.processes.reader import Answer, Reader
from medqua.serve.settings import Batching, Settings
from medqua.serve.zip_archive import Part

KILLS = int(os.environ.get("MEDQUA_TEST_KILLS", "200"))

OWNERS = """
import json, os, random, signal, sys, time
from collections import Counter
from pathlib import Path
from medqua.core.errors import ConfigError
from medqua.serve.jobs.store import JobStore
from medqua.serve.processes.reader import Answer
from medqua.serve.zip_archive import Part

folder, kills = Path(sys.argv[1]), int(sys.argv[2])

def own(out):
    random.seed(os.urandom(8))
    try:
        store = JobStore(folder, 1 << 30)
    except ConfigError as error:
        os.write(out, f"refused {error}\\n".encode())
        os._exit(2)
    while True:  # what a service does with its spool, as fast as it can
        job, _ = store.accept("a", [Part(str(n), bytes([n]) * 3000) for n in range(8)])
        os.write(out, f"accepted {job.id}\\n".encode())
        for task in random.sample(store.waiting(9), 6):
            if store.answer(task, Answer(task.name, 422, error="E", reason="r")):
                os.write(out, f"answered {task.job} {task.number}\\n".encode())

def start():
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        own(write)
    os.close(write)
    return pid, read

told = {"accepted": [], "answered": [], "refused": []}
killed = 0
while killed < kills:
    owners = []
    for _ in range(2):  # the second comes before the first is gone
        owners.append(start())
        time.sleep(random.uniform(0.0, 0.15))
    for pid, read in owners:
        os.kill(pid, signal.SIGKILL)
        lines = b"".join(iter(lambda: os.read(read, 1 << 16), b"")).decode()
        os.close(read)
        killed += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        for line in lines.splitlines(keepends=True):
            if line.endswith("\\n"):  # else it was killed while it told
                what, rest = line.rstrip().split(" ", 1)
                told[what].append(rest)
print(json.dumps(told))
"""
"""Owners of a spool that are killed, and what they told before."""


def test_the_second_owner_is_refused_by_name_and_deletes_nothing(tmp_path: Path) -> None:
    first = JobStore(tmp_path / "spool", 1000)
    arriving = tmp_path / "spool" / "content" / "arriving"
    arriving.mkdir()
    told = rf"in use by another service \(process {os.getpid()}"
    for _ in range(2):
        with pytest.raises(ConfigError, match=told):
            JobStore(tmp_path / "spool", 1000)
    assert arriving.exists()
    first.close()
    second = JobStore(tmp_path / "spool", 1000)
    assert not arriving.exists()
    second.close()
    outbox = Spool(tmp_path / "outbox")
    with pytest.raises(SpoolError, match="in use by another service"):
        Spool(tmp_path / "outbox")
    outbox.close()
    Spool(tmp_path / "outbox").close()


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o701, 0o777])
def test_a_spool_that_others_can_enter_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o}.*chmod 700"):
        JobStore(folder, 1000)
    assert list(folder.iterdir()) == []


def test_files_are_for_their_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    folder.mkdir(mode=0o700)
    before = os.umask(0)
    try:
        (folder / "jobs.sqlite").touch(0o644)  # as an earlier release left it
        store = JobStore(folder, 1000)
        store.accept("a", [Part("x", b"1")])
        found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}
        store.close()
    finally:
        os.umask(before)
    assert {"jobs.sqlite", "jobs.sqlite-wal", "jobs.sqlite-shm", "lock", "0"} <= set(found)
    for name, mode in found.items():
        assert mode & 0o077 == 0, name


def test_what_was_deleted_is_in_no_file(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "spool", 1000)
    job, _ = store.accept("a", [Part("Fictitious^Ada.dcm", b"1")])
    store.delete(job.id)
    for file in (tmp_path / "spool").rglob("*"):
        assert file.is_dir() or b"Fictitious" not in file.read_bytes(), file.name
    store.close()


def test_a_spool_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    JobStore(tmp_path / "spool", 1000).close()
    with sqlite3.connect(tmp_path / "spool" / "jobs.sqlite") as db:
        assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA,)
        db.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    db.close()
    with pytest.raises(ConfigError, match=f"newer MedQua .*version {SCHEMA + 1}, this one"):
        JobStore(tmp_path / "spool", 1000)


def test_what_could_not_be_accepted_leaves_nothing(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "spool", 1000)
    content = tmp_path / "spool" / "content"

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    store._write = full  # type: ignore[method-assign]  # what a full disk does
    with pytest.raises(OSError, match="No space"):
        store.accept("a", [Part("x", bytes(900))])
    del store._write
    assert list(content.iterdir()) == []
    store.accept("a", [Part("x", bytes(900))])  # nor does it count as room that is taken
    store.close()


@pytest.mark.anyio
async def test_a_lost_file_is_answered_so_and_holds_up_no_other(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "PAUSE", 0.3)
    settings = Settings(batching=Batching(max_batch_size=1, decoders=1, threads=1))
    store = JobStore(tmp_path / "spool", 1 << 20)
    lost, _ = store.accept("a", [Part(str(n), b"x") for n in range(4)])
    whole, _ = store.accept("a", [Part("no image", b"x")])
    for file in (tmp_path / "spool" / "content" / lost.id).iterdir():
        file.unlink()
    finished: dict[str, float] = {}
    async with Reader.open(bundle_folder, settings) as reader:
        runner = JobRunner(store, reader, Clerk())
        runner.start()
        async with asyncio.timeout(60):
            while len(finished) < 2:
                for job in (lost, whole):
                    if store.job(job.id, None).finished and job.id not in finished:
                        finished[job.id] = time.monotonic()
                await asyncio.sleep(0.01)
        await runner.close()
    assert list(finished) == [whole.id, lost.id]  # though it came later, and two are in hand
    answers = store.results(lost.id)
    assert {(a["status"], a["refusal"]["error"]) for a in answers} == {(503, "LostFileError")}
    assert runner.lost == 4
    assert store.counts() == (0, 0)
    store.close()


def check_kills(folder: Path, count: int) -> None:
    """Kill owners, each with another that comes too early; each accepted file is answered once."""
    command = [sys.executable, "-c", OWNERS, str(folder), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert told["accepted"]
    assert told["refused"]
    assert all("in use by another service" in reason for reason in told["refused"])
    answered = Counter(told["answered"])
    assert set(answered.values()) == {1}
    store = JobStore(folder, 1 << 30)
    known = {row[0] for row in store._db.execute("SELECT id FROM jobs")}
    assert set(told["accepted"]) <= known
    assert {store.job(job, None).files for job in known} == {8}
    left = {f"{task.job} {task.number}" for task in store.waiting(1 << 20)}
    assert left.isdisjoint(answered)
    for task in store.waiting(1 << 20):  # what was accepted is there, whole
        assert store.read(task) == bytes([task.number]) * 3000
        assert store.answer(task, Answer("", 422, error="E", reason="r"))
    for job in told["accepted"]:
        assert len(store.results(job)) == 8
    assert store.counts() == (0, 0)
    store.close()


def test_every_accepted_file_is_answered_once_over_kills_and_overlaps(tmp_path: Path) -> None:
    check_kills(tmp_path / "spool", 10)


@pytest.mark.slow
def test_every_accepted_file_is_answered_once_over_many_kills(tmp_path: Path) -> None:
    check_kills(tmp_path / "spool", KILLS)
