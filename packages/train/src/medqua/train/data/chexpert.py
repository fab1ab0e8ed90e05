"""CheXpert: 224,316 radiographs of 65,240 patients, labelled from reports; test by radiologists.

    ROOT/train.csv     Path, Frontal/Lateral, AP/PA, 14 labels of 1.0, 0.0, -1.0 or blank
    ROOT/valid.csv     the same, 234 images labelled by radiologists
    ROOT/test.csv      (or test_labels.csv) Path and labels, where it was obtained
    ROOT/train/patient00001/study1/view1_frontal.jpg     (Path has CheXpert-v1.0.../ before it)

Source: Irvin et al., CheXpert, AAAI 2019.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import polars as pl

from medqua.core.errors import DataError
from medqua.core.findings.labels import CHEXPERT_NAMES
from medqua.train.data.manifest import Manifest
from medqua.train.data.tables import (
    FRONTAL,
    hold_out,
    label_numbers,
    of_views,
    own_names,
    plain,
    read_table,
)

REMEDY = "download CheXpert (or CheXpert-v1.0-small) again; data.root is the folder with train.csv"

TestTable = Literal["valid", "test"]
"""Which table is the test split."""


def read_chexpert(
    root: Path,
    *,
    labels: Sequence[str] = CHEXPERT_NAMES,
    views: Sequence[str] = FRONTAL,
    test: TestTable = "valid",
    validate: float = 0.05,
    seed: int = 0,
) -> Manifest:
    """Make a manifest of CheXpert.

    Args:
        root: Folder with `train.csv`, `valid.csv` and their images.
        labels: Labels, in the order of logits: CheXpert's, or NIH's that mean the same.
        views: Views to keep; frontal images that do not say AP or PA are kept with them. Empty
            keeps lateral ones too.
        test: `valid` tests on `valid.csv` and validates on patients of `train.csv`; `test` tests
            on `test.csv` or `test_labels.csv` and validates on `valid.csv`.
        validate: Share of the patients of `train.csv` held out for `test=valid`, within (0, 1).
        seed: Seed of the hash that chooses them.

    Returns:
        The manifest.

    Raises:
        DataError: A table or column is missing, a path names no patient, or a label is no 1, 0,
            -1 or blank.
        ConfigError: `validate` is not within (0, 1).
    """
    if not root.is_dir():
        raise DataError(f"no folder {root}: data.root is the folder that holds train.csv")
    files = {"train": root / "train.csv", "test": root / "valid.csv"}
    if test == "test":
        files = {"train": root / "train.csv", "validate": root / "valid.csv"}
        candidates = (root / "test.csv", root / "test_labels.csv")
        files["test"] = next((path for path in candidates if path.is_file()), candidates[0])
    frame = pl.concat([_rows(path, split, labels) for split, path in files.items()])
    if test == "valid":
        frame = hold_out(frame, validate, seed)
    named = f"CheXpert (tested on {files['test'].name})"
    return Manifest.of(of_views(frame, views), named)


def _rows(path: Path, split: str, labels: Sequence[str]) -> pl.DataFrame:
    """One table's rows of the manifest."""
    remedy = REMEDY
    if path.stem.startswith("test"):
        remedy += "; data.test=valid needs no test.csv"
    table = read_table(path, ("Path",), remedy)
    known = [name for name in table.columns if plain(name) in map(plain, CHEXPERT_NAMES)]
    names = own_names(labels, known, str(path))
    image = table["Path"].str.replace(r"^CheXpert[^/]*/", "").alias("image")
    patient = image.str.extract(r"(patient\d+)/", 1).alias("patient_id")
    if patient.null_count():
        raise DataError(
            f"{path} names no patient in the Path of {patient.null_count()} of {table.height} "
            f"rows (needed .../patient00001/...): {REMEDY}"
        )
    study = patient + "/" + image.str.extract(r"/(study\d+)/", 1).fill_null("")
    lateral = image.str.contains("lateral")
    view = pl.Series("view", [None] * table.height, dtype=pl.String)
    if "AP/PA" in table.columns:
        view = table["AP/PA"].str.strip_chars().replace("", None).alias("view")
    if "Frontal/Lateral" in table.columns:
        lateral = table["Frontal/Lateral"].str.to_uppercase() == "LATERAL"
    return pl.DataFrame([image, patient, study.alias("study_id"), view]).select(
        "image",
        "patient_id",
        "study_id",
        pl.lit(split).alias("split"),
        pl.when(pl.lit(lateral)).then(pl.lit("LATERAL")).otherwise("view").alias("view"),
        *(
            label_numbers(table[name], f"{path}, column {name!r}").alias(label)
            for label, name in names.items()
        ),
    )
