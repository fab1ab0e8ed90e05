"""Findings of all open studies, one after another in the background, the one in view first.

A result is kept with its study, so that going back to a study shows it at once. When the engine
does not answer, studies wait, and are read once it does.
"""

import logging
import queue
import threading
import time
from dataclasses import dataclass, field

from medqua.core.errors import MedQuaError
from medqua.ui.findings import Reader, Reading
from medqua.ui.server import EngineUnavailableError
from medqua.ui.studies import Session, Study

logger = logging.getLogger("medqua.ui")

PAUSE = 2.0
"""Seconds after which an engine that did not answer is asked again."""

DEFECT = "The model could not read this study; the server's log tells more."


@dataclass
class Outcome:
    """How far the reading of a study is."""

    reading: Reading | None = None
    """What the model says; None until it was asked."""
    problem: str = ""
    """Why it could not be asked yet."""
    begun: bool = False
    """Whether it is being read."""
    turn: threading.Lock = field(default_factory=threading.Lock)
    """Held by whoever reads it."""


class Desk:
    """Reads studies.

    Args:
        reader: Gives findings; None without a model.
        threads: Studies read at a time.
    """

    def __init__(self, reader: Reader | None, threads: int = 1) -> None:
        self.reader = reader
        self.seconds = 0.0
        """Of one reading, smoothed."""
        self._waiting: queue.SimpleQueue[tuple[Session, Study] | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, name="desk", daemon=True)
            for _ in range(threads if reader else 0)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def state(self) -> str:
        """Empty when the engine is ready, or there is none; else a sentence why it is not."""
        return "" if self.reader is None else self.reader.state

    def enter(self, session: Session, study: Study) -> None:
        """Have a study read when its turn comes."""
        session.outcomes[study.name] = Outcome()
        if self.reader is not None:
            self._waiting.put((session, study))

    def read(self, session: Session, study: Study) -> Reading | None:
        """Return a study's findings, read now if they were not; None without a model.

        An engine that does not answer is a reading with that reason, which is not kept.
        """
        if self.reader is None:
            return None
        outcome = session.outcomes.setdefault(study.name, Outcome())
        self._read(session, study, outcome)
        return outcome.reading or Reading((), outcome.problem or DEFECT, (), {}, 0.0)

    def close(self) -> None:
        """Stop after the studies under way."""
        self._stop.set()
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join(30)

    def _run(self) -> None:
        while (entry := self._waiting.get()) is not None and not self._stop.is_set():
            session, study = entry
            outcome = session.outcomes.get(study.name)
            if session.ended or outcome is None:
                continue
            self._read(session, study, outcome)
            if outcome.reading is None:  # the engine is away
                self._stop.wait(PAUSE)
                self._waiting.put(entry)

    def _read(self, session: Session, study: Study, outcome: Outcome) -> None:
        if self.reader is None:
            return
        with outcome.turn:
            if outcome.reading is not None:
                return
            outcome.begun, start = True, time.monotonic()
            try:
                outcome.reading = self.reader.read(study.file, study.content.read_bytes())
                outcome.problem = ""
                took = time.monotonic() - start
                self.seconds = took if not self.seconds else 0.7 * self.seconds + 0.3 * took
            except EngineUnavailableError as error:
                outcome.problem = str(error)
            except OSError:  # closed in the meantime
                outcome.reading = Reading((), "The study was closed.", (), {}, 0.0)
            except MedQuaError as error:
                outcome.reading = Reading((), str(error), (), {}, 0.0)
            except Exception:  # a defect must not end the readings of all
                logger.exception("a study could not be read")
                outcome.reading = Reading((), DEFECT, (), {}, 0.0)
            finally:
                outcome.begun = False
