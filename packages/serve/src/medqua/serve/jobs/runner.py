"""Answers the files of accepted jobs, behind all who wait at the door for theirs.

As many files are in hand as a batch holds. What is in hand when the service ends stays in the
spool and is taken up again at the next start. A file that cannot be read is tried again behind all
others, and in the end answered as lost, so that none holds up another.
"""

import asyncio
import logging
import sqlite3
import time
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

from medqua.core.errors import ImageError, MedQuaError
from medqua.serve.jobs.store import JobStore, Task
from medqua.serve.processes.batcher import Priority
from medqua.serve.processes.clerk import Clerk, ReportError, grounds_of, picture_of
from medqua.serve.processes.reader import Reader, refused

if TYPE_CHECKING:  # networking that a run over files does without
    from medqua.serve.jobs.outgoing import Outgoing

PATIENCE = 3600.0
"""Seconds after which a file of a job is answered with a deadline error."""

PAUSE = 5.0
"""Pause after a file could not be answered, in seconds."""

ATTEMPTS = 3
"""Failed attempts after which a file is answered as lost."""

log = logging.getLogger("medqua.serve")


class LostFileError(MedQuaError):
    """A file of a job that could not be read from the spool, or made the service fail."""


class JobRunner:
    """Takes files out of the spool. Lives in one event loop.

    Args:
        store: The spool.
        reader: Answers files.
        clerk: Takes from files what their reports need.
        outgoing: Sends reports; None where there is no archive.
        keep_seconds: For how long results of a finished job are kept.
    """

    def __init__(
        self,
        store: JobStore,
        reader: Reader,
        clerk: Clerk,
        outgoing: "Outgoing | None" = None,
        keep_seconds: float = 72 * 3600,
    ) -> None:
        self._store, self._reader = store, reader
        self._clerk, self._outgoing = clerk, outgoing
        self._keep_seconds = keep_seconds
        self.lost = 0
        """Files that were answered as lost."""
        self._in_hand: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin."""
        self._tasks = [asyncio.create_task(self._run()), asyncio.create_task(self._expire())]

    def wake(self) -> None:
        """Say that there is a new job."""
        self._wake.set()

    async def close(self) -> None:
        """Stop; unanswered files stay in the spool."""
        tasks = [*self._tasks, *self._in_hand.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        window = 2 * self._reader.settings.batching.max_batch_size
        while True:
            self._wake.clear()
            free = window - len(self._in_hand)
            tasks: list[Task] = []
            if free > 0:
                tasks = await asyncio.to_thread(self._store.waiting, free, list(self._in_hand))
            for task in tasks:
                key = (task.job, task.number)
                self._in_hand[key] = asyncio.create_task(self._answer(task))
            await self._wake.wait()

    async def _answer(self, task: Task) -> None:
        try:
            await self._answer_file(task)
        except sqlite3.Error:  # the spool's disk; no fault of this file
            log.exception("job file left in the spool", extra={"told": {"job": task.job}})
            await asyncio.sleep(PAUSE)
        except Exception:
            which = {"job": task.job, "file": task.number}
            log.exception("job file not answered", extra={"told": which})
            await self._put_behind(task)
        finally:
            self._in_hand.pop((task.job, task.number), None)
            self._wake.set()

    async def _answer_file(self, task: Task) -> None:
        try:
            content = await asyncio.to_thread(self._store.read, task)
        except FileNotFoundError:
            if await asyncio.to_thread(self._store.job, task.job, None) is None:
                return  # deleted meanwhile
            raise
        await self._reader.batcher.wait_to_enter()
        answer = await self._reader.read(
            content,
            name=task.name,
            deadline=time.monotonic() + PATIENCE,
            priority=Priority.BULK,
            admitted=True,
        )
        grounds = await self._grounds(task, content) if answer.status == 200 else None
        await asyncio.to_thread(self._store.answer, task, answer, grounds)
        if self._outgoing is not None:
            self._outgoing.wake()

    async def _put_behind(self, task: Task) -> None:
        """Have a file that failed wait behind the others, or answer it as lost."""
        try:
            attempts = await asyncio.to_thread(self._store.failed, task, PAUSE)
            if attempts >= ATTEMPTS:
                self.lost += 1
                error = LostFileError(
                    "the file could not be read from the spool, or made the service fail: send it "
                    "again"
                )
                lost = refused(task.name, 503, error)
                await asyncio.to_thread(self._store.answer, task, lost)
            elif attempts:
                asyncio.get_running_loop().call_later(PAUSE, self._wake.set)
        except sqlite3.Error:
            log.exception("job file left in the spool", extra={"told": {"job": task.job}})
            await asyncio.sleep(PAUSE)

    async def _grounds(self, task: Task, content: bytes) -> dict[str, Any] | None:
        """Take from a file what its report needs; None where there can be none."""
        device, picture = self._reader.settings.report.device, self._reader.settings.report.capture
        provenance = dict(self._reader.model.provenance)
        when = datetime.now().astimezone().isoformat()
        for last in (False, True):
            try:
                grounds = await self._clerk.do(grounds_of, content, provenance, device, when)
                if task.send and picture:
                    with suppress(ImageError):  # read by the model's recipe, but not displayed
                        drawn = await self._clerk.do(picture_of, content)
                        await asyncio.to_thread(self._store.keep_picture, task, drawn)
            except ImageError:  # no DICOM image, so there is nothing to report into
                return None
            except ReportError:  # once more: the process may have been ended from outside
                if last:
                    log.error("no report", extra={"told": {"job": task.job, "file": task.number}})
            else:
                return grounds
        return None

    async def _expire(self) -> None:
        while True:
            await asyncio.to_thread(self._store.expire, self._keep_seconds)
            await asyncio.sleep(3600)
