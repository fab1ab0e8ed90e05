"""`bundle.json`: what a bundle is, file by file, and whether the files are still what it says.

How it is checked tells `medqua.core.sealed`.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from medqua.core.sealed import Seal, sha256

__all__ = [
    "MANIFEST",
    "SCHEMA",
    "SUFFIXES",
    "Manifest",
    "hash_files",
    "read_manifest",
    "sha256",
    "write_manifest",
]

SCHEMA = 1
"""Version of the layout that this release writes, and the newest that it reads."""

MANIFEST = "bundle.json"
"""Name of the file at the top of a bundle."""

SUFFIXES = frozenset({".json", ".safetensors", ".jinja", ".txt", ".model", ".md"})
"""Kinds of file that a bundle may hold: tables, weights, templates, vocabularies; no code."""


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


_SEAL = Seal(MANIFEST, "bundle", "Bundle.save", SUFFIXES, SCHEMA)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write `bundle.json`, with the digest of its content in it."""
    _SEAL.write(directory, asdict(manifest))


def read_manifest(directory: Path) -> Manifest:
    """Read `bundle.json` and check it against itself and against the files beside it.

    Raises:
        BundleError: It is absent, altered, of a newer schema, with an unknown or missing key; or
            a file is missing, altered, unlisted, a link, of a forbidden kind or outside.
    """
    kinds: dict[str, type | None] = dict.fromkeys(field.name for field in fields(Manifest))
    kinds |= {"labels": list, "prompt": str, "pooling": str, "image_first": bool}
    kinds |= dict.fromkeys(("image", "calibration", "backbone", "training_data"), dict)
    content = _SEAL.read(directory, kinds)
    manifest = Manifest(**content)
    _SEAL.check_files(directory, manifest.files)
    return manifest


def hash_files(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every file under `directory` but `bundle.json`, sorted by path.

    Raises:
        BundleError: A link, or a kind of file that a bundle may not hold.
    """
    return _SEAL.hash_files(directory)
