"""Images to compare two models on: a table of files with labels, or specimens made up.

A table is Parquet or CSV with a column `image` (a path, relative ones from the image root) and,
for AUROC, a column for each of the bundle's labels (1, 0, anything else unknown). A column `split`
chooses the rows `validate`. The `manifest.parquet` of a training run is such a table.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from medqua.core.errors import ConfigError, DataError
from medqua.core.sealed import sha256
from medqua.core.vision.image import ImageSpec, read_image

SPECIMENS = 16
"""Images that are made up where no table is given."""


@dataclass(frozen=True, eq=False)
class Validation:
    """Images, read when they are needed, and their labels."""

    paths: tuple[Path, ...]
    """Files; none for specimens."""
    specimens: tuple[np.ndarray, ...]
    """Images made up `[H, W]`; none for files."""
    targets: np.ndarray | None
    """Labels `[N, L]`: 1, 0, -1 unknown."""
    name: str
    """What they are, for the report."""
    digest: str
    """SHA-256 of the table; empty for specimens."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths) or len(self.specimens)

    def batches(self, spec: ImageSpec, size: int) -> Iterator[list[np.ndarray]]:
        """Yield images of one size, in order, at most `size` at a time.

        Raises:
            ImageError: A file cannot be read or is out of scope.
        """
        batch: list[np.ndarray] = []
        for place in range(len(self)):
            image = read_image(self.paths[place], spec) if self.paths else self.specimens[place]
            if batch and (len(batch) == size or batch[0].shape != image.shape):
                yield batch
                batch = []
            batch.append(image)
        if batch:
            yield batch


def made_up(spec: ImageSpec, side: int, count: int = SPECIMENS) -> Validation:
    """Return specimens: a bright body on black with smooth shapes and grain, seeded.

    They look like nothing in particular; they spread over grey levels and frequencies as
    radiographs do, so that routers have something to choose from.

    Args:
        spec: The model's image specification.
        side: Side of the images where the specification leaves it open.
        count: Number of images.
    """
    size = spec.size or side
    random = np.random.default_rng(20260101)
    down, across = np.meshgrid(*[np.linspace(-1, 1, size)] * 2, indexing="ij")
    specimens = []
    for _ in range(count):
        image = 0.6 * np.exp(-(((across / 0.8) ** 2 + (down / 0.95) ** 2) ** 3))
        for _ in range(8):
            y, x, height, width = random.uniform((-0.7, -0.7, 0.05, 0.05), (0.7, 0.7, 0.5, 0.5))
            blob = np.exp(-(((down - y) / height) ** 2) - ((across - x) / width) ** 2)
            image += random.uniform(-0.4, 0.4) * blob
        image += random.normal(0, 0.03, image.shape)
        levels = np.round(image.clip(0, 1) * 255) / 255  # 8-bit levels, as files have them
        specimens.append(levels.astype(np.float32))
    name = f"{count} specimens made up by medqua.serve.export.validation"
    return Validation((), tuple(specimens), None, name, "")


def from_table(
    path: Path, root: Path | None, labels: Sequence[str], limit: int | None = None
) -> Validation:
    """Read a table of files.

    Args:
        path: Parquet or CSV.
        root: Folder of relative paths; that of the table if None.
        labels: The bundle's labels, in the order of its logits.
        limit: Most images, the first ones; all if None.

    Raises:
        DataError: The table cannot be read, lacks a column, or has no row to validate on.
        ConfigError: `limit` is below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}: needed at least 1")
    try:
        read = pl.read_csv if path.suffix == ".csv" else pl.read_parquet
        table = read(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"{path.name} cannot be read as a table: needed Parquet or CSV ({type(error).__name__})"
        ) from error
    if "image" not in table.columns:
        raise DataError(f"{path.name} has no column 'image': needed one with the files' paths")
    if "split" in table.columns:
        table = table.filter(pl.col("split") == "validate")
    table = table.head(len(table) if limit is None else limit)
    if not len(table):
        raise DataError(f"{path.name} has no row to validate on (split 'validate')")
    files = tuple((root or path.parent) / name for name in table["image"].to_list())
    absent = sum(not file.is_file() for file in files)
    if absent:
        raise DataError(
            f"{absent} of {len(files)} images of {path.name} are not there: give --image-root, the "
            "folder that their paths start from"
        )
    missing = [label for label in labels if label not in table.columns]
    targets = None
    if len(missing) < len(labels):
        columns = [
            np.full(len(table), -1.0)
            if label in missing
            else table[label].cast(pl.Float64, strict=False).fill_null(-1.0).to_numpy()
            for label in labels
        ]
        targets = np.stack(columns, 1)
    return Validation(files, (), targets, path.name, sha256(path))
