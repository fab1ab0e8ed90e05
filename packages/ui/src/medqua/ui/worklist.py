"""The worklist's routes: files come in one by one, each with its own result; state goes out.

POST   /worklist/files?name=NAME    one file as it is, or a ZIP
POST   /worklist/samples            the sample phantoms
GET    /worklist                    studies, their states, files that were not opened
DELETE /worklist[/NAME]             close all, or one
POST   /worklist/search, /worklist/fetch     an archive's studies by QIDO-RS and WADO-RS
GET    /state                       who is here, and whether the engine is ready

Every answer about the studies bears `session` and `number`: a browser drops one that is older than
what it has seen.
"""

import json
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from medqua.core.errors import ConfigError
from medqua.core.vision.image import Decoder
from medqua.serve.pacs.errors import PacsError
from medqua.ui.archive import Archive
from medqua.ui.audit import AuditLog
from medqua.ui.desk import Desk, Outcome
from medqua.ui.findings import Reading
from medqua.ui.identity import identity
from medqua.ui.intake import sentence, take_in
from medqua.ui.panel import title
from medqua.ui.studies import Refusal, Session, Sessions, Study

SAMPLES = Path(__file__).parent / "samples"
"""Synthetic radiographs, shipped with the package."""

NOT_URGENT = ("No Finding", "Support Devices")
"""Labels that make no study urgent."""

MOST_UPLOADS = 4
"""Uploads of one session at a time."""

MOST_FETCHED = 50
"""Studies fetched from an archive in one request."""

BODY_BYTES = 65_536


class Worklist:
    """What the routes share.

    Args:
        sessions: The server's sessions.
        decoder: Reads every file.
        desk: Reads findings.
        archive: An archive to search; None without one.
        audit: Told when the archive is asked.
        upload_bytes: Largest upload, in bytes.
        login: Whether users log in.
    """

    def __init__(
        self,
        sessions: Sessions,
        decoder: Decoder,
        desk: Desk,
        archive: Archive | None,
        audit: AuditLog,
        *,
        upload_bytes: int,
        login: bool,
    ) -> None:
        self._sessions, self._decoder, self._desk = sessions, decoder, desk
        self._archive, self._audit = archive, audit
        self._upload_bytes, self._login = upload_bytes, login

    def routes(self) -> list[BaseRoute]:
        """Return the routes; the guard has found the session of whoever gets here."""
        return [
            Route("/state", self._state, methods=["GET"]),
            Route("/worklist", self._list, methods=["GET"]),
            Route("/worklist", self._close, methods=["DELETE"]),
            Route("/worklist/files", self._receive, methods=["POST"]),
            Route("/worklist/samples", self._samples, methods=["POST"]),
            Route("/worklist/search", self._search, methods=["POST"]),
            Route("/worklist/fetch", self._fetch, methods=["POST"]),
            Route("/worklist/{name}", self._close_one, methods=["DELETE"]),
        ]

    def take_in(
        self, session: Session, paths: Sequence[Path], names: Sequence[str]
    ) -> list[Study | Refusal]:
        """Open files that lie in a session's folder, and have them read."""
        results = []
        for result in take_in(session, paths, self._decoder, names):
            if isinstance(result, Study):
                self._desk.enter(session, result)
            results.append(result)
        return results

    def _session(self, request: Request, *, touch: bool = True) -> Session | None:
        return self._sessions.get(request.scope.get("state", {}).get("session"), touch=touch)

    async def _state(self, request: Request) -> Response:
        session = self._session(request, touch=False)
        if session is None:
            return _gone()
        return JSONResponse(
            {
                "user": session.user.shown,
                "login": self._login,
                "roles": sorted(session.user.roles),
                "engine": await run_in_threadpool(lambda: self._desk.state),
                "archive": "" if self._archive is None else self._archive.shown,
            }
        )

    async def _list(self, request: Request) -> Response:
        session = self._session(request, touch=False)
        if session is None:
            return _gone()
        stamp = session.stamp()
        opened = list(session.studies.values())  # uploads add to it in threads of their own
        dates: dict[str, list[str]] = {}
        for study in opened:
            dates.setdefault(study.patient, []).append(study.date)
        for days in dates.values():
            days.sort()
        studies = [self._told(session, study, dates[study.patient]) for study in opened]
        left = sum(study["state"] in ("waiting", "reading") for study in studies)
        refused = [{"file": r.file, "reason": r.reason} for r in list(session.refusals)]
        seconds = round(left * self._desk.seconds, 1)
        return JSONResponse(
            {
                **stamp,
                "studies": studies,
                "refused": refused,
                "seconds_left": seconds,
                "in_view": session.in_view,
            }
        )

    def _told(self, session: Session, study: Study, dates: list[str]) -> dict[str, Any]:
        """Describe a study for the list; `dates` are those of its patient's studies, sorted."""
        outcome: Outcome = session.outcomes.get(study.name) or Outcome()
        reading, text, urgency = outcome.reading, "", 0
        if self._desk.reader is None:
            state = "open"
        elif reading is None:
            state = "reading" if outcome.begun else "waiting"
            text = outcome.problem
        elif reading.refusal:
            state, text = "refused", reading.refusal
        else:
            state, (text, urgency) = "read", called(reading)
        return {
            "name": study.name,
            "file": study.file,
            "summary": study.summary,
            "patient": session.patients.get(study.patient, 0),
            "order": dates.index(study.date) + 1 if study.date and study.patient else 0,
            "state": state,
            "text": text,
            "frontal": study.frontal,
            "urgency": urgency,
            "identity": identity(session, study, dates),
        }

    async def _receive(self, request: Request) -> Response:
        session = self._session(request)
        if session is None:
            return _gone()
        if session.receiving >= MOST_UPLOADS:
            return JSONResponse({"error": "too many uploads at a time"}, 429)
        name = request.query_params.get("name", "")[:1000].replace("\0", "") or "file"
        path = session.folder / f"{secrets.token_hex(16)}.part"
        session.receiving += 1
        try:
            size = await self._write(request, path)
            if size is None:
                refusal = Refusal(name, f"It is over {self._upload_bytes >> 20:,} MiB; split it.")
                session.refusals.append(refusal)
                return JSONResponse(_summary(session, [refusal]))
            results = await run_in_threadpool(self.take_in, session, [path], [name])
        except ClientDisconnect:  # cancelled: nothing of it stays
            return Response(status_code=499)
        except OSError:
            return _gone() if session.ended else JSONResponse({"error": "no space left"}, 507)
        finally:
            session.receiving -= 1
            path.unlink(missing_ok=True)
        return JSONResponse(_summary(session, results))

    async def _write(self, request: Request, path: Path) -> int | None:
        """Write a body to a file; None if it is too long."""
        size = 0
        with path.open("xb") as file:
            async for chunk in request.stream():
                size += len(chunk)
                if size > self._upload_bytes:
                    return None
                await run_in_threadpool(file.write, chunk)
        return size

    async def _samples(self, request: Request) -> Response:
        session = self._session(request)
        if session is None:
            return _gone()
        results = await run_in_threadpool(self.open_samples, session)
        return JSONResponse(_summary(session, results))

    def arrive(self, session: Session) -> None:
        """Open the samples in a session that is new."""
        if not session.arrived:
            session.arrived = True
            self.open_samples(session)

    def open_samples(self, session: Session) -> list[Study | Refusal]:
        """Open copies of the samples: what is taken in is deleted."""
        copies, names = [], []
        for sample in sorted(SAMPLES.glob("*.*")):
            if sample.suffix in (".dcm", ".png", ".jpg"):
                copy = session.folder / f"{secrets.token_hex(16)}.part"
                copy.write_bytes(sample.read_bytes())
                copies.append(copy)
                names.append(sample.name)
        return self.take_in(session, copies, names)

    async def _close(self, request: Request) -> Response:
        session = self._session(request)
        if session is None:
            return _gone()
        await run_in_threadpool(session.empty)
        return JSONResponse(session.stamp())

    async def _close_one(self, request: Request) -> Response:
        session = self._session(request)
        if session is None:
            return _gone()
        if request.path_params["name"] not in session.studies:
            return JSONResponse({**session.stamp(), "error": "no such study"}, 404)
        await run_in_threadpool(session.forget, request.path_params["name"])
        return JSONResponse(session.stamp())

    async def _search(self, request: Request) -> Response:
        return await self._asked(request, "search", self._found)

    async def _fetch(self, request: Request) -> Response:
        return await self._asked(request, "fetch", self._fetched)

    async def _asked(
        self,
        request: Request,
        event: str,
        work: Callable[[Session, Archive, dict[str, Any]], Any],
    ) -> Response:
        """Ask the archive for somebody who may see whose images they are; audited first."""
        session = self._session(request)
        if session is None:
            return _gone()
        if self._archive is None:
            return JSONResponse({"error": "no archive is set up: --archive"}, 404)
        if not session.user.may("reveal"):
            return JSONResponse({"error": "this needs the role `reveal`"}, 403)
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > BODY_BYTES:
                return JSONResponse({"error": "too long"}, 413)
        try:
            wanted = json.loads(body)
            if not isinstance(wanted, dict):
                raise TypeError
        except (ValueError, TypeError, RecursionError):
            return JSONResponse({"error": "send a JSON object"}, 400)
        client = request.client.host if request.client else ""
        try:
            await run_in_threadpool(
                lambda: self._audit.write(
                    f"archive {event}", who=session.who, client=client, study=""
                )
            )
        except OSError:
            return JSONResponse({"error": "the audit log cannot be written"}, 503)
        try:
            return JSONResponse(await run_in_threadpool(work, session, self._archive, wanted))
        except (ConfigError, PacsError) as error:
            status = 422 if isinstance(error, ConfigError) else 502
            return JSONResponse({"error": sentence(str(error))}, status)

    def _found(self, session: Session, archive: Archive, wanted: dict[str, Any]) -> Any:
        return {"studies": archive.search(wanted)}

    def _fetched(self, session: Session, archive: Archive, wanted: dict[str, Any]) -> Any:
        """Fetch studies one after another: one that fails leaves the others unharmed."""
        studies = wanted.get("studies", [])
        if not isinstance(studies, list) or not 1 <= len(studies) <= MOST_FETCHED:
            raise ConfigError(f"name 1 to {MOST_FETCHED} studies")
        results: list[Study | Refusal] = []
        for number, study in enumerate(studies, 1):
            try:
                paths = archive.instances(str(study))
                if not paths:
                    results.append(Refusal(f"Study {number}", "It holds no images."))
                for path in paths:
                    file = session.folder / f"{secrets.token_hex(16)}.part"
                    file.write_bytes(archive.fetch(path))
                    name = f"{archive.shown}: study {number}, …{path[-12:]}"
                    results += self.take_in(session, [file], [name])
            except (ConfigError, PacsError) as error:
                refusal = Refusal(f"Study {number}", sentence(str(error)))
                session.refusals.append(refusal)
                results.append(refusal)
        return _summary(session, results)


def called(reading: Reading) -> tuple[str, int]:
    """Say in a line what a reading calls, and how urgent that is: 2 likely, 1 uncertain, else 0.

    A finding that is not judged, or unlikely, is not named: its probability alone says nothing.
    """
    rows = sorted(reading.rows, key=lambda row: -row.probability)
    for call, word, urgency in (("likely", "likely", 2), ("uncertain", "too uncertain to call", 1)):
        named = [row for row in rows if row.call == call and row.label not in NOT_URGENT]
        if named:
            first = named[0]
            more = f" and {len(named) - 1} more" if len(named) > 1 else ""
            return f"{word}: {title(first.label)} {100 * first.probability:.0f} %{more}", urgency
    judged = any(row.call != "not judged" for row in rows)
    return ("nothing is likely" if judged else "not judged"), 0


def _summary(session: Session, results: Sequence[Study | Refusal]) -> dict[str, Any]:
    opened = [result.name for result in results if isinstance(result, Study)]
    return {**session.stamp(), "opened": opened, "refused": len(results) - len(opened)}


def _gone() -> Response:
    return JSONResponse({"error": "this session has ended"}, 403)
