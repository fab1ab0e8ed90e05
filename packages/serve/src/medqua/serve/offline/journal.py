"""What a batch run has done so far, on disk beside its result, so that it can go on after any end.

    OUT.parquet.journal      one JSON line for what is run, then one for each answered file

A line counts when its end of line is there; a torn last one is cut off. Files are known by name:
one that stands in the journal is not read again. The first line also says when the run began, which
is the time of its reports: so an image that comes twice has one report, after a restart too.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from medqua.core.errors import ConfigError

_BEGAN = "began"


class Journal:
    """An open journal.

    Args:
        file: Where it is; made if absent.
        run: What must be the same for a run to go on, as plain JSON values.

    Raises:
        ConfigError: Another run writes it, or it belongs to a run of something else.

    Attributes:
        done: Names of the files that are answered.
        began: When the run began first, ISO 8601 with its zone, in whole seconds.
    """

    def __init__(self, file: Path, run: Mapping[str, Any]) -> None:
        self._path = file
        self.began = datetime.now().astimezone().replace(microsecond=0).isoformat()
        self._file = file.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ConfigError(f"{file} is written by another run: wait for it, or end it") from None
        try:
            self.done = self._resume(json.loads(json.dumps(dict(run))))  # tuples read back as lists
        except BaseException:
            self._file.close()
            raise

    def add(self, answer: Mapping[str, Any]) -> None:
        """Write an answer, as `Answer.to_dict` gives it."""
        self._file.write(json.dumps(dict(answer)).encode() + b"\n")
        self._file.flush()
        self.done.add(answer["source"])

    def answers(self) -> Iterator[dict[str, Any]]:
        """Yield all answers in the order of their names."""
        self._file.seek(0)
        lines = iter(self._file)
        next(lines)
        found = {answer["source"]: answer for answer in map(json.loads, lines)}
        for name in sorted(found):
            yield found[name]

    def close(self, *, delete: bool = False) -> None:
        """Close it, and delete it when its run is complete."""
        if delete:
            self._path.unlink()
        self._file.close()

    def _resume(self, run: dict[str, Any]) -> set[str]:
        self._file.seek(0)
        end, done = 0, set()
        for number, line in enumerate(self._file):
            if not line.endswith(b"\n"):
                break
            try:
                entry = json.loads(line)
                if number:
                    done.add(entry["source"])
            except (ValueError, KeyError, TypeError):
                break
            if number == 0:
                self.began = entry.pop(_BEGAN, self.began)
            if number == 0 and entry != run:
                raise ConfigError(
                    f"{self._path} belongs to a run of another model or version: give another OUT, "
                    "or delete it to begin anew"
                )
            end += len(line)
        self._file.truncate(end)
        if end == 0:
            self._file.write(json.dumps({**run, _BEGAN: self.began}).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        return done
