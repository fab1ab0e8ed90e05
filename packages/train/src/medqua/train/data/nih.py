"""NIH ChestX-ray14: 112,120 frontal radiographs of 30,805 patients, in their official split.

    ROOT/Data_Entry_2017.csv (or _v2020)   Image Index, Finding Labels, Patient ID, View Position
    ROOT/train_val_list.txt                an image name a line
    ROOT/test_list.txt                     the same; its patients are nobody's in the other list
    ROOT/images_001/images/00000001_000.png, ...    in these or any other folders

Source: Wang et al., ChestX-ray8, CVPR 2017, and its NIH Clinical Center release. Labels are
text-mined from reports: 1 where the report names a finding, 0 where not. Images need attribution.
"""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from medqua.core.errors import DataError
from medqua.core.findings.labels import NIH_NAMES
from medqua.train.data.manifest import Manifest
from medqua.train.data.tables import (
    FRONTAL,
    check_findings,
    finding_columns,
    hold_out,
    located,
    of_views,
    own_names,
    read_table,
)

TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
"""Names of the table, the later release first."""

LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
"""Split -> its list of images."""

TODO = "download it from the NIH Clinical Center's ChestX-ray14 into data.root"


def read_nih(
    root: Path,
    *,
    labels: Sequence[str] = NIH_NAMES,
    views: Sequence[str] = FRONTAL,
    validate: float = 0.1,
    seed: int = 0,
) -> Manifest:
    """Make a manifest of NIH ChestX-ray14.

    Args:
        root: Folder with the table and the two lists; images anywhere under it.
        labels: Labels, in the order of logits: NIH's, or CheXpert's that mean the same.
        views: Views to keep; empty keeps both.
        validate: Share of the patients of `train_val_list.txt` held out, within (0, 1).
        seed: Seed of the hash that chooses them.

    Returns:
        The manifest; a study is a patient's follow-up.

    Raises:
        DataError: A file or column is missing, a finding is unknown, or an image of the table is
            in neither list.
        ConfigError: `validate` is not within (0, 1).
    """
    if not root.is_dir():
        raise DataError(f"no folder {root}: data.root is the folder that holds {TABLES[1]}")
    path = next((root / name for name in TABLES if (root / name).is_file()), root / TABLES[1])
    table = read_table(
        path, ("Image Index", "Finding Labels", "Patient ID", "View Position", "Follow-up #"), TODO
    )
    names = own_names(labels, (*NIH_NAMES, "No Finding"), "NIH ChestX-ray14")
    where = f"{path}, column 'Finding Labels'"
    check_findings(table["Finding Labels"], NIH_NAMES, where)
    columns = finding_columns(table["Finding Labels"], list(names.values()))
    frame = table.select(
        located(root, table["Image Index"], path),
        pl.col("Patient ID").alias("patient_id"),
        pl.format("{}-{}", "Patient ID", "Follow-up #").alias("study_id"),
        _split(root, table["Image Index"], path),
        pl.col("View Position").alias("view"),
        *(column.alias(label) for label, column in zip(names, columns, strict=True)),
    )
    frame = of_views(hold_out(frame, validate, seed), views)
    return Manifest.of(frame, f"NIH ChestX-ray14 ({path.name}, official test split)")


def _split(root: Path, images: pl.Series, table: Path) -> pl.Series:
    """The official split of each image."""
    of_image: dict[str, str] = {}
    for split, name in LISTS.items():
        path = root / name
        try:
            listed = path.read_text("utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read ({error}): {TODO}") from error
        both = sorted({image for image in listed if of_image.get(image, split) != split})
        if both:
            raise DataError(
                f"{len(both):,} images are in both {' and '.join(LISTS.values())}, among them "
                f"{both[0]}: {TODO}"
            )
        of_image |= dict.fromkeys(listed, split)
    official = images.replace_strict(of_image, default=None, return_dtype=pl.String)
    lost = images.filter(official.is_null())
    if lost.len():
        raise DataError(
            f"{table} names {lost.len():,} images that are in neither "
            f"{' nor '.join(LISTS.values())}, among them {lost[0]}: {TODO}"
        )
    return official.alias("split")
