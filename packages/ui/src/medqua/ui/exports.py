"""What goes out of the viewer: reports, tables, de-identified copies, and reports to the archive.

Everything needs the role `export`, is written to the audit log first, says that it is for research
only, and bears no patient's name in its file name.
"""

import csv
import io
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from medqua.core.errors import ImageError
from medqua.core.vision.image import Decoder, ImageSpec
from medqua.serve.pacs.delivery import Courier
from medqua.serve.pacs.errors import SpoolError
from medqua.serve.pacs.spool import Spool
from medqua.ui.archive import Archive
from medqua.ui.audit import AuditLog
from medqua.ui.desk import Desk
from medqua.ui.findings import Reading
from medqua.ui.intake import sentence
from medqua.ui.studies import Session, Sessions, Study

logger = logging.getLogger("medqua.ui")

USE = "Research use only. Not a medical device, not for diagnosis."
"""Stands in every export."""

PATIENCE = 8.0
"""Seconds that a report is watched on its way before the user is told that it waits."""

_PICTURE = ImageSpec(profile="display", size=None, scope="any")


class Outbox:
    """Reports on their way to the archive; they survive the server's end.

    Args:
        folder: Where they wait.
        archive: Where they go.
    """

    def __init__(self, folder: Path, archive: Archive) -> None:
        self.archive = archive
        self._spool = Spool(folder)
        self._courier = Courier(self._spool, archive.store, interval=0.25)

    def send(self, report: bytes) -> str:
        """Put a report on its way and tell in a sentence how far it came.

        Raises:
            SpoolError: It cannot be kept.
        """
        name = self._spool.put(report)
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if name not in set(self._spool.waiting()):
                return f"Stored in {self.archive.shown}."
            if self._spool.attempts(name).count:
                break
            time.sleep(0.05)
        return "The archive has not taken it yet; it stays in the outbox and is sent again."

    def close(self) -> None:
        """Stop; what waits is sent after the next start."""
        self._courier.close()
        self._spool.close()


class Exports:
    """The routes.

    Args:
        sessions: The server's sessions.
        desk: Gives findings.
        audit: Told of everything that goes out.
        outbox: Reports on their way; None without an archive.
    """

    def __init__(
        self, sessions: Sessions, desk: Desk, audit: AuditLog, outbox: Outbox | None
    ) -> None:
        self._sessions, self._desk, self._audit, self._outbox = sessions, desk, audit, outbox
        self._kinds: dict[str, tuple[str, Callable[[Study, Reading], bytes]]] = {
            "report.pdf": ("application/pdf", self._page),
            "report.dcm": ("application/dicom", self._report),
            "findings.json": ("application/json", self._json),
            "findings.csv": ("text/csv; charset=utf-8", self._csv),
            "deidentified.dcm": ("application/dicom", self._copy),
        }

    def routes(self) -> list[BaseRoute]:
        """Return the routes; the guard has found the session of whoever gets here."""
        return [
            Route("/export/{name}/send", self._send, methods=["POST"]),
            Route("/export/{name}/{kind}", self._get, methods=["GET"]),
        ]

    async def _get(self, request: Request) -> Response:
        kind = request.path_params["kind"]
        if kind not in self._kinds:
            return JSONResponse({"error": "there is no such export"}, 404)
        media, make = self._kinds[kind]

        def work(session: Session, study: Study, reading: Reading) -> Response:
            file = f"medqua-{study.digest[:12]}-{kind}"
            disposition = {"Content-Disposition": f'attachment; filename="{file}"'}
            return Response(make(study, reading), media_type=media, headers=disposition)

        return await self._out(request, f"export {kind}", work, wanted=kind != "deidentified.dcm")

    async def _send(self, request: Request) -> Response:
        outbox = self._outbox
        if outbox is None:
            return JSONResponse({"error": "no archive is set up: --archive"}, 404)

        def work(session: Session, study: Study, reading: Reading) -> Response:
            return JSONResponse({"told": outbox.send(self._report(study, reading))})

        return await self._out(request, "send report", work, wanted=True)

    async def _out(
        self,
        request: Request,
        event: str,
        work: Callable[[Session, Study, Reading], Response],
        *,
        wanted: bool,
    ) -> Response:
        """Do the work for somebody who may; `wanted`: it needs findings."""
        session = self._sessions.get(request.scope.get("state", {}).get("session"))
        study = None if session is None else session.studies.get(request.path_params["name"])
        if session is None or study is None:
            return JSONResponse({"error": "no such study"}, 404)
        if not session.user.may("export"):
            return JSONResponse({"error": "this needs the role `export`"}, 403)
        client = request.client.host if request.client else ""

        def all_of_it() -> Response:
            reading = self._desk.read(session, study) if wanted else None
            if wanted and (reading is None or not reading.rows):
                why = "no model is loaded" if reading is None else reading.refusal
                return JSONResponse({"error": sentence(f"there are no findings: {why}")}, 409)
            try:
                self._audit.write(event, who=session.who, client=client, study=study.digest)
            except OSError:
                return JSONResponse({"error": "The audit log cannot be written."}, 503)
            try:
                return work(session, study, reading or Reading((), "", (), {}, 0.0))
            except (ImageError, SpoolError) as error:
                return JSONResponse({"error": sentence(str(error))}, 409)

        return await run_in_threadpool(all_of_it)

    def _report(self, study: Study, reading: Reading) -> bytes:
        """Write a structured report.

        Raises:
            ImageError: The image is none that a report can refer to.
        """
        from medqua.serve.objects.identity import content_of  # highdicom takes seconds
        from medqua.serve.objects.reference import read_reference
        from medqua.serve.report.options import ReportOptions
        from medqua.serve.report.sr import build_report, to_bytes

        if reading.findings is None:
            raise ImageError("there are no findings to report")
        content = study.content.read_bytes()
        image = read_reference(content)
        options = ReportOptions(dict(reading.record), content_of(content))
        return to_bytes(build_report(reading.findings, image, options))

    def _page(self, study: Study, reading: Reading) -> bytes:
        from medqua.ui.report_page import draw_report

        with Decoder() as decoder:
            picture = decoder.read(study.content.read_bytes(), _PICTURE).image
        facts = {"Image (SHA-256)": study.digest, "Kind": study.summary}
        return draw_report(picture, reading, facts)

    def _json(self, study: Study, reading: Reading) -> bytes:
        return json.dumps(_document(study, reading), indent=2, allow_nan=False).encode()

    def _csv(self, study: Study, reading: Reading) -> bytes:
        stream = io.StringIO()
        rows = csv.writer(stream)
        rows.writerow(
            ["sha256", "finding", "probability", "classical_only", "call", "bundle", "use"]
        )
        bundle = str(reading.record.get("bundle", ""))
        for row in reading.rows:
            classical = "" if row.classical is None else f"{row.classical:.6f}"
            label = f"'{row.label}" if row.label[:1] in "=+-@\t\r" else row.label  # no formulas
            rows.writerow(
                [study.digest, label, f"{row.probability:.6f}", classical, row.call, bundle, USE]
            )
        return stream.getvalue().encode()

    def _copy(self, study: Study, reading: Reading) -> bytes:
        from medqua.ui.deidentify import deidentify

        return deidentify(study.content.read_bytes())


def _document(study: Study, reading: Reading) -> dict[str, Any]:
    codes = {f.label: f.code for f in reading.findings or ()}
    findings = []
    for row in reading.rows:
        code = codes.get(row.label)
        findings.append(
            {
                "label": row.label,
                "code": None if code is None else vars(code),
                "probability": row.probability,
                "classical_only": row.classical,
                "call": row.call,
            }
        )
    return {
        "schema": 1,
        "use": USE,
        "sha256": study.digest,
        "provenance": dict(reading.record),
        "notes": list(reading.notes),
        "findings": findings,
    }
