"""Who uses the viewer and what they may do: users, roles, and the password file.

    medqua-ui password --file users.txt ada --roles view,reveal,export
    medqua-ui --passwords users.txt

Three roles: `view` opens studies and sees pictures, findings and masked headers; `reveal` sees
personal data; `export` takes data out, to a file or to an archive. Without a login whoever is on
this machine has all three, and nobody else is let in.

A line of the file is `name:roles:hash`; the hash is scrypt's (RFC 7914) with its parameters and
salt. The file belongs to the server's user alone, and is read again when it changes: who is taken
out of it is out at once.
"""

import base64
import hashlib
import hmac
import os
import re
import secrets
import stat
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from medqua.core.errors import ConfigError

Role = Literal["view", "reveal", "export"]
ROLES: tuple[Role, ...] = get_args(Role)

COST, BLOCK, PARALLEL = 17, 8, 1
"""Parameters of scrypt for new entries: 2**17 rounds in 128 MiB."""

MEMORY = 256 << 20
"""Most memory that one check may take, in bytes."""

LONGEST = 1024
"""Letters of a password that are looked at; one above is refused."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


@dataclass(frozen=True)
class User:
    """Someone who has logged in."""

    name: str
    """As it stands in the audit log: `user:<name>`, `oidc:<subject>`, or `local`."""
    roles: frozenset[Role]
    """What they may do."""
    shown: str = ""
    """Name on the page."""
    stamp: str = ""
    """What their entry looked like when they logged in; a changed entry ends their sessions."""

    def may(self, role: Role) -> bool:
        """Tell whether they have a role."""
        return role in self.roles


LOCAL = User("local", frozenset(ROLES))
"""Whoever is on this machine, where nobody logs in."""


def roles_of(text: str) -> frozenset[Role]:
    """Return the roles of a list with commas.

    Raises:
        ConfigError: One is unknown, or `view` is missing.
    """
    words = {word.strip() for word in text.split(",")}
    if "view" not in words or not words <= set(ROLES):
        raise ConfigError(f"roles are {text!r}: give view, and reveal or export if wanted")
    return frozenset(role for role in ROLES if role in words)


def make_entry(name: str, password: str, roles: str) -> str:
    """Return the line of a new user.

    Raises:
        ConfigError: A name, password or role that cannot be.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError("a user's name is 1 to 64 letters, digits, dots, @, - or _")
    if not 12 <= len(password) <= LONGEST:
        raise ConfigError(f"a password has 12 to {LONGEST} letters; a few words are easy to keep")
    told = ",".join(role for role in ROLES if role in roles_of(roles))
    salt = secrets.token_bytes(16)
    digest = _scrypt(password, salt, COST, BLOCK, PARALLEL)
    parts = [str(COST), str(BLOCK), str(PARALLEL), _encode(salt), _encode(digest)]
    return f"{name}:{told}:scrypt${'$'.join(parts)}"


class Passwords:
    """The password file.

    Args:
        path: The file.

    Raises:
        ConfigError: It cannot be read, others may read it, or a line is none of `make_entry`.
    """

    def __init__(self, path: Path) -> None:
        from medqua.serve.http.security import RateLimit  # FastAPI, which nothing else here needs

        self._path, self._lock = path, threading.Lock()
        self._turn = threading.BoundedSemaphore(2)  # each check takes 128 MiB
        self._rate, self._rate_of_all = RateLimit(1 / 12, 5), RateLimit(1 / 3, 20)
        self._seen: tuple[int, int, int] | None = None
        self._entries: dict[str, tuple[frozenset[Role], str]] = {}
        self._read()
        self._nobody = make_entry("nobody", secrets.token_urlsafe(), "view").split(":")[2]

    def wait(self, name: str, client: str, failed: float = 0.0) -> float:
        """Return 0, or the seconds after which this client may try again.

        Args:
            name: Whom it says it is.
            client: Its address.
            failed: Failures to count against it.
        """
        with self._lock:
            one = self._rate.take(f"{client} {name[:64]}", failed)
            return max(one, self._rate_of_all.take(client, failed))

    def check(self, name: str, password: str) -> User | None:
        """Return the user of a name and password, None if they do not belong together.

        It takes as long for a name that is not there.
        """
        entries = self._read()
        roles, entry = entries.get(name, (frozenset(), self._nobody))
        with self._turn:
            right = len(password) <= LONGEST and _matches(password, entry)
        if not right or name not in entries:
            return None
        return User(f"user:{name}", roles, name, entry)

    def valid(self, user: User) -> bool:
        """Tell whether a user's entry is as it was when they logged in."""
        entries = self._read()
        roles, entry = entries.get(user.shown, (frozenset(), ""))
        return user.name == f"user:{user.shown}" and entry == user.stamp and roles == user.roles

    def _read(self) -> dict[str, tuple[frozenset[Role], str]]:
        """Return the entries, read again if the file has changed; none if it cannot be read."""
        with self._lock:
            try:
                found = self._path.stat()
                seen = (found.st_mtime_ns, found.st_size, found.st_ino)
                if seen != self._seen:
                    if stat.S_IMODE(found.st_mode) & 0o077:
                        raise ConfigError(
                            f"others may read or write {self._path}: chmod 600 {self._path}"
                        )
                    self._entries = _parse(self._path.read_text())
                    self._seen = seen
            except (OSError, UnicodeDecodeError, ConfigError) as error:
                if self._seen is None:  # at the start
                    if isinstance(error, ConfigError):
                        raise
                    raise ConfigError(
                        f"{self._path} cannot be read; make it with `medqua-ui password`"
                    ) from None
                self._entries, self._seen = {}, (0, 0, 0)  # closed until it is right again
            return self._entries


def add_entry(path: Path, line: str) -> None:
    """Write a user's line into the file, in the place of their old one.

    Raises:
        ConfigError: The file cannot be written.
    """
    name = line.split(":")[0]
    try:
        old = path.read_text().splitlines() if path.exists() else []
        lines = [kept for kept in old if kept.split(":")[0] != name] + [line]
        scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write("\n".join(lines) + "\n")
        scratch.replace(path)
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"{path} cannot be written; give another with --file") from None


def _parse(text: str) -> dict[str, tuple[frozenset[Role], str]]:
    entries = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.strip().partition(":")
        roles, _, entry = rest.partition(":")
        try:
            _split(entry)
        except (ValueError, TypeError):
            raise ConfigError(
                f"line {number} of the password file has no hash that is known here; make it with "
                "`medqua-ui password`"
            ) from None
        if name in entries or not _NAME.fullmatch(name):
            raise ConfigError(f"line {number} of the password file: a name that cannot be")
        entries[name] = (roles_of(roles), entry)
    if not entries:
        raise ConfigError("the password file names nobody; add users with `medqua-ui password`")
    return entries


def _split(entry: str) -> tuple[int, int, int, bytes, bytes]:
    kind, cost, block, parallel, salt, digest = entry.split("$")
    numbers = int(cost), int(block), int(parallel)
    if kind != "scrypt" or not (14 <= numbers[0] <= 20 and 1 <= numbers[1] <= 16):
        raise ValueError
    if not 1 <= numbers[2] <= 4 or 128 * numbers[1] << numbers[0] > MEMORY:
        raise ValueError
    return (*numbers, base64.b64decode(salt, validate=True), base64.b64decode(digest))


def _matches(password: str, entry: str) -> bool:
    cost, block, parallel, salt, digest = _split(entry)
    return hmac.compare_digest(_scrypt(password, salt, cost, block, parallel), digest)


def _scrypt(password: str, salt: bytes, cost: int, block: int, parallel: int) -> bytes:
    return hashlib.scrypt(
        password.encode(), salt=salt, n=1 << cost, r=block, p=parallel, maxmem=MEMORY + (1 << 20)
    )


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()
