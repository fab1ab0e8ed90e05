"""One shard of the cache: its name, what is in it, and how it comes onto the disk whole."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
from isal import isal_zlib
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from medqua.core.errors import DataError
from medqua.core.vision.image import ImageSpec
from medqua.train.data.levels import Levels

LAYOUT = 1
"""Raised whenever a cache written before could be misread."""

SHARD_BYTES = 32 * 2**20
"""Size of a shard of 8-bit images."""

TYPES = ("uint8", "uint16", "float32")
"""Names of the stacks in a shard, each `[n, S, S]` of its type."""

UNREADABLE = -1
"""Type of an image that could not be read and was skipped."""

INDEX: Mapping[str, type[pl.DataType]] = {
    "image": pl.String,
    "shard": pl.Int32,
    "type": pl.Int8,
    "row": pl.Int32,
    "crc32": pl.UInt32,
    "source_bytes": pl.Int64,
}
"""Columns of the index: `type` is a position in `TYPES` or `UNREADABLE`, `row` one in its stack."""


@dataclass(frozen=True)
class Entry:
    """One image on its way into a shard."""

    image: str
    """Its name in the manifest."""

    levels: Levels | None
    """`[S, S]`, or None if it could not be read."""

    source_bytes: int
    """Size of what it was decoded from."""


def cache_key(spec: ImageSpec, source: str, images: Sequence[str]) -> str:
    """Name of the folder that holds these images, read so: 24 hexadecimal digits.

    Args:
        spec: How images are read.
        source: The data set in words, as its manifest has it: archives of 28 and of 64 pixels
            name their images alike.
        images: All image names, in the order of the manifest.
    """
    digest = hashlib.sha256(json.dumps([LAYOUT, spec.to_dict(), source]).encode())
    for image in images:
        digest.update(b"\0" + image.encode())
    return digest.hexdigest()[:24]


def shard_path(folder: Path, shard: int) -> Path:
    """File of a shard."""
    return folder / f"{shard:05d}.safetensors"


def images_per_shard(size: int) -> int:
    """How many images of a side, in pixels, a shard holds."""
    return max(1, SHARD_BYTES // size**2)


def checksum(levels: Levels) -> int:
    """CRC-32 of an image's bytes as they are stored."""
    return isal_zlib.crc32(np.ascontiguousarray(levels))


def write_shard(path: Path, key: str, entries: Sequence[Entry]) -> None:
    """Write a shard, whole or not at all, flushed to the disk.

    Raises:
        DataError: It cannot be written, for want of space or permission.
    """
    types, rows, sums = [], [], []
    stacks: dict[str, list[Levels]] = {name: [] for name in TYPES}
    for entry in entries:
        if entry.levels is None:
            types.append(UNREADABLE)
            rows.append(0)
            sums.append(0)
            continue
        stack = stacks[entry.levels.dtype.name]
        types.append(TYPES.index(entry.levels.dtype.name))
        rows.append(len(stack))
        sums.append(checksum(entry.levels))
        stack.append(entry.levels)
    tensors: dict[str, npt.NDArray[np.generic]] = {
        name: np.stack(stack) for name, stack in stacks.items() if stack
    }
    tensors |= {
        "type": np.array(types, np.int8),
        "row": np.array(rows, np.int32),
        "crc32": np.array(sums, np.uint32),
        "source_bytes": np.array([entry.source_bytes for entry in entries], np.int64),
    }
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file(tensors, partial, metadata={"medqua.cache": key})
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise DataError(
            f"{path} cannot be written ({error}): free space or give another data.cache; shards "
            "that are there are kept"
        ) from error


def is_whole(path: Path, key: str) -> bool:
    """Whether a shard is there, of this cache, and as long as its header says."""
    try:
        with safe_open(path, "numpy") as shard:
            return bool((shard.metadata() or {}).get("medqua.cache") == key)
    except (OSError, SafetensorError):
        return False


def index_of(path: Path, shard: int, images: Sequence[str]) -> pl.DataFrame:
    """The rows of the index for one shard.

    Args:
        path: The shard.
        shard: Its number.
        images: The names that belong in it, in order.

    Raises:
        DataError: It cannot be read, or holds another number of images.
    """
    try:
        with safe_open(path, "numpy") as file:
            columns = {
                name: file.get_tensor(name) for name in ("type", "row", "crc32", "source_bytes")
            }
    except (OSError, SafetensorError) as error:
        raise damaged(path, str(error)) from error
    if len(columns["row"]) != len(images):
        raise damaged(path, f"{len(columns['row'])} images, needed {len(images)}")
    return pl.DataFrame(
        {"image": list(images), "shard": [shard] * len(images), **columns}, schema=dict(INDEX)
    )


def damaged(path: Path, how: str) -> DataError:
    """The error that says what to do about a shard."""
    return DataError(
        f"the cache shard {path} is damaged ({how}): delete that file and start again; it alone is "
        "written anew. If it happens again, check the disk"
    )
