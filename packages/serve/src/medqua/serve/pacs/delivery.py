"""What waits in an outbox goes to an archive, again and again with growing pauses."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from medqua.serve.pacs.errors import PacsConflictError, PacsError
from medqua.serve.pacs.spool import Attempts, Spool

log = logging.getLogger(__name__)

Send = Callable[[bytes], None]
"""Stores one object in an archive; returns only if the archive said so.

Raises:
    PacsError: It did not.
"""


@dataclass(frozen=True)
class Retry:
    """When to try again."""

    attempts: int = 10
    """Attempts after which an object is buried."""
    first_pause: float = 5.0
    """Pause after the first failure, in seconds; it doubles each time."""
    longest_pause: float = 3600.0
    """No pause is longer, in seconds."""

    def pause(self, failures: int) -> float:
        """Return the pause after so many failures, in seconds."""
        return min(self.first_pause * 2.0 ** min(failures - 1, 60), self.longest_pause)


@dataclass(frozen=True)
class Round:
    """What one pass over the outbox did, in objects."""

    sent: int = 0
    """Stored in the archive."""
    failed: int = 0
    """Not stored; they wait."""
    buried: int = 0
    """Not stored at the last attempt."""
    conflicts: int = 0
    """Buried at once: the archive holds another object of the same UID."""

    def __add__(self, other: "Round") -> "Round":
        return Round(
            self.sent + other.sent, self.failed + other.failed, self.buried + other.buried,
            self.conflicts + other.conflicts,
        )  # fmt: skip


def deliver(
    spool: Spool, send: Send, retry: Retry | None = None, *, now: float | None = None
) -> Round:
    """Send what waits and is due, oldest first.

    An object is removed after the archive has confirmed it; a kill between the two sends it once
    more, under the same UID.

    Args:
        spool: The outbox.
        send: Reaches the archive.
        retry: When to try again.
        now: Time in seconds since the epoch; the clock's by default.
    """
    retry = retry or Retry()
    sent = failed = buried = conflicts = 0
    for name in spool.waiting():
        so_far = spool.attempts(name)
        moment = time.time() if now is None else now
        if so_far.not_before > moment:
            continue
        try:
            send(spool.read(name))
        except PacsConflictError as error:  # no later attempt can help; somebody must look
            spool.failed(name, Attempts(so_far.count + 1, moment, type(error).__name__))
            spool.bury(name)
            conflicts += 1
            log.error("the archive holds another object", extra={"told": {"object": name[:12]}})
        except PacsError as error:
            count, kind = so_far.count + 1, type(error).__name__
            spool.failed(name, Attempts(count, moment + retry.pause(count), kind))
            told = {"object": name[:12], "attempt": count, "error": kind}
            if count >= retry.attempts:
                spool.bury(name)
                buried += 1
                log.error("report given up", extra={"told": told})
            else:
                failed += 1
                log.warning("report not stored yet", extra={"told": told})
        else:
            spool.remove(name)
            sent += 1
    return Round(sent, failed, buried, conflicts)


class Courier:
    """Delivers in a thread until it is closed.

    Args:
        spool: The outbox.
        send: Reaches the archive.
        retry: When to try again.
        interval: Seconds between two looks into the outbox.
    """

    def __init__(
        self, spool: Spool, send: Send, retry: Retry | None = None, *, interval: float = 1.0
    ) -> None:
        self.total = Round()
        """What was done so far."""
        self._work = (spool, send, retry)
        self._interval, self._stop = interval, threading.Event()
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop after the object under way; what waits stays on disk."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.total += deliver(*self._work)
            except Exception:  # a defect or a full disk must not end deliveries for good
                log.exception("a round of deliveries ended early")
            self._stop.wait(self._interval)
