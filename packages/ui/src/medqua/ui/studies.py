"""What a session has opened, in a private folder that is emptied.

Every browser has a session, known by a cookie that no script can read. Its files lie in a folder
that only the server's user can enter, under names that nobody can guess, and go when the last tab
is closed, when the user says so, and by age. Memory holds names and states alone.
"""

import gzip
import itertools
import json
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medqua.core.vision.scope import VIEWS
from medqua.ui.login import LOCAL, User

PREFIX = "medqua-ui-"

MOST_PAGES = 100
"""Pages of a session whose names are remembered; the oldest is forgotten."""

UPLOAD_SECONDS = 600
"""Age at which what an upload left behind is deleted."""


@dataclass(frozen=True)
class Study:
    """One file of a session that could be read."""

    name: str
    """Unguessable, and all that a browser is told of where it lies."""
    file: str
    """Name that the user's machine gave it, with its folder; shown to the user alone, never
    logged."""
    digest: str
    """SHA-256 of its content, hexadecimal: what the audit log calls it."""
    summary: str
    """Modality, view and size, for the worklist."""
    frontal: bool
    """Whether View Position does not say otherwise."""
    patient: str
    """Equal for studies of one patient, by Patient ID, its issuer and the birth date, else by name
    and birth date; empty where the file tells neither."""
    date: str
    """Study Date, to put studies of a patient in order; empty if there is none."""
    shown: Mapping[str, tuple[str, bool]]
    """`name` of the patient and `date` of the study, each with whether it is personal."""
    folder: Path
    """Where its parts lie."""

    @property
    def pixels(self) -> Path:
        """Stored values, little endian."""
        return self.folder / f"{self.name}.pixels"

    def compressed(self) -> Path:
        """Return the stored values as gzip, made when first asked for."""
        path = self.folder / f"{self.name}.pixels.gz"
        if not path.exists():
            scratch = path.with_name(f"{secrets.token_hex(8)}.part")
            scratch.write_bytes(gzip.compress(self.pixels.read_bytes(), 1, mtime=0))
            scratch.replace(path)
        return path

    @property
    def description(self) -> Path:
        """What `Decoder.read_stored` tells, without tags, as JSON."""
        return self.folder / f"{self.name}.json"

    @property
    def content(self) -> Path:
        """The file as it came."""
        return self.folder / f"{self.name}.file"

    def tags(self) -> list[dict[str, Any]]:
        """Return the rows of the tag table, values included."""
        rows: list[dict[str, Any]] = json.loads((self.folder / f"{self.name}.tags").read_bytes())
        return rows


@dataclass(frozen=True)
class Refusal:
    """One file of a session that could not be read."""

    file: str
    """Name that the user's machine gave it."""
    reason: str
    """What was got and what to do, in a sentence."""


@dataclass
class Session:
    """A browser's studies, in the order they came."""

    folder: Path
    """Private folder."""
    used: float
    """When it was last heard of, in seconds of the clock."""
    studies: dict[str, Study] = field(default_factory=dict)
    """By name."""
    refusals: list[Refusal] = field(default_factory=list)
    """Files not opened."""
    tabs: set[str] = field(default_factory=set)
    """Open pages, by Gradio's name for them."""
    revealed: set[str] = field(default_factory=set)
    """Names of studies whose personal data this session has asked to see."""
    user: User = LOCAL
    """Whose it is."""
    begun: float = 0.0
    """When it began, in seconds of the clock."""
    ended: bool = False
    """Whether it is over, so that nothing is written to its folder any more."""
    arrived: bool = False
    """Whether its first page is there."""
    receiving: int = 0
    """Uploads under way."""
    outcomes: dict[str, Any] = field(default_factory=dict)
    """What reading came to, by the study's name; kept by `medqua.ui.desk`."""
    patients: dict[str, int] = field(default_factory=dict)
    """Numbers under which patients stand in the worklist."""
    in_view: str = ""
    """Name of the study that was looked at last."""
    views: dict[str, str] = field(default_factory=dict)
    """How each study was last seen, by its name: JSON that the browser wrote."""
    _answers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def public(self) -> str:
        """Name of the session that may be shown and logged, hexadecimal."""
        return sha256(self.folder.name.encode()).hexdigest()[:12]

    @property
    def who(self) -> str:
        """What the audit log calls whoever uses it: the user, or a public name of the session."""
        return self.user.name if self.user != LOCAL else f"session {self.public}"

    def stamp(self) -> dict[str, Any]:
        """Return what puts answers in order: `session`, and a `number` that only rises.

        Taken before an answer looks at the studies, and after a change to them: an answer with the
        larger number knows all that one with the smaller number tells.
        """
        return {"session": self.public, "number": next(self._answers)}

    def add(
        self, file: str, content: bytes, cells: npt.NDArray[Any], description: dict[str, Any]
    ) -> Study:
        """Keep a file that was read.

        Args:
            file: Name that the user's machine gave it.
            content: The whole file.
            cells: Stored values `[frames, rows, columns]`, 16 bits.
            description: As told by `medqua.core.vision.stored.read_stored`.
        """
        name = secrets.token_urlsafe(18)
        words = [description[key] for key in ("modality", "body_part", "view")]
        words.append(f"{description['columns']} × {description['rows']}")
        if description["frames"] > 1:
            words.append(f"{description['frames']} frames")
        summary = " · ".join(word for word in words if word)
        rows = description.get("tags", [])
        patient, date, shown = _identity(rows)
        digest = sha256(content).hexdigest()
        study = Study(
            name, file, digest, summary, _frontal(description["view"]), patient, date, shown,
            self.folder,
        )  # fmt: skip
        told = {key: value for key, value in description.items() if key != "tags"}
        study.pixels.write_bytes(np.ascontiguousarray(cells, cells.dtype.newbyteorder("<")).data)
        study.description.write_text(json.dumps(told, allow_nan=False))
        (self.folder / f"{name}.tags").write_text(json.dumps(rows))
        study.content.write_bytes(content)
        if patient:
            self.patients.setdefault(patient, len(self.patients) + 1)
        self.studies[name] = study
        return study

    def forget(self, name: str) -> None:
        """Delete one study's files and forget it."""
        if self.studies.pop(name, None) is not None:
            self.revealed.discard(name)
            self.outcomes.pop(name, None)
            self.views.pop(name, None)
            for path in self.folder.glob(f"{name}.*"):
                path.unlink(missing_ok=True)

    def empty(self) -> None:
        """Delete all files and forget them."""
        self.studies.clear()
        self.refusals.clear()
        self.revealed.clear()
        self.outcomes.clear()
        self.patients.clear()
        self.views.clear()
        for path in self.folder.iterdir():
            path.unlink(missing_ok=True)


class Sessions:
    """All sessions of a server, under one private folder (mode 0700)."""

    def __init__(
        self,
        parent: Path | None = None,
        *,
        keep_seconds: float = 28_800.0,
        leave_seconds: float = 60.0,
        longest_seconds: float = 43_200.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make the folder, and remove those of servers that died.

        Args:
            parent: Folder to make it in; the system's for temporary files by default.
            keep_seconds: Age since last use after which a session's files are deleted.
            leave_seconds: Time after the last tab is closed until they are: a reload closes too.
            longest_seconds: Age after which a session ends though it is used, and its user logs in
                again.
            clock: Seconds; for tests.
        """
        where = Path(parent or tempfile.gettempdir())
        _remove_orphans(where)
        self.root = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=where))
        self.uploads = self.root / "uploads"
        self.uploads.mkdir(mode=0o700)
        self.keep_seconds, self.leave_seconds, self.clock = keep_seconds, leave_seconds, clock
        self.longest_seconds = longest_seconds
        self._sessions: dict[str, Session] = {}
        self._pages: dict[str, str] = {}  # Gradio's name of a page -> session
        self._lock = threading.Lock()

    def begin(self, user: User = LOCAL) -> str:
        """Begin a session and return its secret name."""
        token = secrets.token_urlsafe(32)
        folder = self.root / secrets.token_hex(16)
        folder.mkdir(mode=0o700)
        now = self.clock()
        with self._lock:
            self._sessions[token] = Session(folder, now, user=user, begun=now)
        return token

    def get(self, token: str | None, *, touch: bool = True) -> Session | None:
        """Return a session by its secret name; None if there is none.

        Args:
            token: Its secret name.
            touch: Note that it is used.
        """
        with self._lock:
            session = self._sessions.get(token or "")
            if session is not None:
                if self.clock() - session.begun > self.longest_seconds:
                    return None
                if touch:
                    session.used = self.clock()
            return session

    def claim(self, token: str, page: str) -> bool:
        """Give a page's name to the session that first uses it; tell whether it is its own."""
        with self._lock:
            owner = self._pages.setdefault(page, token)
            if owner == token and sum(one == token for one in self._pages.values()) > MOST_PAGES:
                del self._pages[next(p for p, one in self._pages.items() if one == token)]
            return owner == token

    def end(self, token: str | None) -> None:
        """End a session at once: its files are deleted."""
        with self._lock:
            session = self._sessions.pop(token or "", None)
            self._pages = {page: one for page, one in self._pages.items() if one != token}
        if session is not None:
            _delete(session)

    def leave(self, token: str, tab: str) -> None:
        """Note that a tab was closed."""
        with self._lock:
            if session := self._sessions.get(token):
                session.tabs.discard(tab)
                session.used = self.clock()

    def sweep(self) -> int:
        """Delete the sessions that are over and return how many they were."""
        now = self.clock()
        with self._lock:
            over = [token for token, session in self._sessions.items() if self._over(session, now)]
            gone = [self._sessions.pop(token) for token in over]
            left = self._sessions
            self._pages = {page: token for page, token in self._pages.items() if token in left}
        for session in gone:
            _delete(session)
        for path in self.uploads.rglob("*"):  # cut short, or left behind while being received
            if path.is_file() and time.time() - path.stat().st_mtime > UPLOAD_SECONDS:
                path.unlink(missing_ok=True)
        return len(gone)

    def _over(self, session: Session, now: float) -> bool:
        if now - session.begun > self.longest_seconds:
            return True
        left = bool(session.studies) and not session.tabs and not session.receiving
        return now - session.used > (self.leave_seconds if left else self.keep_seconds)

    def close(self) -> None:
        """Delete everything."""
        with self._lock:
            self._sessions.clear()
        shutil.rmtree(self.root, ignore_errors=True)


def _delete(session: Session) -> None:
    """Delete a session's files, and forget what it knew; threads may still hold it."""
    session.ended = True
    kept = (session.studies, session.outcomes, session.patients, session.views)
    for known in (*kept, session.refusals):
        known.clear()
    shutil.rmtree(session.folder, ignore_errors=True)


def _frontal(view: str) -> bool:
    """Tell whether a View Position (0018,5101) is a plain frontal one, or none is stated."""
    words = set(re.findall("[A-Z]+", view.upper()))
    return all(words.isdisjoint(terms) for terms in VIEWS.values())


def _identity(
    rows: list[dict[str, Any]],
) -> tuple[str, str, dict[str, tuple[str, bool]]]:
    """Return what tells a patient from another, hashed; the study's date; both as shown."""
    at_top = {row["tag"]: row for row in rows if not row["level"]}

    def value(tag: str) -> str:
        return str(at_top[tag]["value"]).strip() if tag in at_top else ""

    number, born = value("(0010,0020)"), value("(0010,0030)")
    name, dated = "(0010,0010)", "(0008,0020)"
    shown = {
        key: (value(tag), bool(at_top[tag]["personal"]))
        for key, tag in (("name", name), ("date", dated))
        if value(tag)
    }
    if number:
        words = ("id", number, value("(0010,0021)"), born)
    elif value(name) and born:
        words = ("name", value(name), "", born)
    else:
        return "", value(dated), shown
    return sha256("\0".join(words).encode()).hexdigest(), value(dated), shown


def _remove_orphans(where: Path) -> None:
    """Remove folders of this user whose server no longer runs."""
    for folder in where.glob(f"{PREFIX}*-*"):
        pid = folder.name.removeprefix(PREFIX).split("-")[0]
        if not pid.isdecimal() or folder.is_symlink() or folder.stat().st_uid != os.getuid():
            continue
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except PermissionError:
            continue  # a process of another user has taken the number
