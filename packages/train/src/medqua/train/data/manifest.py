"""The manifest: one table that names every image of a data set, and the policy for its labels.

Whatever a data set looks like on disk, training sees the same columns:

    image        where the image is, relative to the data set's root
    patient_id   whose it is; null where a data set does not say
    study_id     the examination it belongs to; null where a data set does not say
    split        `train`, `validate` or `test`
    view         `AP`, `PA`, `LATERAL`, ...; null where unknown
    LABEL ...    one Int8 column a label: 1 present, 0 absent, -1 uncertain, null not mentioned

The labels stay as the data set gives them. What an uncertain or a blank one means for the loss
is a `LabelPolicy`, applied when targets are made and recorded with every run, because it moves
AUROC by more than most changes to a model do (Irvin et al., CheXpert, AAAI 2019, table 3).
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from medqua.core.errors import ConfigError, DataError

SPLITS = ("train", "validate", "test")
"""The official names of MIMIC-CXR-JPG, used for every data set."""

KEYS: Mapping[str, type[pl.String]] = dict.fromkeys(
    ("image", "patient_id", "study_id", "split", "view"), pl.String
)
"""The columns before the labels, all strings."""

IGNORED = -1
"""Target of a label that neither the loss nor a metric counts."""

NOT_MENTIONED = 9
"""Stands for null among label values while targets are made."""

Uncertain = Literal["ignore", "zeros", "ones"]
Blank = Literal["zero", "ignore"]


@dataclass(frozen=True)
class LabelPolicy:
    """What a label that is not a plain yes or no counts as."""

    uncertain: Uncertain = "ignore"
    """Target of -1: `ignore` masks it, `zeros` and `ones` are CheXpert's U-Zeros and U-Ones."""

    blank: Blank = "zero"
    """Target of a label that the report does not mention: absent, or masked."""

    def __post_init__(self) -> None:
        if self.uncertain not in ("ignore", "zeros", "ones"):
            raise ConfigError(
                f"label policy uncertain={self.uncertain!r} is unknown: use ignore, zeros or ones"
            )
        if self.blank not in ("zero", "ignore"):
            raise ConfigError(f"label policy blank={self.blank!r} is unknown: use zero or ignore")

    def targets(self, labels: pl.DataFrame) -> npt.NDArray[np.int8]:
        """Targets `[N, L]` (1, 0, or `IGNORED`) of a table of label columns.

        Args:
            labels: Only label columns, Int8 of 1, 0, -1 and null.

        Returns:
            int8 array `[N, L]`, in the order of the table's columns.
        """
        said = np.zeros((labels.height, labels.width), dtype=np.int8)
        for i, column in enumerate(labels.get_columns()):
            said[:, i] = column.fill_null(NOT_MENTIONED).to_numpy()
        result = said.copy()
        result[said == -1] = {"ignore": IGNORED, "zeros": 0, "ones": 1}[self.uncertain]
        result[said == NOT_MENTIONED] = {"zero": 0, "ignore": IGNORED}[self.blank]
        return result


@dataclass(frozen=True)
class Manifest:
    """A data set as one table. Make one with `Manifest.of`, which checks it."""

    frame: pl.DataFrame
    """The columns of the module's docstring, sorted by image."""

    source: str
    """The data set in words, as a reader of a run folder needs it."""

    @classmethod
    def of(cls, frame: pl.DataFrame, source: str) -> "Manifest":
        """Check a table and take it as a manifest.

        Args:
            frame: `image`, `split`, any other of the keys, and at least one label column.
            source: The data set in words.

        Raises:
            DataError: A column is missing or holds a value it cannot have, an image is listed
                twice, or a patient is in more than one split.
        """
        absent = [key for key in ("image", "split") if key not in frame.columns]
        if absent:
            raise DataError(f"a manifest needs the columns image and split; missing: {absent}")
        labels = [name for name in frame.columns if name not in KEYS]
        if not labels:
            raise DataError(f"{source} has no label column: a manifest needs at least one")
        if frame.height == 0:
            raise DataError(f"{source} has no image left: check the views and the labels asked for")
        for name in labels:
            checked_labels(frame[name], f"{source}, label {name!r}")
        frame = frame.select(
            *(
                pl.col(key).cast(pl.String)
                if key in frame.columns
                else pl.lit(None, pl.String).alias(key)
                for key in KEYS
            ),
            *(pl.col(name).cast(pl.Int8) for name in labels),
        )
        frame = frame.with_columns(split_names(frame["split"], source))
        if frame["image"].null_count():
            raise DataError(f"{source} has {frame['image'].null_count()} rows without an image")
        if not frame["image"].is_sorted():
            frame = frame.sort("image")
        doubled = frame["image"].filter(frame["image"] == frame["image"].shift(1))
        if doubled.len():
            raise DataError(
                f"{source} lists images more than once, among them {doubled[0]}: keep one row "
                "for each"
            )
        crossing = _patients_in_two_splits(frame)
        if crossing:
            raise DataError(
                f"{source} has {crossing} patients in more than one split: a model would be tested "
                "on people it has seen. Split by patient"
            )
        return cls(frame, source)

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names, in the order of logits."""
        return tuple(name for name in self.frame.columns if name not in KEYS)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all rows and column names.

        It is equal for equal tables whatever the order of their rows was, and says nothing of the
        pixels: hashing every image of MIMIC-CXR-JPG would read half a terabyte.
        """
        digest = hashlib.sha256(json.dumps(self.frame.columns).encode())
        digest.update(self.frame.write_csv(include_header=False).encode())
        return digest.hexdigest()

    def split(self, name: str) -> pl.DataFrame:
        """Rows of one split, in the order of the manifest.

        Raises:
            DataError: No image is in it.
        """
        rows = self.frame.filter(pl.col("split") == name)
        if rows.height == 0:
            raise DataError(f"{self.source} has no image in its {name!r} split")
        return rows

    def drop(self, images: Sequence[str]) -> "Manifest":
        """The manifest without some images."""
        kept = self.frame.filter(
            ~pl.col("image").is_in(pl.Series(images, dtype=pl.String).implode())
        )
        return Manifest.of(kept, self.source)

    def counts(self) -> dict[str, dict[str, int]]:
        """Images, studies and patients of each split, for a run folder and a first look."""
        table = self.frame.group_by("split").agg(
            pl.len().alias("images"),
            pl.col("study_id").drop_nulls().n_unique().alias("studies"),
            pl.col("patient_id").drop_nulls().n_unique().alias("patients"),
        )
        rows = {row.pop("split"): row for row in table.to_dicts()}
        return {name: rows[name] for name in SPLITS if name in rows}

    def write(self, path: Path) -> None:
        """Write the table as Parquet, whole or not at all; its source travels in the metadata."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        self.frame.write_parquet(partial, metadata={"medqua.source": self.source})
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Read what `write` wrote.

        Raises:
            DataError: The file is absent, no Parquet, or no manifest.
        """
        if not path.is_file():
            raise DataError(f"no manifest at {path}")
        try:
            source = pl.read_parquet_metadata(path).get("medqua.source", path.name)
            frame = pl.read_parquet(path)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(f"{path} is no readable Parquet manifest: {error}") from error
        return cls.of(frame, source)


def _patients_in_two_splits(frame: pl.DataFrame) -> int:
    """How many patients are in more than one split; held-out ones are few, so they are sought."""
    known = frame.lazy().filter(pl.col("patient_id").is_not_null()).select("patient_id", "split")
    held = known.filter(pl.col("split") != "train").unique().collect()["patient_id"]
    twice = held.filter(held.is_duplicated())
    train = known.filter(pl.col("split") == "train").select("patient_id").collect()["patient_id"]
    also = train.filter(train.is_in(held.unique().implode()))
    return pl.concat([twice, also]).n_unique()


def split_names(names: pl.Series, source: str) -> pl.Series:
    """Official split names of a column that may say `val`, `dev` or `training`.

    Raises:
        DataError: A name is null or means no split.
    """
    synonyms = {
        **{name: name for name in SPLITS},
        **{"training": "train", "tr": "train", "testing": "test", "te": "test"},
        **dict.fromkeys(("val", "valid", "validation", "dev", "tune"), "validate"),
    }
    found = names.unique().to_list()
    if set(found) <= set(SPLITS):
        return names.alias("split")
    unknown = [name for name in found if str(name).strip().lower() not in synonyms]
    if unknown:
        shown = sorted("(blank)" if name is None else repr(name) for name in unknown)[:5]
        near = get_close_matches(str(unknown[0]).lower(), synonyms, n=1)
        hint = f" (did you mean {synonyms[near[0]]!r}?)" if near else ""
        raise DataError(
            f"{source} has unknown split names {', '.join(shown)}{hint}: "
            f"each image needs one of {', '.join(SPLITS)}"
        )
    mapping = {name: synonyms[str(name).strip().lower()] for name in found}
    return names.replace_strict(mapping, return_dtype=pl.String).alias("split")


def checked_labels(column: pl.Series, where: str) -> pl.Series:
    """A label column as Int8 of 1, 0, -1 and null.

    Args:
        column: Numbers; floats as CheXpert writes them are fine.
        where: What to call the column in an error.

    Raises:
        DataError: It is no number or another number.
    """
    if not column.dtype.is_numeric() and column.dtype not in (pl.Boolean, pl.Null):
        raise DataError(
            f"{where} holds text: a label is 1 (present), 0 (absent), -1 (uncertain) or blank"
        )
    whole = column.cast(pl.Int8, strict=False)  # null where it does not fit: NaN, 300
    same = whole.null_count() == column.null_count() and (whole.cast(column.dtype) == column).all()
    least, most = whole.min(), whole.max()
    if same and (least is None or (least >= -1 and most <= 1)):  # type: ignore[operator]
        return whole
    outside = column.filter(~column.cast(pl.Float64).is_in([-1.0, 0.0, 1.0]))  # null is not outside
    shown = ", ".join(str(value) for value in outside.unique().sort().head(5))
    raise DataError(
        f"{where} holds {shown}: a label is 1 (present), 0 (absent), -1 (uncertain) or blank"
    )
