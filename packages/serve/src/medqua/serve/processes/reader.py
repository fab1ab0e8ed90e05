"""From one file's bytes to its answer: decode, batch, infer. Every door comes in here.

    async with Reader.open(bundle, settings) as reader:
        answer = await reader.read(content)

No file raises: each ends in an `Answer` that says what became of it.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medqua.core.errors import ImageError, MedQuaError, ShapeError
from medqua.core.findings.domain import UNJUDGED, is_foreign
from medqua.core.vision.image import Decoded, placement
from medqua.core.vision.scope import unstated
from medqua.serve.inference.engine import Model
from medqua.serve.objects.heads import refuse_own
from medqua.serve.processes.batcher import Batcher, BatchError, DeadlineError, Priority
from medqua.serve.processes.decoding import Decoders, decoding_limits
from medqua.serve.processes.worker import Explain
from medqua.serve.processes.workers import WorkerLostError, Workers
from medqua.serve.settings import Settings

STATUS = {DeadlineError: 504, WorkerLostError: 503, BatchError: 503, ShapeError: 422}
"""Error of an image that was decoded -> HTTP status; for any other, the model's, it is 503."""


@dataclass(frozen=True)
class Answer:
    """What became of one file."""

    source: str
    """The file as its sender named it."""
    status: int
    """200 with findings; 413 over a limit, 422 refused, 503 and 504 not the file's fault."""
    findings: tuple[dict[str, Any], ...] | None = None
    """Label, code, logit and probability of each finding; plain JSON values."""
    quantum: dict[str, Any] | None = None
    """Which path evaluated the circuits, where the engine tells it."""
    error: str | None = None
    """Class of the error."""
    reason: str | None = None
    """What was got and what is needed; no patient data."""
    notes: tuple[str, ...] = ()
    """What the header left open and was taken for granted."""
    sha256: str = ""
    """Hash of the file's content, hexadecimal."""
    seconds: float = 0.0
    """From admission to answer, in seconds."""
    bundle: str | None = None
    """SHA-256 of the `bundle.json` of the model that was asked; None where none was."""
    export: str | None = None
    """SHA-256 of the `export.json` that it ran from; None for a bundle."""
    version: str | None = None
    """Version of medqua-core that answered."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "source": self.source,
            "status": self.status,
            "findings": None if self.findings is None else list(self.findings),
            "quantum": self.quantum,
            "refusal": self.error and {"error": self.error, "reason": self.reason},
            "notes": list(self.notes),
            "sha256": self.sha256,
            "seconds": round(self.seconds, 4),
            "bundle": self.bundle,
            "export": self.export,
            "version": self.version,
        }


@dataclass(frozen=True)
class Observer:
    """Who is told what happens; the defaults tell nobody."""

    batch: Callable[[int, float], None] = lambda size, seconds: None
    """Size and seconds of a batch that was read."""
    lost: Callable[[], None] = lambda: None
    """A worker was lost."""
    decoded: Callable[[float], None] = lambda seconds: None
    """Seconds of a decoding, refused files included."""
    answered: Callable[[Answer], None] = lambda answer: None
    """An answer, whichever."""


class Reader:
    """Decoders, batcher and workers in one. Lives in one event loop; `open` makes it."""

    def __init__(self, settings: Settings, decoders: Decoders, workers: Workers, batcher: Batcher):
        self.settings = settings
        self.workers, self.batcher = workers, batcher
        self.observer = Observer()
        self._decoders = decoders

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        directory: Path,
        settings: Settings,
        observer: Observer | None = None,
        workers: Workers | None = None,
    ) -> "AsyncIterator[Reader]":
        """Open the model in its workers, warm; end them with the context.

        Args:
            directory: Bundle or export.
            settings: Limits and batching.
            observer: Who is told what happens.
            workers: Of the same model, perhaps launched; it makes its own otherwise.

        Raises:
            MedQuaError: The model cannot be opened.
        """
        observer = observer or Observer()
        batching = settings.batching
        decoders = Decoders(batching.decoders, decoding_limits(settings.limits))
        workers = workers or Workers(directory, batching)
        workers.on_loss = observer.lost
        batcher = Batcher(workers.read, batching, observer.batch)
        reader = cls(settings, decoders, workers, batcher)
        reader.observer = observer
        decoders.start()
        try:
            await workers.start()
            batcher.start()
            yield reader
        finally:
            await batcher.close()
            await workers.close()
            await asyncio.to_thread(decoders.close)

    @property
    def model(self) -> Model:
        """What the workers say they are."""
        return self.workers.model

    @property
    def made_by(self) -> dict[str, str | None]:
        """Which model and release answer: `bundle`, `export` and `version`."""
        told = self.model.provenance
        return {name: told.get(name) for name in ("bundle", "export", "version")}

    def deadline(self, seconds: float | None = None) -> float:
        """Return the deadline of an answer, on the clock of `time.monotonic`.

        Args:
            seconds: What the client gives; never more than the settings allow.
        """
        most = self.settings.limits.deadline_seconds
        return time.monotonic() + (most if seconds is None else min(seconds, most))

    async def read(
        self,
        content: bytes,
        *,
        name: str = "",
        deadline: float | None = None,
        priority: Priority = Priority.NORMAL,
        admitted: bool = False,
    ) -> Answer:
        """Answer one file.

        Args:
            content: DICOM, JPG or PNG.
            name: As its sender named it.
            deadline: As `deadline()` gives it.
            priority: Who goes first.
            admitted: The caller has taken the place; it is given back here in any case.

        Raises:
            OverloadError: No place is free, unless `admitted`.
        """
        if not admitted:
            self.batcher.enter()
        start = time.monotonic()
        until = deadline or self.deadline()

        async def submit(decoded: Decoded) -> dict[str, Any]:
            return await self.batcher.submit(decoded.image, until, priority)

        try:
            answer = await self._answer(content, until, submit)
        finally:
            self.batcher.leave()
        answer = self._signed(replace(answer, source=name, seconds=time.monotonic() - start))
        self.observer.answered(answer)
        return answer

    async def read_image(
        self, image: np.ndarray, deadline: float, priority: Priority = Priority.NORMAL
    ) -> dict[str, Any]:
        """Read an image `[H, W]` float32 in [0, 1]; the caller holds a place.

        Raises:
            DeadlineError: It was not read in time.
            MedQuaError: What the engine says of it.
        """
        return await self.batcher.submit(image, deadline, priority)

    async def explain(
        self, content: bytes, deadline: float, covering: tuple[int, int] | None = None
    ) -> tuple[Answer, dict[str, Any] | None]:
        """Answer one file, and tell how the answer came about.

        Args:
            content: DICOM, JPG or PNG.
            deadline: As `deadline()` gives it.
            covering: Rows and columns of the file: its regions are covered in turn instead, and
                the answer has no findings.

        Returns:
            The answer; and what `Explains` tells, None where there is none.

        Raises:
            OverloadError: No place is free.
        """
        self.batcher.enter()
        start = time.monotonic()
        told: dict[str, Any] | None = None

        async def read(decoded: Decoded) -> dict[str, Any]:
            nonlocal told
            wanted = Explain(decoded.image)
            if covering is not None:
                at = placement(*covering, self.model.image)
                wanted = Explain(decoded.image, (at.left, at.top, at.width, at.height))
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    told = await self.workers.explain(wanted)
            except TimeoutError:
                raise DeadlineError("not explained before its deadline; allow more") from None
            return {"findings": told.pop("findings", ()), "quantum": None}

        try:
            answer = await self._answer(content, deadline, read)
        finally:
            self.batcher.leave()
        answer = self._signed(replace(answer, seconds=time.monotonic() - start))
        self.observer.answered(answer)
        return answer, told

    def _signed(self, answer: Answer) -> Answer:
        told = self.made_by
        return replace(
            answer, bundle=told["bundle"], export=told["export"], version=told["version"]
        )

    async def _answer(
        self,
        content: bytes,
        deadline: float,
        read: Callable[[Decoded], Awaitable[dict[str, Any]]],
    ) -> Answer:
        digest = await asyncio.to_thread(lambda: hashlib.sha256(content).hexdigest())
        try:
            await asyncio.to_thread(refuse_own, content)
            start = time.monotonic()
            try:
                async with asyncio.timeout(max(0.0, deadline - start)):
                    decoded = await self._decoders.read(content, self.model.image)
            except TimeoutError:
                raise DeadlineError("not decoded before its deadline; allow more time") from None
            finally:
                self.observer.decoded(time.monotonic() - start)
            result = await read(decoded)
        except ImageError as error:
            return refused("", 422, error, digest)
        except MedQuaError as error:
            return refused("", STATUS.get(type(error), 503), error, digest)
        findings, header = tuple(result["findings"]), decoded.header
        notes, domain = unstated(header), str(self.model.provenance.get("domain", ""))
        if is_foreign(domain, phantom=header is not None and header.phantom):
            findings = tuple({**finding, "call": "not judged"} for finding in findings)
            notes = (*notes, UNJUDGED)
        return Answer("", 200, findings, result["quantum"], None, None, notes, digest)


def refused(source: str, status: int, error: MedQuaError, digest: str = "") -> Answer:
    """Return the answer of a file without findings."""
    return Answer(source, status, None, None, type(error).__name__, str(error), (), digest)
