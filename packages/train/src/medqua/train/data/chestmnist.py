"""ChestMNIST: 112,120 NIH radiographs of 28, 64, 128 or 224 pixels in one archive.

    chestmnist[_64|_128|_224].npz    {train,val,test}_images [N, H, W] uint8
                                     {train,val,test}_labels [N, 14] of 0 and 1

Source: Yang et al., MedMNIST v2, Scientific Data 2023 (CC BY 4.0); MD5 sums as published with
version 3 of the package (Zenodo record 10519652). The archive does not say which images are of
one patient; its official splits are used as they are.
"""

import hashlib
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from medqua.core.errors import DataError
from medqua.core.findings.labels import NIH_NAMES
from medqua.train.data.download import download
from medqua.train.data.images import ArrayStore
from medqua.train.data.manifest import Manifest

LABELS = NIH_NAMES
"""The 14 columns of the label arrays."""

SPLITS = {"train": "train", "val": "validate", "test": "test"}
"""Name in the archive -> official name in a manifest."""


@dataclass(frozen=True)
class Archive:
    """One published archive."""

    name: str
    """File name."""

    md5: str
    """MD5 of the file, hexadecimal."""

    @property
    def url(self) -> str:
        """Where it is published."""
        return f"https://zenodo.org/records/10519652/files/{self.name}?download=1"


ARCHIVES = {
    28: Archive("chestmnist.npz", "02c8a6516a18b556561a56cbdd36c4a8"),
    64: Archive("chestmnist_64.npz", "9de6cd0b934ebb5b7426cfba5efbae16"),
    128: Archive("chestmnist_128.npz", "db107e5590b27930b62dbaf558aebee3"),
    224: Archive("chestmnist_224.npz", "45bd33e6f06c3e8cdb481c74a89152aa"),
}
"""Side in pixels -> archive."""


def fetch_chestmnist(
    root: Path, pixels: int, *, allow_download: bool, say: Callable[[str], None] = print
) -> Path:
    """Find the archive of one size in a folder, or download it there on explicit request.

    Args:
        root: The archive itself, or the folder that holds it or will.
        pixels: Side of the images: 28, 64, 128 or 224.
        allow_download: Whether the user asked for the download.
        say: Told what is downloaded, and where to.

    Returns:
        Path of the archive.

    Raises:
        DataError: An unknown size, or no archive and no permission to download it.
    """
    if pixels not in ARCHIVES:
        raise DataError(
            f"ChestMNIST has no size {pixels}: choose data.pixels from "
            + ", ".join(map(str, ARCHIVES))
        )
    archive = ARCHIVES[pixels]
    if root.is_file():
        return root
    path = root / archive.name
    if path.is_file():
        return path
    if not allow_download:
        raise DataError(
            f"no {archive.name} in {root}: put it there (from {archive.url}), give its path as "
            "data.root, or let it be downloaded with data.download=true"
        )
    say(f"Downloading {archive.url} to {path}")
    download(archive.url, path, md5=archive.md5)
    return path


def read_chestmnist(
    path: Path, pixels: int, *, check_md5: bool = True, unpacked: Path | None = None
) -> tuple[Manifest, ArrayStore]:
    """Read an archive's labels, and open its images without holding them in memory.

    The images are unpacked once to plain arrays, which are then mapped from disk: the archive
    of 224 pixels would take 5.6 GB of memory.

    Args:
        path: The archive.
        pixels: Side of its images.
        check_md5: Compare the file with the published sum; off for a file of one's own.
        unpacked: Folder for the plain arrays; beside the archive by default.

    Returns:
        The manifest and the store of its images.

    Raises:
        DataError: The archive is absent, altered, or of another layout.
    """
    if not path.is_file():
        raise DataError(f"no archive at {path}: give data.root, or data.download=true")
    if check_md5:
        _check_md5(path, ARCHIVES[pixels].md5)
    folder = unpacked or path.with_suffix("")
    arrays: dict[str, npt.NDArray[np.uint8]] = {}
    tables = []
    try:
        with zipfile.ZipFile(path) as archive:
            absent = [
                f"{split}_{what}.npy"
                for split in SPLITS
                for what in ("images", "labels")
                if f"{split}_{what}.npy" not in archive.namelist()
            ]
            if absent:
                raise DataError(f"{path} has no {', '.join(absent)}: it is no ChestMNIST archive")
            for split, official in SPLITS.items():
                images = _mapped(archive, f"{split}_images.npy", folder)
                with archive.open(f"{split}_labels.npy") as member:
                    labels = np.lib.format.read_array(member, allow_pickle=False)
                _check_arrays(path, split, images, labels, pixels)
                arrays[official] = images
                tables.append(_table(official, labels))
    except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is no intact npz archive ({error}): download it again") from error
    return Manifest.of(pl.concat(tables), f"ChestMNIST {pixels} px"), ArrayStore(arrays)


def _table(split: str, labels: npt.NDArray[np.integer]) -> pl.DataFrame:
    """Manifest rows of one split; zero-padded so that sorting keeps the archive's order."""
    digits = len(str(max(len(labels) - 1, 0)))
    return pl.DataFrame(
        {
            "image": [f"{split}/{index:0{digits}d}" for index in range(len(labels))],
            "split": [split] * len(labels),
            "view": pl.Series([None] * len(labels), dtype=pl.String),
            **{name: labels[:, i].astype(np.int8) for i, name in enumerate(LABELS)},
        }
    )


def _check_arrays(
    path: Path, split: str, images: np.ndarray, labels: np.ndarray, pixels: int
) -> None:
    """Refuse arrays of another data set or size."""
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (pixels, pixels):
        raise DataError(
            f"{path}: {split}_images is {images.dtype} {list(images.shape)}, needed uint8 "
            f"[N, {pixels}, {pixels}]: set data.pixels to the archive's size"
        )
    if labels.shape != (len(images), len(LABELS)):
        raise DataError(
            f"{path}: {split}_labels is {list(labels.shape)}, needed [{len(images)}, {len(LABELS)}]"
        )


def _check_md5(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != expected:
        raise DataError(
            f"{path} has MD5 {found}, published is {expected}: download it again, or set "
            "data.check_md5=false if it is a file of your own with the same layout"
        )


def _mapped(archive: zipfile.ZipFile, name: str, folder: Path) -> npt.NDArray[np.uint8]:
    """A member as an array mapped from disk, unpacked first unless it already was."""
    target = folder / name
    size = archive.getinfo(name).file_size
    if not (target.is_file() and target.stat().st_size == size):
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{name}.{os.getpid()}.partial"
        with archive.open(name) as packed, partial.open("wb") as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)
        partial.replace(target)
    array: npt.NDArray[np.uint8] = np.load(target, mmap_mode="r", allow_pickle=False)
    return array
