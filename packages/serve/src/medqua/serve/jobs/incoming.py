"""Images that an archive sends: by either door they become jobs whose reports go back to it."""

import asyncio
import hashlib
from collections.abc import Callable
from contextlib import suppress

from medqua.serve.audit import AuditError, AuditLog
from medqua.serve.jobs.store import JobStore, SpoolFullError
from medqua.serve.pacs.dimse import (
    OUT_OF_RESOURCES,
    SUCCESS,
    Keeps,
    StorePort,
    StorePortOptions,
)
from medqua.serve.pacs.errors import SpoolError
from medqua.serve.pacs.tls import Certificates
from medqua.serve.settings import Settings
from medqua.serve.zip_archive import Part

OWNER = "archive"
"""Whose these jobs are; an administrator sees them too."""

AGAIN = (503, 504)
"""Statuses that were not the file's fault: sent again, it is read again."""


class Inbox:
    """Takes objects in, each once. Safe between threads.

    Args:
        store: Where they wait.
        arrived: Called after each, in the thread that brought it.
    """

    def __init__(self, store: JobStore, arrived: Callable[[], None]) -> None:
        self._store, self._arrived = store, arrived

    def put(self, data: bytes) -> str:
        """Keep an object; when this returns, it survives a kill, and will be answered.

        The same object again, while its result is kept, means nothing new.

        Returns:
            Its job.

        Raises:
            SpoolError: The spool is full, or the disk refuses.
        """
        key = hashlib.sha256(data).hexdigest()
        try:
            job, new = self._store.accept(OWNER, [Part("", data)], key, send=True)
            if not new and job.finished and self._store.results(job.id)[0]["status"] in AGAIN:
                self._store.delete(job.id)
                job, new = self._store.accept(OWNER, [Part("", data)], key, send=True)
        except SpoolFullError:
            raise SpoolError("the spool is full; have its files answered, or enlarge it") from None
        except OSError as error:
            raise SpoolError(f"the spool cannot be written: {error.strerror}") from None
        if new:
            self._arrived()
        return job.id


class Audited:
    """The inbox behind the door for C-STORE: what comes in stands in the audit log.

    Args:
        inbox: Where it goes.
        audit: The log.
    """

    def __init__(self, inbox: Inbox, audit: AuditLog) -> None:
        self._inbox, self._audit = inbox, audit

    def put(self, data: bytes) -> str:
        """Keep an object, and note its hash beside its job.

        Raises:
            SpoolError: It cannot be kept, or cannot be noted.
        """
        try:
            job = self._inbox.put(data)
        except SpoolError:
            self._write_down(data, "", OUT_OF_RESOURCES)
            raise
        self._write_down(data, job, SUCCESS)
        return job

    def refused(self, reason: str, address: str) -> None:
        """Note that somebody was not let in, or that what they sent was not taken.

        Args:
            reason: What was refused, in a word or two of ours.
            address: Network address of who came.
        """
        with suppress(AuditError):  # refused it is in any case
            self._audit.record(
                who="", request_id="", action=reason, what=(), outcome=(), result="", status=403,
                address=address,
            )  # fmt: skip

    def _write_down(self, data: bytes, job: str, status: int) -> None:
        try:
            self._audit.record(
                who=OWNER, request_id=job, action="C-STORE",
                what=[hashlib.sha256(data).hexdigest()], outcome=[status],
                result=hashlib.sha256(job.encode()).hexdigest(),
            )  # fmt: skip
        except AuditError as error:  # sent again, it is the same job
            raise SpoolError(str(error)) from None


def open_door(inbox: Keeps, settings: Settings) -> StorePort:
    """Listen for C-STORE.

    Args:
        inbox: Where objects go; told too of who was refused, where it is `Audited`.
        settings: Where to listen, and for whom.

    Raises:
        ConfigError: A title or a certificate is none, or the port cannot be listened on.
    """
    door, limits = settings.door, settings.limits
    certificates = None
    if door.certificate is not None:
        certificates = Certificates(door.certificate, door.private_key, door.authorities)
    options = StorePortOptions(
        door.peers, door.title, door.host, door.port,
        object_bytes=limits.file_bytes, object_seconds=2 * limits.body_seconds,
        certificates=certificates,
    )  # fmt: skip
    return StorePort(inbox, options, refused=getattr(inbox, "refused", None))


def waker(wake: Callable[[], None]) -> Callable[[], None]:
    """Return what calls a function of the running event loop from any thread."""
    loop = asyncio.get_running_loop()

    def call() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(wake)

    return call
