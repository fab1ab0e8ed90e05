"""Reading the cache: pages of the shards are shared by all processes that map them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from safetensors import SafetensorError, safe_open

from medqua.core.errors import DataError
from medqua.train.data.cache.shards import INDEX, TYPES, UNREADABLE, checksum, damaged, shard_path
from medqua.train.data.images import ImageStore
from medqua.train.data.levels import expand

INDEX_NAME = "index.parquet"
"""File of the index in a cache's folder."""


class ImageCache:
    """A cache that is whole. Get one by `open`, or by `build_cache`.

    Args:
        folder: `DIR/KEY`.
        index: Its index.
    """

    def __init__(self, folder: Path, index: pl.DataFrame) -> None:
        self.folder = folder
        self.index = index

    def __len__(self) -> int:
        return self.index.height

    @classmethod
    def find(cls, folder: Path) -> "ImageCache | None":
        """The cache in a folder, None if it is not written to its end."""
        return cls.open(folder) if (folder / INDEX_NAME).is_file() else None

    @classmethod
    def open(cls, folder: Path) -> "ImageCache":
        """Open a cache.

        Raises:
            DataError: Its index is absent, damaged, or of other columns.
        """
        path = folder / INDEX_NAME
        try:
            index = pl.read_parquet(path)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(
                f"the cache index {path} cannot be read ({str(error).splitlines()[0]}): delete it "
                "and start again; it is made from the shards in seconds"
            ) from error
        if dict(index.schema) != dict(INDEX):
            raise DataError(
                f"the cache index {path} has the columns {index.columns}: delete it and start again"
            )
        return cls(folder, index)

    def changed(self, store: ImageStore) -> list[str]:
        """Images whose source has another size now than when it was decoded; one stat each."""
        sizes = np.array(store.sizes(self.index["image"].to_list()), np.int64)
        return self.index.filter(pl.Series(sizes) != self.index["source_bytes"])["image"].to_list()

    def images(self, names: Sequence[str]) -> "CachedImages":
        """The images of these names, to be read by position.

        Raises:
            DataError: One is not in the cache.
        """
        wanted = pl.DataFrame({"image": list(names)}, schema={"image": pl.String})
        found = wanted.join(self.index, on="image", how="left", maintain_order="left")
        absent = found.filter(pl.col("row").is_null())["image"]
        if found.height != wanted.height or absent.len():
            raise DataError(
                f"the cache {self.folder} does not list {absent.len()} images of the manifest, "
                f"among them {absent.first()!s}: delete its {INDEX_NAME} and start again"
            )
        return CachedImages(self.folder, found)


class CachedImages:
    """Decoded images by position; can be sent to other processes, which map the shards anew.

    Args:
        folder: The cache's folder.
        rows: Rows of its index, in the order of positions.
    """

    def __init__(self, folder: Path, rows: pl.DataFrame) -> None:
        self.folder = folder
        self._shard = rows["shard"].to_numpy()
        self._type = rows["type"].to_numpy()
        self._row = rows["row"].to_numpy()
        self._sum = rows["crc32"].to_numpy()
        self._open: dict[tuple[int, int], Any] = {}

    def __len__(self) -> int:
        return len(self._row)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # a mapping belongs to its process

    def read(self, position: int) -> npt.NDArray[np.float32] | None:
        """One image, `[S, S]` float32 in [0, 1]; None if it was skipped as unreadable.

        Raises:
            DataError: Its bytes are not those that were written.
        """
        kind, shard = int(self._type[position]), int(self._shard[position])
        if kind == UNREADABLE:
            return None
        path = shard_path(self.folder, shard)
        try:
            levels = self._stack(path, shard, kind)[int(self._row[position])]
        except (OSError, SafetensorError, IndexError) as error:
            raise damaged(path, str(error)) from error
        if checksum(levels) != int(self._sum[position]):
            raise damaged(path, "an image has another checksum than when it was written")
        return expand(levels)

    def _stack(self, path: Path, shard: int, kind: int) -> Any:
        """The images of one type in a shard, mapped."""
        if (shard, kind) not in self._open:
            self._open[shard, kind] = safe_open(path, "numpy").get_slice(TYPES[kind])  # type: ignore[no-untyped-call]
        return self._open[shard, kind]
