"""What the routes of one app share, and how a request's files are answered."""

import asyncio
import json
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import Response

from medqua.core.errors import MedQuaError
from medqua.serve.audit import AuditError, AuditLog, Repository
from medqua.serve.http.guard import Answered
from medqua.serve.http.metrics import Metrics
from medqua.serve.jobs.incoming import Inbox
from medqua.serve.jobs.outgoing import Outgoing
from medqua.serve.jobs.runner import JobRunner
from medqua.serve.jobs.store import JobStore
from medqua.serve.pacs.dimse import StorePort
from medqua.serve.processes.batcher import Priority
from medqua.serve.processes.clerk import Clerk
from medqua.serve.processes.reader import Answer, Reader, refused
from medqua.serve.settings import Settings
from medqua.serve.zip_archive import Part

T = TypeVar("T")


class ClientGoneError(MedQuaError):
    """The client closed its connection before it was answered."""


@dataclass
class Service:
    """The parts of a running app; those that need an event loop are there once it has started."""

    settings: Settings
    """How it is run."""
    metrics: Metrics = field(default_factory=Metrics)
    """Its numbers."""
    reader: Reader | None = None
    """Answers files."""
    jobs: JobStore | None = None
    """Accepted jobs; None where there is no spool."""
    runner: JobRunner | None = None
    """Answers them."""
    clerk: Clerk = field(default_factory=Clerk)
    """Writes reports."""
    outgoing: Outgoing | None = None
    """Sends them; None where there is no archive."""
    inbox: Inbox | None = None
    """Takes the archive's images; None where there is no archive."""
    door: StorePort | None = None
    """Where they come in by C-STORE."""
    audit: AuditLog | None = None
    """Who asked what."""
    repository: Repository | None = None
    """The hospital's, to which that goes too."""
    failure: MedQuaError | None = None
    """Why the app could not start."""
    draining: bool = False
    """Whether the service is about to end."""

    @property
    def ready(self) -> bool:
        """Whether a model is warm and the service stays."""
        return self.reader is not None and self.reader.workers.ready > 0 and not self.draining

    async def answer(
        self, parts: Sequence[Part], deadline: float, priority: Priority
    ) -> list[Answer]:
        """Answer the files of one request; the first needs a place at once, the others wait.

        Raises:
            OverloadError: No place is free.
        """
        reader = self.need_reader()
        files = [number for number, part in enumerate(parts) if part.content is not None]
        if files:
            reader.batcher.enter()
        turn = asyncio.Semaphore(2 * self.settings.batching.max_batch_size)
        unused = bool(files)

        async def one(number: int) -> Answer:
            nonlocal unused
            part = parts[number]
            if part.content is None:
                return refused(part.name, 422, part.refusal or MedQuaError("no content"))
            if number == files[0]:
                unused = False
                return await reader.read(
                    part.content, name=part.name, deadline=deadline, priority=priority,
                    admitted=True,
                )  # fmt: skip
            async with turn:
                await reader.batcher.wait_to_enter()
                return await reader.read(
                    part.content, name=part.name, deadline=deadline, priority=priority,
                    admitted=True,
                )  # fmt: skip

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(number)) for number in range(len(parts))]
            return [task.result() for task in tasks]
        finally:
            if unused:
                reader.batcher.leave()

    def write_down(self, answered: Answered) -> None:
        """Write an answer into the audit log, if one is kept.

        Raises:
            AuditError: It cannot be written.
        """
        if self.audit is None:
            return
        try:
            self.audit.record(**vars(answered))
        except AuditError:
            self.metrics.audit_failed()
            raise

    def need_reader(self) -> Reader:
        """Return the reader of an app that has started."""
        if self.reader is None:
            raise RuntimeError("the app has not started")
        return self.reader


def service_of(request: Request) -> Service:
    """Return the service that a request came to."""
    service: Service = request.app.state.service
    return service


def tell_audit(request: Request, what: Sequence[str], outcome: Sequence[int]) -> None:
    """Say which files a request is about, for the audit log that its guard writes.

    Args:
        request: The request.
        what: SHA-256 of the files, hexadecimal.
        outcome: Status of each.
    """
    request.scope["medqua.audit"] = tuple(what), tuple(outcome)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do work for a client as long as it is there; the body has been read.

    Raises:
        ClientGoneError: It is gone, and the work was cancelled.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError("the client closed its connection")
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


def json_response(document: Any, status: int = 200) -> Response:
    """Return a JSON response, which never holds NaN."""
    body = json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
    return Response(body, status, media_type="application/json")


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
