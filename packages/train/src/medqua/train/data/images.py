"""Where the images of a manifest are: a folder of files, or arrays in one archive.

Both give what `medqua.core.vision.image.read_image` takes, so that an image reaches the model by
one road whether it was trained on from an archive or is served from a file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from PIL import Image

from medqua.core.errors import DataError


@runtime_checkable
class ImageStore(Protocol):
    """What a data set's images are read from."""

    def open(self, image: str) -> Path | bytes:
        """The file, or its content, of one entry in the manifest's image column."""
        ...

    def absent(self, images: Sequence[str]) -> list[str]:
        """Entries for which there is no image."""
        ...

    def sizes(self, images: Sequence[str]) -> list[int]:
        """Bytes that each image takes; -1 where there is none."""
        ...


@dataclass(frozen=True)
class FolderStore:
    """Files under one folder."""

    root: Path
    """Folder that the manifest's image column is relative to."""

    def open(self, image: str) -> Path:
        """Path of one image."""
        return self.root / image

    def absent(self, images: Sequence[str]) -> list[str]:
        """Images that are no file; one stat call each."""
        return [image for image in images if not (self.root / image).is_file()]

    def sizes(self, images: Sequence[str]) -> list[int]:
        """Sizes of files; one stat call each."""
        return [_size(self.root / image) for image in images]


@dataclass(frozen=True)
class ArrayStore:
    """8-bit arrays, one for each split; an image is called `train/17`."""

    arrays: Mapping[str, npt.NDArray[np.uint8]]
    """Split -> `[N, H, W]` uint8."""

    def open(self, image: str) -> bytes:
        """One image as PNG, which is lossless and what `read_image` takes."""
        split, index = self._place(image)
        png = BytesIO()
        Image.fromarray(np.ascontiguousarray(self.arrays[split][index])).save(
            png, "PNG", compress_level=1
        )
        return png.getvalue()

    def absent(self, images: Sequence[str]) -> list[str]:
        """Entries beyond the arrays."""
        return [
            image
            for image in images
            if (place := self._place(image))[0] not in self.arrays
            or place[1] >= len(self.arrays[place[0]])
        ]

    def sizes(self, images: Sequence[str]) -> list[int]:
        """Pixels of each image, of a byte each."""
        absent = set(self.absent(images))
        return [
            -1 if image in absent else self.arrays[self._place(image)[0]][0].nbytes
            for image in images
        ]

    def __getstate__(self) -> dict[str, Any]:
        """Arrays mapped from a file travel to other processes as its path."""
        return {
            name: Path(array.filename)
            if isinstance(array, np.memmap) and array.filename is not None
            else array
            for name, array in self.arrays.items()
        }

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        arrays = {
            name: np.load(array, mmap_mode="r", allow_pickle=False)
            if isinstance(array, Path)
            else array
            for name, array in state.items()
        }
        object.__setattr__(self, "arrays", arrays)

    def _place(self, image: str) -> tuple[str, int]:
        split, _, index = image.partition("/")
        if not index.isdecimal():
            raise DataError(f"{image!r} is no entry of an archive: needed SPLIT/INDEX")
        return split, int(index)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
