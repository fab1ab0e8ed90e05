"""MIMIC-CXR-JPG 2.1.0: its tables joined into one manifest.

    ROOT/mimic-cxr-2.0.0-split.csv.gz       dicom_id, study_id, subject_id, split
    ROOT/mimic-cxr-2.0.0-metadata.csv.gz    dicom_id, ViewPosition, ...
    ROOT/mimic-cxr-2.0.0-chexpert.csv.gz    subject_id, study_id, 14 labels (or negbio)
    ROOT/mimic-cxr-2.1.0-test-set-labeled.csv   study_id, labels read by a radiologist
    ROOT/files/p10/p10000032/s50414267/DICOM_ID.jpg     (.dcm in MIMIC-CXR)

Source: Johnson et al., MIMIC-CXR-JPG (version 2.1.0), PhysioNet 2024. Its licence forbids passing
on rows, identifiers or weights trained on it: a run folder of it stays where it is.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import polars as pl
from isal import igzip
from isal.igzip_lib import IsalError

from medqua.core.errors import DataError
from medqua.core.findings.labels import ALIASES, CHEXPERT_NAMES
from medqua.train.data.manifest import Manifest, checked_labels
from medqua.train.data.tables import FRONTAL

LABELS = CHEXPERT_NAMES
"""The 14 CheXpert observations, in the order of logits."""

SYNONYMS = {name: alias for alias, name in ALIASES.items()}
"""A label -> what the radiologist's test table calls it, where that differs."""

NUMBERS = {"study_id": pl.Int64, "subject_id": pl.Int64}
"""Keys that are whole numbers."""

DOWNLOAD = "download it again and compare it with SHA256SUMS.txt"

ImageSource = Literal["jpg", "dicom"]
LabelSource = Literal["chexpert", "negbio"]
TestLabels = Literal["same", "radiologist"]


def read_mimic(
    root: Path,
    *,
    views: Sequence[str] = FRONTAL,
    labels: Sequence[str] = LABELS,
    source: ImageSource = "jpg",
    label_source: LabelSource = "chexpert",
    test_labels: TestLabels = "same",
) -> Manifest:
    """Join the tables under a root into a manifest.

    A study without a row of labels is left out: nothing is known of it, not even that nothing
    was found.

    Args:
        root: Folder with the tables and `files/`.
        views: `ViewPosition` values to keep; empty keeps every image, lateral ones too.
        labels: Label columns, in the order of logits.
        source: Which files the manifest names: `jpg`, or `dicom` for the tree of MIMIC-CXR.
        label_source: The labeler whose table is read.
        test_labels: `radiologist` takes the test split's labels from the table read by hand and
            leaves out test studies that are not in it.

    Returns:
        A manifest; images are `files/p10/p10000032/s50414267/ID.jpg`.

    Raises:
        DataError: A table or column is missing or malformed, a split name is unknown, no image
            is left, or test labels asked for are absent.
    """
    wanted: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
        "mimic-cxr-2.0.0-metadata": (("dicom_id", "ViewPosition"), ()),
        "mimic-cxr-2.0.0-split": (("dicom_id", "study_id", "subject_id", "split"), ()),
        f"mimic-cxr-2.0.0-{label_source}": (("study_id",), tuple(labels)),
    }
    with ThreadPoolExecutor(len(wanted)) as pool:  # decompression holds no lock and is most of it
        metadata, split, findings = pool.map(
            lambda item: _read(root, item[0], *item[1]), wanted.items()
        )
    if split["dicom_id"].equals(metadata["dicom_id"]):  # as published: row by row the same images
        images = split.lazy().with_columns(metadata["ViewPosition"])
    else:
        images = split.lazy().join(metadata.lazy(), on="dicom_id", maintain_order="left")
    if views:
        images = images.filter(pl.col("ViewPosition").is_in(list(views)))
    subject, study = pl.col("subject_id").cast(pl.String), pl.col("study_id").cast(pl.String)
    extension = {"jpg": "jpg", "dicom": "dcm"}[source]
    frame = (
        images.join(findings.lazy(), on="study_id", how="inner", maintain_order="left")
        .select(
            pl.format(
                "files/p{}/p{}/s{}/{}.{}",
                subject.str.slice(0, 2),
                subject,
                study,
                "dicom_id",
                pl.lit(extension),
            ).alias("image"),
            subject.alias("patient_id"),
            study.alias("study_id"),
            "split",
            pl.col("ViewPosition").alias("view"),
            *labels,
        )
        .collect()
    )
    if frame.height == 0:
        raise DataError(
            f"no image under {root} has a split, a view of {', '.join(views) or 'any'} and labels: "
            "the tables are of different data sets, or data.views names none of theirs"
        )
    if test_labels == "radiologist":
        frame = _with_test_labels(frame, root, labels)
    name = f"MIMIC-CXR ({source}, {label_source} labels, {test_labels} test labels)"
    return Manifest.of(frame, name)


def _with_test_labels(frame: pl.DataFrame, root: Path, labels: Sequence[str]) -> pl.DataFrame:
    """Replace the labels of the test split by those a radiologist read."""
    read = _read(root, "mimic-cxr-2.1.0-test-set-labeled", ("study_id",), tuple(labels))
    read = read.with_columns(pl.col("study_id").cast(pl.String))
    test = frame.filter(pl.col("split") == "test").drop(labels)
    judged = test.join(read, on="study_id", how="inner").select(frame.columns)
    if judged.height == 0:
        raise DataError(
            f"no test study of {root} is in the radiologist's table: the tables are of different "
            "data sets; use data.test_labels=same"
        )
    return pl.concat([frame.filter(pl.col("split") != "test"), judged])


def _read(root: Path, stem: str, keys: tuple[str, ...], labels: tuple[str, ...]) -> pl.DataFrame:
    """A table: its keys as integers or text, its labels as Int8, nothing else of it."""
    path = _find(root, stem)
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = bytes(igzip.decompress(content))  # type: ignore[no-untyped-call]
        header = content[: content.find(b"\n")].decode("utf-8-sig")
    except (OSError, EOFError, IsalError, UnicodeDecodeError) as error:  # type: ignore[misc]
        raise DataError(f"{path} cannot be read ({error}): {DOWNLOAD}") from error
    columns = _columns(path, [cell.strip().strip('"') for cell in header.split(",")], keys, labels)
    types = {
        column: NUMBERS.get(name, pl.Float32 if name in labels else pl.String)
        for name, column in columns.items()
    }
    try:
        table = (
            pl.scan_csv(content, schema_overrides=types, infer_schema=False)
            .select(list(types))
            .collect()
        )
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} is no intact table ({reason}): {DOWNLOAD}") from error
    return table.select(
        checked_labels(table[column], f"{path.name}, column {column!r}").alias(name)
        if name in labels
        else table[column].alias(name)
        for name, column in columns.items()
    )


def _columns(
    path: Path, header: list[str], keys: tuple[str, ...], labels: tuple[str, ...]
) -> dict[str, str]:
    """Name wanted -> name in the table."""
    columns = {}
    for name in (*keys, *labels):
        column = SYNONYMS.get(name, name) if name not in header else name
        if column not in header:
            near = get_close_matches(name, header, n=1)
            hint = f"; the nearest there is {near[0]!r}" if near else ""
            todo = "name the labels you want by data.labels, or " if name in labels else ""
            raise DataError(f"{path} has no column {name!r}{hint}: {todo}{DOWNLOAD}")
        columns[name] = column
    return columns


def _find(root: Path, stem: str) -> Path:
    """The table of that name, compressed or not."""
    for suffix in (".csv.gz", ".csv"):
        if (path := root / f"{stem}{suffix}").is_file():
            return path
    if not root.is_dir():
        raise DataError(f"no folder {root}: data.root is the folder that holds {stem}.csv.gz")
    there = [path.name for path in root.glob("*.csv*")]
    near = get_close_matches(f"{stem}.csv.gz", there, n=1, cutoff=0.8)
    hint = f"; {near[0]} is there: rename it if it is the same table" if near else ""
    raise DataError(
        f"{root} has no {stem}.csv.gz (or .csv){hint}. It is a file of MIMIC-CXR-JPG 2.1.0: "
        "download it into data.root"
    )
