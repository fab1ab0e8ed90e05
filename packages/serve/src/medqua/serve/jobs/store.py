"""Accepted jobs on disk: nothing that was accepted is lost, and nothing is answered twice.

    spool/lock                        held by the one service that has the spool open
    spool/jobs.sqlite                 jobs, their files, their answers; the reports of images
    spool/content/<job>/<number>      a file until it is answered

A job is accepted when its files are on disk and its rows are committed. An answer is written by
one statement that does nothing where an answer is; only then is the file deleted. So after
`kill -9` at any point the rows say what is left to do. What an answer's report is made from is
written with it; a job whose reports are to be sent owes them until they are in the outbox.
A file that failed waits behind the others.
"""

import hashlib
import json
import os
import shutil
import sqlite3
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medqua.core.errors import ConfigError, DataError
from medqua.serve.jobs import ledger
from medqua.serve.private_folder import FolderLock, make_private
from medqua.serve.processes.reader import Answer, refused
from medqua.serve.zip_archive import Part

SCHEMA = 2
"""Version of the tables (`PRAGMA user_version`), and the newest that is read; 1 had none."""

_TABLES = (
    "CREATE TABLE IF NOT EXISTS jobs ("
    "id TEXT PRIMARY KEY, owner TEXT NOT NULL, key TEXT, body TEXT NOT NULL, "
    "created REAL NOT NULL, finished REAL, UNIQUE (owner, key))",
    "CREATE TABLE IF NOT EXISTS files ("
    "job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE, number INTEGER NOT NULL, "
    "name TEXT NOT NULL, size INTEGER NOT NULL, answer TEXT, PRIMARY KEY (job, number))",
    ledger.TABLE,
)
_COLUMNS = {
    "jobs": {"send": "INTEGER NOT NULL DEFAULT 0"},
    "files": {
        "grounds": "TEXT", "owes": "INTEGER",
        "attempts": "INTEGER NOT NULL DEFAULT 0", "again": "REAL NOT NULL DEFAULT 0",
    },
}  # fmt: skip
"""What the tables of the first version lacked."""

_INDICES = (
    "CREATE INDEX IF NOT EXISTS unanswered ON files (job, number) WHERE answer IS NULL",
    "CREATE INDEX IF NOT EXISTS owing ON files (job, number) WHERE owes = 1",
    ledger.INDEX,
)


class SpoolFullError(DataError):
    """No room for another job now."""


class KeyReusedError(DataError):
    """An idempotency key that came with other files before."""


@dataclass(frozen=True)
class Job:
    """How far a job is."""

    id: str
    """32 hexadecimal digits."""
    owner: str
    """Who sent it."""
    files: int
    """How many files it has."""
    answered: int
    """How many of them are answered."""
    created: float
    """When it was accepted, in seconds since 1970."""
    finished: float | None
    """When its last file was answered."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        status = "done" if self.finished else "running" if self.answered else "queued"
        return {
            "id": self.id,
            "status": status,
            "files": self.files,
            "answered": self.answered,
            "created": self.created,
            "finished": self.finished,
        }


@dataclass(frozen=True)
class Task:
    """A file that is to be answered."""

    job: str
    """Its job."""
    number: int
    """Its place there, from 0."""
    name: str
    """As its sender named it."""
    owner: str
    """Who sent it."""
    send: bool = False
    """Whether its report is to be sent."""
    arrived: float = 0.0
    """When its job was accepted, in seconds since 1970."""


@dataclass(frozen=True)
class Debt:
    """A report that is to be sent."""

    job: str
    """Its job."""
    number: int
    """The file's place there, from 0."""
    answer: dict[str, Any]
    """As `Answer.to_dict` gave it."""
    grounds: dict[str, Any]
    """As `Grounds.to_dict` gave them."""


class JobStore:
    """The spool. Safe to share between threads; its methods block on the disk.

    Args:
        folder: Where it is; made if absent, readable by its owner alone.
        spool_bytes: Most bytes of files that wait.

    Raises:
        ConfigError: The folder cannot be used, others can enter it, another service has it open, or
            a newer release wrote it.

    Attributes:
        reports: Which reports images have had.
    """

    def __init__(self, folder: Path, spool_bytes: int) -> None:
        self._content = folder / "content"
        self._spool_bytes, self._arriving = spool_bytes, 0
        self._lock = threading.RLock()
        try:
            make_private(folder)
            self._held = FolderLock(folder)
        except OSError as error:
            raise ConfigError(f"{folder} cannot be used as a spool: {error.strerror}") from None
        try:
            self._content.mkdir(exist_ok=True, mode=0o700)
            self._content.chmod(0o700)
            self._db = _open_database(folder / "jobs.sqlite")
        except (OSError, sqlite3.Error) as error:
            self._held.close()
            raise ConfigError(f"{folder} cannot be used as a spool: {error}") from None
        except ConfigError:
            self._held.close()
            raise
        self.reports = ledger.Ledger(self._db, self._lock)
        known = {row[0] for row in self._db.execute("SELECT id FROM jobs")}
        for left in self._content.iterdir():
            if left.name not in known:  # a job that was not accepted to its end
                shutil.rmtree(left)

    def close(self) -> None:
        """Close the spool."""
        with self._lock:
            self._db.close()
            self._held.close()

    def accept(
        self, owner: str, parts: Sequence[Part], key: str | None = None, *, send: bool = False
    ) -> tuple[Job, bool]:
        """Take a job in.

        Args:
            owner: Who sends it.
            parts: Its files; one that is refused already is answered so.
            key: The sender's name for this request: sent again, it means the same job.
            send: Send its reports to the archive; such jobs are answered before others.

        Returns:
            The job, and whether it is new.

        Raises:
            KeyReusedError: The key came with other files before.
            SpoolFullError: No room.
        """
        body = _body(parts) + ("+send" if send else "")
        size = sum(len(part.content or b"") for part in parts)
        with self._lock:
            if known := self._known(owner, key, body):
                return known, False
            (waiting,) = self._db.execute(
                "SELECT coalesce(sum(size), 0) FROM files WHERE answer IS NULL"
            ).fetchone()
            if waiting + self._arriving + size > self._spool_bytes:
                raise SpoolFullError("the spool is full; try again later")
            self._arriving += size
        job = uuid.uuid4().hex
        try:
            self._write(job, parts)  # the disk takes its time, and others need not wait for it
            with self._lock:
                if known := self._known(owner, key, body):  # sent twice at a time
                    shutil.rmtree(self._content / job)
                    return known, False
                self._insert(job, owner, key, body, parts, send=send)
                return self._job(job), True
        except BaseException:
            shutil.rmtree(self._content / job, ignore_errors=True)
            raise
        finally:
            with self._lock:
                self._arriving -= size

    def job(self, job: str, owner: str | None) -> Job | None:
        """Return a job of an owner, or with None of anyone; None if there is none."""
        with self._lock:
            try:
                found = self._job(job)
            except KeyError:
                return None
        return found if owner in (None, found.owner) else None

    def waiting(self, limit: int, beside: Sequence[tuple[str, int]] = ()) -> list[Task]:
        """Return files to be answered but those in hand: the archive's, then the oldest job's.

        Those that failed come after all others, and not before their next attempt is due.
        """
        hands = set(beside)
        with self._lock:
            rows = self._db.execute(
                "SELECT files.job, number, name, owner, send, created FROM files "
                "JOIN jobs ON jobs.id = files.job WHERE answer IS NULL AND again <= ? "
                "ORDER BY attempts, send DESC, created, files.job, number LIMIT ?",
                (time.time(), limit + len(hands)),
            ).fetchall()
        tasks = [
            Task(job, number, name, owner, bool(send), created)
            for job, number, name, owner, send, created in rows
        ]
        return [task for task in tasks if (task.job, task.number) not in hands][:limit]

    def read(self, task: Task) -> bytes:
        """Return a file's content.

        Raises:
            OSError: It is gone, as after its job was deleted.
        """
        return self._path(task.job, task.number).read_bytes()

    def answer(self, task: Task, answer: Answer, grounds: dict[str, Any] | None = None) -> bool:
        """Write an answer, then delete the file.

        Where the same report was made before, the findings are those that it told.

        Args:
            task: The file.
            answer: What became of it.
            grounds: What a report of it is made from, but its time and the report before it; None
                where there is none.

        Returns:
            Whether it was the first.
        """
        told = answer.to_dict()
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            first = self._db.execute(
                "SELECT 1 FROM files WHERE job = ? AND number = ? AND answer IS NULL",
                (task.job, task.number),
            ).fetchone()
            if first and grounds is not None:
                entered = self.reports.enter(told, grounds, task.arrived, send=task.send)
                if entered is None:
                    told["notes"].append(ledger.SUPERSEDED)
                told, grounds = entered or (told, None)
            if first:
                self._db.execute(
                    "UPDATE files SET answer = ?, grounds = ?, owes = ? "
                    "WHERE job = ? AND number = ?",
                    (
                        json.dumps(told),
                        None if grounds is None else json.dumps(grounds),
                        grounds is not None and task.send,
                        task.job,
                        task.number,
                    ),
                )
                self._finish(task.job)
        self._path(task.job, task.number).unlink(missing_ok=True)
        return bool(first)

    def failed(self, task: Task, pause: float) -> int:
        """Note that a file could not be answered now.

        Args:
            task: The file.
            pause: Seconds until it may be tried again.

        Returns:
            Attempts that failed so far; 0 if its job was deleted meanwhile.
        """
        with self._lock, self._db:
            self._db.execute(
                "UPDATE files SET attempts = attempts + 1, again = ? WHERE job = ? AND number = ?",
                (time.time() + pause, task.job, task.number),
            )
            row = self._db.execute(
                "SELECT attempts FROM files WHERE job = ? AND number = ?", (task.job, task.number)
            ).fetchone()
        return 0 if row is None else int(row[0])

    def keep_picture(self, task: Task, picture: bytes) -> None:
        """Keep a file's picture until its report is sent; it is on disk when this returns."""
        place = self._picture(task.job, task.number)
        _write_synced(place.with_suffix(".new"), picture)
        place.with_suffix(".new").replace(place)

    def results(self, job: str) -> list[dict[str, Any]]:
        """Return the answers of a job in the order of its files."""
        with self._lock:
            rows = self._db.execute(
                "SELECT answer FROM files WHERE job = ? AND answer IS NOT NULL ORDER BY number",
                (job,),
            ).fetchall()
        return [json.loads(row[0]) for row in rows]

    def grounds(self, job: str) -> list[dict[str, Any] | None]:
        """Return what the reports of a job are made from, in the order of its files."""
        with self._lock:
            rows = self._db.execute(
                "SELECT grounds FROM files WHERE job = ? AND answer IS NOT NULL ORDER BY number",
                (job,),
            ).fetchall()
        return [None if row[0] is None else json.loads(row[0]) for row in rows]

    def owing(self, limit: int) -> list[Debt]:
        """Return reports that are to be sent, oldest job first."""
        with self._lock:
            rows = self._db.execute(
                "SELECT files.job, number, answer, grounds FROM files "
                "JOIN jobs ON jobs.id = files.job WHERE owes = 1 "
                "ORDER BY created, files.job, number LIMIT ?",
                (limit,),
            ).fetchall()
        return [Debt(row[0], row[1], json.loads(row[2]), json.loads(row[3])) for row in rows]

    def picture(self, debt: Debt) -> bytes | None:
        """Return the picture that was kept for a report, if one was."""
        try:
            return self._picture(debt.job, debt.number).read_bytes()
        except FileNotFoundError:
            return None

    def paid(self, debt: Debt) -> None:
        """Note that a report is in the outbox, or can never be."""
        with self._lock, self._db:
            self._db.execute(
                "UPDATE files SET owes = 0 WHERE job = ? AND number = ?", (debt.job, debt.number)
            )
        self._picture(debt.job, debt.number).unlink(missing_ok=True)

    def counts(self) -> tuple[int, int]:
        """Return how many files wait for an answer, and how many reports are owed."""
        with self._lock:
            row = self._db.execute(
                "SELECT (SELECT count(*) FROM files WHERE answer IS NULL), "
                "(SELECT count(*) FROM files WHERE owes = 1)"
            ).fetchone()
        return int(row[0]), int(row[1])

    def delete(self, job: str) -> None:
        """Forget a job, its files and its answers."""
        with self._lock:
            with self._db:
                self._db.execute("DELETE FROM jobs WHERE id = ?", (job,))
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # nothing of it stays in the log
        shutil.rmtree(self._content / job, ignore_errors=True)

    def expire(self, seconds: float) -> None:
        """Forget jobs that were finished longer ago."""
        with self._lock:
            old = self._db.execute(
                "SELECT id FROM jobs WHERE finished < ? AND NOT EXISTS "
                "(SELECT 1 FROM files WHERE job = jobs.id AND owes = 1)",
                (time.time() - seconds,),
            ).fetchall()
            for (job,) in old:
                self.delete(job)
        self.reports.expire()

    def _known(self, owner: str, key: str | None, body: str) -> Job | None:
        """Return the job that a request has made before, by its key.

        Raises:
            KeyReusedError: The key came with other files.
        """
        row = (
            key
            and self._db.execute(
                "SELECT id, body FROM jobs WHERE owner = ? AND key = ?", (owner, key)
            ).fetchone()
        )
        if not row:
            return None
        if row[1] != body:
            raise KeyReusedError("this Idempotency-Key came with other files before")
        return self._job(row[0])

    def _insert(
        self, job: str, owner: str, key: str | None, body: str, parts: Sequence[Part], *, send: bool
    ) -> None:
        with self._db:
            self._db.execute(
                "INSERT INTO jobs (id, owner, key, body, created, send) VALUES (?, ?, ?, ?, ?, ?)",
                (job, owner, key, body, time.time(), send),
            )
            self._db.executemany(
                "INSERT INTO files (job, number, name, size, answer) VALUES (?, ?, ?, ?, ?)",
                [
                    (job, n, part.name, len(part.content or b""), _refusal(part))
                    for n, part in enumerate(parts)
                ],
            )
            self._finish(job)

    def _job(self, job: str) -> Job:
        row = self._db.execute(
            "SELECT owner, created, finished, count(*), count(answer) FROM jobs "
            "JOIN files ON files.job = jobs.id WHERE jobs.id = ? GROUP BY jobs.id",
            (job,),
        ).fetchone()
        if row is None:
            raise KeyError(job)
        owner, created, finished, files, answered = row
        return Job(job, owner, files, answered, created, finished)

    def _finish(self, job: str) -> None:
        self._db.execute(
            "UPDATE jobs SET finished = ? WHERE id = ? AND finished IS NULL AND NOT EXISTS "
            "(SELECT 1 FROM files WHERE job = jobs.id AND answer IS NULL)",
            (time.time(), job),
        )

    def _write(self, job: str, parts: Sequence[Part]) -> None:
        """Have the files on disk, whatever happens next."""
        folder = self._content / job
        folder.mkdir(mode=0o700)
        for number, part in enumerate(parts):
            if part.content is not None:
                _write_synced(self._path(job, number), part.content)
        for directory in (folder, self._content):
            descriptor = os.open(directory, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _picture(self, job: str, number: int) -> Path:
        return self._content / job / f"{number}.png"

    def _path(self, job: str, number: int) -> Path:
        return self._content / job / str(number)


def _open_database(file: Path) -> sqlite3.Connection:
    """Open the database for its owner alone, with the tables of this release.

    Raises:
        ConfigError: A newer release wrote it.
        OSError, sqlite3.Error: It cannot be used.
    """
    os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
    for part in (file, file.with_name(f"{file.name}-wal"), file.with_name(f"{file.name}-shm")):
        if part.exists():  # SQLite gives the two the mode of the first
            part.chmod(0o600)
    db = sqlite3.connect(file, check_same_thread=False)
    try:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA:
            raise ConfigError(
                f"{file.parent} was written by a newer MedQua (its tables are of version "
                f"{version}, this one reads up to {SCHEMA}): use that release, or another spool"
            )
        for setting in ("journal_mode = WAL", "synchronous = FULL", "secure_delete = ON"):
            db.execute(f"PRAGMA {setting}")
        with db:
            _bring_up(db)
            db.execute("UPDATE files SET again = 0 WHERE answer IS NULL")
        db.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        db.close()
        raise
    return db


def _bring_up(db: sqlite3.Connection) -> None:
    """Make the tables, or bring those of an earlier release up to this one's."""
    db.execute("BEGIN IMMEDIATE")
    for table in _TABLES:
        db.execute(table)
    for table, columns in _COLUMNS.items():
        there = {row[1] for row in db.execute(f"PRAGMA table_info({table})")}
        for column, kind in columns.items():
            if column not in there:
                db.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")
    for index in _INDICES:
        db.execute(index)
    db.execute("DROP TABLE IF EXISTS times")  # of reports, which the ledger knows now
    db.execute(f"PRAGMA user_version = {SCHEMA}")


def _write_synced(place: Path, content: bytes) -> None:
    descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _body(parts: Sequence[Part]) -> str:
    """Hash what makes two requests the same: names and contents, in order."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.content or b""
        head = json.dumps([part.name, len(content), part.content is None])
        digest.update(head.encode("utf-8", "surrogatepass"))
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def _refusal(part: Part) -> str | None:
    if part.refusal is None:
        return None
    return json.dumps(refused(part.name, 422, part.refusal).to_dict())
