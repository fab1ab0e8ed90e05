"""Which reports an image has had, so that a later one follows the earlier and none is made twice.

An image is known by its SOP instance UID. It may come again under that UID with other content: a
corrected name, other pixels. The newest report of an image is the one that another of the same
content, model and device is again; anything else gives a new one, which names the newest that was
sent as its predecessor. An image that arrived before the one that was reported last gets none.
"""

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from datetime import datetime
from typing import Any

from medqua.serve.report.grounds import Grounds, findings_of
from medqua.serve.report.options import report_uids

TABLE = """
CREATE TABLE IF NOT EXISTS reports (
    number INTEGER PRIMARY KEY AUTOINCREMENT, image TEXT NOT NULL, key TEXT NOT NULL,
    arrived REAL NOT NULL, first REAL NOT NULL, sent INTEGER NOT NULL,
    told TEXT NOT NULL, uids TEXT NOT NULL, predecessor TEXT)
"""
INDEX = "CREATE INDEX IF NOT EXISTS reports_of ON reports (image, number)"

KEPT = 366 * 86400.0
"""For how long a report is remembered, in seconds."""

SUPERSEDED = "a newer image of the same UID has been reported; none is written of this one"
"""Why a file with findings has no report."""


class Ledger:
    """The reports of a spool. Safe to share between threads.

    Args:
        db: The spool's database, with `TABLE`.
        lock: Held while it is used.
    """

    def __init__(self, db: sqlite3.Connection, lock: threading.RLock) -> None:
        self._db, self._lock = db, lock

    def enter(
        self, answer: Mapping[str, Any], grounds: Mapping[str, Any], arrived: float, *, send: bool
    ) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Say what a report is to tell; when this returns, that is on disk.

        Within a transaction of the caller's, it is with the rest of it.

        Args:
            answer: With status 200, as `Answer.to_dict` gives it.
            grounds: As `Grounds.to_dict` gives them; time and predecessor are filled in.
            arrived: When the image came, in seconds since 1970.
            send: Whether the report goes to the archive.

        Returns:
            The answer with the findings that a first report of the same told, and the grounds;
            None where a newer image of the same UID has been reported.
        """
        known = Grounds.from_dict({**grounds, "when": "", "predecessor": None})
        made_by = json.dumps([known.content, known.provenance, known.device], sort_keys=True)
        key = hashlib.sha256(made_by.encode()).hexdigest()
        image = str(known.reference().SOPInstanceUID)
        with self._lock, nullcontext() if self._db.in_transaction else self._db:
            newest = self._newest(image)
            if newest is not None and newest["key"] == key:
                self._db.execute(
                    "UPDATE reports SET sent = max(sent, ?), arrived = max(arrived, ?) "
                    "WHERE number = ?",
                    (send, arrived, newest["number"]),
                )
                told, first = json.loads(newest["told"]), newest["first"]
                before = newest["predecessor"]
            elif newest is not None and arrived < newest["arrived"]:
                return None
            else:
                told = {name: answer[name] for name in ("findings", "quantum")}
                sent = self._newest(image, sent=True)
                before = None if sent is None else sent["uids"]
                first = time.time()
                if newest is not None:  # in whole seconds, which tell which of two is newer
                    first = max(first, newest["first"] + 1.0)
                report = _filled(known, first, before)
                uids = report_uids(
                    findings_of(told), report.reference(), report.options(), report.time
                )
                self._db.execute(
                    "INSERT INTO reports (image, key, arrived, first, sent, told, uids, "
                    "predecessor) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        image, key, arrived, first, send, json.dumps(told),
                        json.dumps(asdict(uids)), before,
                    ),
                )  # fmt: skip
        return {**answer, **told}, _filled(known, first, before).to_dict()

    def expire(self) -> None:
        """Forget reports of long ago."""
        with self._lock, self._db:
            self._db.execute("DELETE FROM reports WHERE first < ?", (time.time() - KEPT,))

    def _newest(self, image: str, *, sent: bool = False) -> dict[str, Any] | None:
        found = self._db.execute(
            "SELECT number, key, arrived, first, told, uids, predecessor FROM reports "
            "WHERE image = ? AND sent >= ? ORDER BY number DESC LIMIT 1",
            (image, sent),
        )
        row = found.fetchone()
        names = [column[0] for column in found.description]
        return None if row is None else dict(zip(names, row, strict=True))


def _filled(grounds: Grounds, first: float, predecessor: str | None) -> Grounds:
    """Return grounds with the time of the report's content and the report before it."""
    when = datetime.fromtimestamp(int(first)).astimezone().isoformat()
    before = None if predecessor is None else json.loads(predecessor)
    return Grounds(grounds.image, when, grounds.provenance, grounds.device, grounds.content, before)
