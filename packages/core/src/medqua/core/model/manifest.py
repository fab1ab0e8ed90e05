"""`bundle.json`: what a bundle is, file by file, and whether the files are still what it says.

Everything is checked before anything is loaded: schema, keys, paths, the set of files, every
file's SHA-256, and the digest of `bundle.json` itself. The digests find damage and mix-ups, not
forgery: whoever can write the folder can write new digests.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any

from medqua.core.errors import BundleError

SCHEMA = 1
"""Version of the layout that this release writes, and the newest that it reads."""

MANIFEST = "bundle.json"
"""Name of the file at the top of a bundle."""

SUFFIXES = frozenset({".json", ".safetensors", ".jinja", ".txt", ".model"})
"""Kinds of file that a bundle may hold: tables, weights, templates, vocabularies; no code."""

_MAX_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Manifest:
    """The content of `bundle.json`, less its own digest."""

    schema: int
    """Version of the layout."""
    image: dict[str, Any]
    """`ImageSpec.to_dict()`: how a file becomes an image."""
    labels: list[str]
    """Names of the findings, in the order of the logits."""
    pooling: str
    """What the head reads: `visual_mean` or `last_token`."""
    prompt: str
    """Instruction given with every image."""
    image_first: bool
    """Whether the image stands before the prompt."""
    calibration: dict[str, Any]
    """`Calibration.to_dict()`."""
    backbone: dict[str, Any]
    """`source`, `dtype`, and `folder` within the bundle or `revision` (commit) on the hub."""
    adapter: dict[str, Any] | None
    """Configuration of the adapter in `adapter/`; None without one."""
    training_data: dict[str, str]
    """Name and fingerprint of the data that the weights were trained on."""
    license: str
    """Terms under which the weights may be used."""
    intended_use: str
    """What the model is for, and what it is not for."""
    versions: dict[str, str]
    """Versions of the packages that wrote the bundle."""
    files: dict[str, str]
    """Relative POSIX path -> SHA-256, of every file but `bundle.json`."""


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write `bundle.json`, with the digest of its content in it."""
    (directory / MANIFEST).write_bytes(_render(asdict(manifest)))


def read_manifest(directory: Path) -> Manifest:
    """Read `bundle.json` and check it against itself and against the files beside it.

    Raises:
        BundleError: It is absent, altered, of a newer schema, with an unknown or missing key; or
            a file is missing, altered, unlisted, a link, of a forbidden kind or outside.
    """
    raw = _read(directory)
    content = _parse(raw)
    schema = content.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise BundleError(f"{MANIFEST} has schema {schema!r}: needed a whole number from 1")
    if schema > SCHEMA:
        raise BundleError(
            f"{MANIFEST} has schema {schema}, this release reads up to {SCHEMA}: upgrade MedQua"
        )
    content.pop("digest", None)
    _check_keys(content)
    if raw != _render(content):
        raise BundleError(
            f"{MANIFEST} was altered: it does not match its own digest; copy the bundle again"
        )
    manifest = Manifest(**content)
    check_files(directory, manifest.files)
    return manifest


def hash_files(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every file under `directory` but `bundle.json`, sorted by path.

    Raises:
        BundleError: A link, or a kind of file that a bundle may not hold.
    """
    return {path: sha256(directory / path) for path in _present(directory)}


def check_files(directory: Path, expected: Mapping[str, str]) -> None:
    """Check that `directory` holds exactly the expected files, bit for bit.

    Raises:
        BundleError: The message names the first file that is wrong.
    """
    for path in expected:
        _check_path(path)
    present = set(_present(directory))
    for path in sorted(expected):
        if path not in present:
            raise BundleError(f"{path} is missing from the bundle: copy it again, whole")
    for path in sorted(present - set(expected)):
        raise BundleError(f"{path} is not a file of this bundle: remove it, or export again")
    for path, digest in sorted(expected.items()):
        if sha256(directory / path) != digest:
            raise BundleError(f"{path} was altered: its SHA-256 differs; copy the bundle again")


def sha256(path: Path) -> str:
    """Hash a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read(directory: Path) -> bytes:
    path = directory / MANIFEST
    if not path.is_file() or path.is_symlink():
        raise BundleError(f"no {MANIFEST} in {directory}: needed a folder written by Bundle.save")
    if path.stat().st_size > _MAX_BYTES:
        raise BundleError(f"{MANIFEST} is larger than {_MAX_BYTES} bytes: it is no manifest")
    return path.read_bytes()


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        content = json.loads(raw, object_pairs_hook=_without_repeats, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST} is no valid JSON: export the bundle again") from error
    if not isinstance(content, dict):
        raise BundleError(f"{MANIFEST} holds no object: export the bundle again")
    return content


def _check_keys(content: dict[str, Any]) -> None:
    known = [field.name for field in fields(Manifest)]
    for key in content:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "this release does not know it"
            raise BundleError(f"unknown key {key!r} in {MANIFEST}: {hint}")
    for key in known:
        if key not in content:
            raise BundleError(f"no key {key!r} in {MANIFEST}: export the bundle again")
    kinds = {"labels": list, "prompt": str, "pooling": str, "image_first": bool, "files": dict}
    kinds |= dict.fromkeys(("image", "calibration", "backbone", "training_data"), dict)
    for key, kind in kinds.items():
        if not isinstance(content[key], kind):
            raise BundleError(f"{key!r} in {MANIFEST} is no {kind.__name__}: export again")
    if not all(isinstance(value, str) for value in content["files"].values()):
        raise BundleError(f"'files' in {MANIFEST} holds other things than hashes: export again")


def _check_path(path: str) -> None:
    pure = PurePosixPath(path)
    plain = pure.as_posix() == path and not pure.is_absolute() and ".." not in pure.parts
    if not plain or path in ("", ".") or "\\" in path or ":" in path or "\0" in path:
        raise BundleError(f"{path!r} leads out of the bundle: it is not safe to open")
    if pure.suffix not in SUFFIXES:
        raise BundleError(
            f"{path!r} is of a kind that a bundle may not hold: allowed are "
            f"{', '.join(sorted(SUFFIXES))}"
        )


def _present(directory: Path) -> list[str]:
    found = []
    for path in sorted(directory.rglob("*")):
        relative = path.relative_to(directory).as_posix()
        if path.is_symlink():
            raise BundleError(f"{relative} is a link: a bundle holds plain files only")
        if path.is_dir() or relative == MANIFEST:
            continue
        if not path.is_file():
            raise BundleError(f"{relative} is no plain file: a bundle holds plain files only")
        _check_path(relative)
        found.append(relative)
    return found


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
