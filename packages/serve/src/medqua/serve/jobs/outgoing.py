"""Reports of answered files on their way to the archive.

    answered, owed  ->  written by the clerk  ->  outbox on disk  ->  archive

A report is owed until it is in the outbox, and there until the archive has confirmed it. It is
written from what was kept with the answer: again after a crash, it is the same object.
"""

import asyncio
import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from medqua.core.errors import ConfigError, ImageError
from medqua.serve.audit import AuditLog
from medqua.serve.jobs.store import Debt, JobStore
from medqua.serve.pacs.delivery import Courier, Retry, Send
from medqua.serve.pacs.dicomweb import DicomWebArchive
from medqua.serve.pacs.dimse import DimseArchive
from medqua.serve.pacs.errors import PacsUnreachableError, SpoolError
from medqua.serve.pacs.spool import Spool
from medqua.serve.pacs.tls import Certificates
from medqua.serve.processes.clerk import Clerk, ReportError, objects_of
from medqua.serve.settings import Archive, Settings

PAUSE = 5.0
"""Pause after the outbox refused, in seconds."""

TOGETHER = 32
"""Owed reports that are taken up at a time."""

log = logging.getLogger("medqua.serve")


def sender(archive: Archive) -> Send:
    """Return what stores an object in an archive.

    Raises:
        ConfigError: Its token is nowhere, or a certificate is none.
    """
    if archive.host:
        certificates = None
        if archive.tls:
            certificates = Certificates(
                archive.certificate, archive.private_key, archive.authorities
            )
            certificates.for_archive()
        return DimseArchive(
            archive.host, archive.port, archive.title, archive.own_title,
            archive.answer_seconds, certificates,
        )  # fmt: skip
    _token(archive)

    def send(data: bytes) -> None:
        try:
            token = _token(archive)
        except ConfigError:
            raise PacsUnreachableError("the token of the archive cannot be read") from None
        DicomWebArchive(
            archive.url, token, archive.authorities, read_seconds=archive.answer_seconds,
            read_back=archive.read_back,
        )(data)  # fmt: skip

    return send


class Outgoing:
    """Has owed reports written and sent. Lives in one event loop; the courier in a thread.

    Args:
        settings: The archive, and the spool in which the outbox is.
        store: Knows what is owed.
        clerk: Writes reports.
        audit: Told what was put into the outbox.

    Raises:
        ConfigError: The archive's token is nowhere.
        SpoolError: The outbox cannot be used.
    """

    def __init__(
        self, settings: Settings, store: JobStore, clerk: Clerk, audit: AuditLog | None = None
    ) -> None:
        archive, storage = settings.archive, settings.storage
        if storage.spool is None:
            raise ConfigError("an archive needs storage.spool")
        send = sender(archive)
        self.outbox = Spool(storage.spool / "outbox", storage.spool_bytes)
        self.unwritten = 0
        """Reports that could not be written."""
        self._store, self._clerk, self._audit = store, clerk, audit
        self._key_object = settings.report.key_object
        self._wake = asyncio.Event()
        retry = Retry(archive.attempts, archive.first_pause, archive.longest_pause)
        self.courier = Courier(self.outbox, send, retry)
        self._task = asyncio.create_task(self._run())

    def wake(self) -> None:
        """Say that there may be something new."""
        self._wake.set()

    async def put(self, objects: Sequence[bytes]) -> None:
        """Put written objects into the outbox; when this returns, they are on disk.

        Raises:
            SpoolError: It is full, or the disk refuses.
        """
        for data in objects:
            await asyncio.to_thread(self.outbox.put, data)

    async def close(self) -> None:
        """Stop after the object under way; what is not sent is sent after the next start."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.to_thread(self.courier.close)
        self.outbox.close()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                owed = await asyncio.to_thread(self._store.owing, TOGETHER)
                for debt in owed:
                    await self._pay(debt)
            except (SpoolError, ReportError) as error:
                log.warning("report waits", extra={"told": {"error": type(error).__name__}})
                await asyncio.sleep(PAUSE)
                continue
            except Exception:
                log.exception("report waits")
                await asyncio.sleep(PAUSE)
                continue
            if len(owed) < TOGETHER:
                await self._wake.wait()

    async def _pay(self, debt: Debt) -> None:
        picture = await asyncio.to_thread(self._store.picture, debt)
        told = (debt.answer, debt.grounds, picture, self._key_object)
        try:
            objects = await self._clerk.do(objects_of, *told)
        except ReportError:
            try:  # once more: the process may have been ended from outside
                objects = await self._clerk.do(objects_of, *told)
            except (ReportError, ImageError) as error:
                which = {"job": debt.job, "number": debt.number, "error": type(error).__name__}
                log.error("report given up", extra={"told": which})
                objects, self.unwritten = [], self.unwritten + 1
        await self.put([data for _, data in objects])
        if self._audit is not None:
            await asyncio.to_thread(
                self._audit.record,
                who="archive", request_id=debt.job, action="report to outbox",
                what=[debt.answer["sha256"]], outcome=[debt.answer["status"]],
                result=hashlib.sha256(b"".join(data for _, data in objects)).hexdigest(),
            )  # fmt: skip
        await asyncio.to_thread(self._store.paid, debt)


def _token(archive: Archive) -> str:
    if archive.token_file is not None:
        return _read(archive.token_file)
    if archive.token_env:
        token = os.environ.get(archive.token_env, "").strip()
        if not token:
            raise ConfigError(f"archive.token_env: {archive.token_env} is not set or empty")
        return token
    return ""


def _read(file: Path) -> str:
    try:
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"archive.token_file cannot be read: {type(error).__name__}") from None
    if not token:
        raise ConfigError("archive.token_file is empty")
    return token
