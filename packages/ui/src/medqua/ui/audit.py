"""The audit log: who saw personal data, when, of which study. No patient data is ever in it."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

from medqua.core.errors import ConfigError


def default_log() -> Path:
    """Return where the log is kept unless told otherwise (XDG's folder for states)."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "medqua" / "audit.jsonl"


class AuditLog:
    """A file of JSON lines that is only ever appended to, readable by the server's user alone."""

    def __init__(self, path: Path) -> None:
        """Open the log.

        Raises:
            ConfigError: If it cannot be written: then nothing is to be revealed.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(self._open())
        except OSError as error:
            raise ConfigError(
                f"the audit log cannot be written ({error.strerror}); give another with --audit"
            ) from None

    def write(self, event: str, *, who: str, client: str, study: str) -> None:
        """Append a line and have it on disk.

        Args:
            event: What was done, such as `reveal`.
            who: User, or the session's public name where nobody logs in.
            client: Address of the browser.
            study: SHA-256 of the file.

        Raises:
            OSError: If it cannot be written.
        """
        when = datetime.now(UTC).isoformat(timespec="milliseconds")
        entry = {"time": when, "event": event, "who": who, "client": client, "study": study}
        descriptor = self._open()
        try:
            os.write(descriptor, (json.dumps(entry) + "\n").encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
