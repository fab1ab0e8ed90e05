"""Sealed folders: a JSON file that holds the SHA-256 of every other file, and of itself.

Bundles and exports are such folders. Everything is checked before anything is loaded: paths, the
set of files, every file's hash, and the digest of the JSON file. The digests find damage and
mix-ups, not forgery: whoever can write the folder can write new digests.
"""

import hashlib
import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any

from medqua.core.errors import BundleError

_MAX_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Seal:
    """What one kind of sealed folder looks like."""

    name: str
    """Name of the JSON file at its top."""
    kind: str
    """What the folder is called in messages, such as "bundle"."""
    made_by: str
    """What writes such a folder, for messages."""
    suffixes: frozenset[str]
    """Kinds of file that it may hold beside the JSON file."""
    schema: int
    """Version of the layout that this release writes, and the newest that it reads."""

    def write(self, directory: Path, content: Mapping[str, Any]) -> None:
        """Write the JSON file, with the digest of its content in it."""
        (directory / self.name).write_bytes(_render(dict(content)))

    def read(self, directory: Path, keys: Mapping[str, type | None]) -> dict[str, Any]:
        """Read the JSON file and check it against itself.

        Args:
            directory: The folder.
            keys: All keys that it has, `schema` and `files` among them, and the type of what each
                holds where that is checked.

        Returns:
            Its content, less its own digest.

        Raises:
            BundleError: It is absent, altered, of a newer schema, has an unknown key,
                lacks one, or holds another type.
        """
        raw = self._bytes(directory)
        content = self._parse(raw)
        schema = content.get("schema")
        if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
            raise BundleError(f"{self.name} has schema {schema!r}: needed a whole number from 1")
        if schema > self.schema:
            raise BundleError(
                f"{self.name} has schema {schema}, this release reads up to {self.schema}: upgrade "
                "MedQua"
            )
        content.pop("digest", None)
        self._check_keys(content, keys)
        if raw != _render(content):
            raise BundleError(
                f"{self.name} was altered: it does not match its own digest; copy the {self.kind} "
                "again"
            )
        return content

    def hash_files(self, directory: Path) -> dict[str, str]:
        """Return the SHA-256 of every file but the JSON file, sorted by path.

        Raises:
            BundleError: A link, or a kind of file that the folder may not hold.
        """
        return {path: sha256(directory / path) for path in self._present(directory)}

    def check_files(self, directory: Path, expected: Mapping[str, str]) -> None:
        """Check that `directory` holds exactly the expected files, bit for bit.

        Raises:
            BundleError: The message names the first file that is wrong.
        """
        for path in expected:
            self._check_path(path)
        present = set(self._present(directory))
        for path in sorted(expected):
            if path not in present:
                raise BundleError(f"{path} is missing from the {self.kind}: copy it again, whole")
        for path in sorted(present - set(expected)):
            raise BundleError(
                f"{path} is not a file of this {self.kind}: remove it, or export again"
            )
        for path, digest in sorted(expected.items()):
            if sha256(directory / path) != digest:
                raise BundleError(
                    f"{path} was altered: its SHA-256 differs; copy the {self.kind} again"
                )

    def _bytes(self, directory: Path) -> bytes:
        path = directory / self.name
        if not path.is_file() or path.is_symlink():
            raise BundleError(
                f"no {self.name} in {directory}: needed a folder written by {self.made_by}"
            )
        if path.stat().st_size > _MAX_BYTES:
            raise BundleError(f"{self.name} is larger than {_MAX_BYTES} bytes: it is no manifest")
        return path.read_bytes()

    def _parse(self, raw: bytes) -> dict[str, Any]:
        try:
            content = json.loads(
                raw, object_pairs_hook=_without_repeats, parse_constant=_no_constant
            )
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{self.name} is no valid JSON: export the {self.kind} again") from (
                error
            )
        if not isinstance(content, dict):
            raise BundleError(f"{self.name} holds no object: export the {self.kind} again")
        return content

    def _check_keys(self, content: Mapping[str, Any], known: Mapping[str, type | None]) -> None:
        for key in content:
            if key not in known:
                near = get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else "this release does not know it"
                raise BundleError(f"unknown key {key!r} in {self.name}: {hint}")
        for key in known:
            if key not in content:
                raise BundleError(f"no key {key!r} in {self.name}: export the {self.kind} again")
        for key, kind in (dict(known) | {"files": dict}).items():
            if kind is not None and not isinstance(content[key], kind):
                raise BundleError(f"{key!r} in {self.name} is no {kind.__name__}: export again")
        if not all(isinstance(value, str) for value in content["files"].values()):
            raise BundleError(
                f"'files' in {self.name} holds other things than hashes: export again"
            )

    def _check_path(self, path: str) -> None:
        pure = PurePosixPath(path)
        plain = pure.as_posix() == path and not pure.is_absolute() and ".." not in pure.parts
        if not plain or path in ("", ".") or "\\" in path or ":" in path or "\0" in path:
            raise BundleError(f"{path!r} leads out of the {self.kind}: it is not safe to open")
        if pure.suffix not in self.suffixes:
            raise BundleError(
                f"{path!r} is of a kind that a {self.kind} may not hold: allowed are "
                f"{', '.join(sorted(self.suffixes))}"
            )

    def _present(self, directory: Path) -> list[str]:
        found = []
        for path in sorted(directory.rglob("*")):
            relative = path.relative_to(directory).as_posix()
            if path.is_symlink():
                raise BundleError(f"{relative} is a link: a {self.kind} holds plain files only")
            if path.is_dir() or relative == self.name:
                continue
            if not path.is_file():
                raise BundleError(
                    f"{relative} is no plain file: a {self.kind} holds plain files only"
                )
            self._check_path(relative)
            found.append(relative)
        return found


def sha256(path: Path) -> str:
    """Hash a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def move_into_place(new: Path, target: Path) -> None:
    """Move a complete folder to its place; what stood there goes only when the new one stands."""
    if not target.exists():
        new.rename(target)
        return
    old = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    target.rename(old)
    new.rename(target)
    shutil.rmtree(old)


def _render(content: dict[str, Any]) -> bytes:
    """Return the one text of a manifest, its digest last: no byte of it can change unseen."""
    plain = json.dumps(content, indent=2, ensure_ascii=False)
    digest = hashlib.sha256(plain.encode()).hexdigest()
    text = json.dumps(content | {"digest": digest}, indent=2, ensure_ascii=False)
    return (text + "\n").encode()


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
