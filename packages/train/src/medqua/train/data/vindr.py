"""VinDr-CXR: 15,000 training radiographs read by three radiologists each, 3,000 test by five.

    ROOT/annotations/image_labels_train.csv   image_id, rad_id, 28 labels of 1 and 0; a row a reader
    ROOT/annotations/image_labels_test.csv    image_id, 28 labels: the readers' consensus
    ROOT/train/ID.dicom, ROOT/test/ID.dicom   (or .png, .jpg after conversion)

Source: Nguyen et al., VinDr-CXR, Scientific Data 2022; PhysioNet 1.0.0. It does not say which
images are of one patient, so intervals resample images.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import polars as pl

from medqua.core.errors import DataError
from medqua.train.data.manifest import Manifest
from medqua.train.data.tables import hold_out, label_numbers, own_names, read_table

VINDR_NAMES = (
    *("Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture"),
    *("Consolidation", "Edema", "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung Opacity"),
    *("Lung cavity", "Lung cyst", "Mediastinal shift", "Nodule/Mass", "Pleural effusion"),
    *("Pleural thickening", "Pneumothorax", "Pulmonary fibrosis", "Rib fracture", "Other lesion"),
    *("COPD", "Lung tumor", "Pneumonia", "Tuberculosis", "Other diseases", "No finding"),
)
"""The 22 findings and 6 diagnoses, in the order of the training table."""

SPELLINGS = {"Other disease": "Other diseases"}
"""Column names of the test table that differ."""

TODO = "download VinDr-CXR 1.0.0 from PhysioNet again; data.root is the folder with annotations/"

ImageFile = Literal["dicom", "png", "jpg"]
"""Extension of the images."""


def read_vindr(
    root: Path,
    *,
    labels: Sequence[str] = VINDR_NAMES,
    source: ImageFile = "dicom",
    validate: float = 0.1,
    seed: int = 0,
) -> Manifest:
    """Make a manifest of VinDr-CXR.

    A training label is what most readers of the image said, and uncertain where as many said yes
    as no.

    Args:
        root: Folder with `annotations/`, `train/` and `test/`.
        labels: Labels, in the order of logits: VinDr's, or those of CheXpert and NIH that mean
            the same.
        source: Extension of the images.
        validate: Share of the training images held out, within (0, 1).
        seed: Seed of the hash that chooses them.

    Returns:
        The manifest; patients, studies and views are unknown.

    Raises:
        DataError: A table or column is missing, an image has no reader, or a label is no 1, 0 or
            blank.
        ConfigError: `validate` is not within (0, 1).
    """
    if not root.is_dir():
        raise DataError(f"no folder {root}: data.root is the folder that holds annotations/")
    train, names = _labels(root, "train", labels, ("image_id", "rad_id"))
    doubled = train.filter(train.select("image_id", "rad_id").is_duplicated())
    if doubled.height:
        raise DataError(
            f"{_path(root, 'train')} has {doubled.height} rows in which one reader reads one image "
            f"more than once: {TODO}"
        )
    votes = train.group_by("image_id", maintain_order=True).agg(
        (pl.col(name) * 2 - 1).cast(pl.Int32).sum().sign() for name in names
    )
    majority = votes.select(
        "image_id",
        *(
            (pl.when(pl.col(name) == 0).then(-1).otherwise(pl.col(name) > 0))
            .cast(pl.Int8)
            .alias(name)
            for name in names
        ),
    )
    test = _labels(root, "test", labels, ("image_id",))[0]
    frame = pl.concat(
        rows.select(
            pl.format(f"{split}/{{}}.{source}", "image_id").alias("image"),
            pl.lit(None, pl.String).alias("patient_id"),
            pl.lit(split).alias("split"),
            *names,
        )
        for split, rows in (("train", majority), ("test", test))
    )
    frame = hold_out(frame, validate, seed)
    return Manifest.of(frame, f"VinDr-CXR ({source}; majority in training, consensus in test)")


def _path(root: Path, split: str) -> Path:
    return root / "annotations" / f"image_labels_{split}.csv"


def _labels(
    root: Path, split: str, labels: Sequence[str], keys: tuple[str, ...]
) -> tuple[pl.DataFrame, list[str]]:
    """One table's keys and its labels by the names asked for, as 1 and 0."""
    path = _path(root, split)
    table = read_table(path, keys, TODO).rename(SPELLINGS, strict=False)
    known = [name for name in VINDR_NAMES if name in table.columns]
    names = own_names(labels, known, str(path))
    columns = []
    for label, name in names.items():
        where = f"{path}, column {name!r}"
        numbers = label_numbers(table[name], where).fill_null(0).alias(label)
        if numbers.min() == -1:
            raise DataError(f"{where} holds -1: a reader says 1 or 0. {TODO}")
        columns.append(numbers)
    if table["image_id"].null_count():
        raise DataError(f"{path} names no image in {table['image_id'].null_count()} rows: {TODO}")
    return table.select(*keys, *columns), list(names)
