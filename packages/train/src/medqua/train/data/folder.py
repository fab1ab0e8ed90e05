"""A folder of images with a table of labels: one's own data, NIH ChestX-ray14, CheXpert.

Columns are found by the names that public data sets use, or named in the recipe. Images are split
by patient, never by image: two radiographs of one person look more alike than two of one disease.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import polars as pl

from medqua.core.errors import ConfigError, DataError
from medqua.core.findings.labels import ALIASES, CHEXPERT_NAMES, NIH_NAMES
from medqua.train.data.manifest import Manifest
from medqua.train.data.split import (
    SplitFractions,
    positives_by_patient,
    split_by_hash,
    split_stratified,
)
from medqua.train.data.tables import (
    check_findings,
    finding_columns,
    label_numbers,
    located,
    of_views,
    plain,
    read_table,
)

KNOWN_COLUMNS = {
    "image": ("image", "file", "path", "filename", "imageindex", "imagepath", "imagefile"),
    "patient": ("patientid", "patient", "subjectid", "subject"),
    "study": ("studyid", "study", "accessionnumber"),
    "view": ("view", "viewposition", "appa"),
    "split": ("split",),
}
"""Role -> names, in lower case without punctuation."""

TABLES = ("labels.csv", "Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv", "train.csv")
"""Names of the table, tried in this order when the recipe gives none."""


@dataclass(frozen=True)
class FolderColumns:
    """Which columns of the table are what; empty ones are found by name."""

    image: str = ""
    """Image file, relative to the folder."""

    patient: str = ""
    """Patient."""

    study: str = ""
    """Examination."""

    view: str = ""
    """Projection: AP, PA, ..."""

    split: str = ""
    """Split, if the table has its own. Empty: a column named `split` is used where there is one."""

    patient_pattern: str = ""
    """Regular expression with one group that finds the patient in the image's path, for tables
    without a column of patients: `patient(\\d+)` for CheXpert."""


def read_folder(
    root: Path,
    *,
    table: str = "",
    columns: FolderColumns | None = None,
    labels: Sequence[str] = (),
    other_findings: Sequence[str] = (),
    views: Sequence[str] = (),
    fractions: SplitFractions | None = None,
    seed: int = 0,
    stratify: bool = False,
) -> Manifest:
    """Make a manifest of a folder.

    Args:
        root: Folder that images are relative to.
        table: CSV file, relative to the root; found by name if empty.
        columns: Which columns are what.
        labels: Label columns, in the order of logits; by default all NIH ChestX-ray14 and
            CheXpert names that are there, or NIH's `Finding Labels` column.
        other_findings: What `Finding Labels` may name beside the labels and NIH's findings; it is
            not learned.
        views: Views to keep; rows of unknown view are kept, there is nothing to judge them by.
        fractions: Parts held out, where the table has no split of its own.
        seed: Seed of the split.
        stratify: Split each finding's patients in proportion (`split_stratified`).

    Returns:
        The manifest.

    Raises:
        DataError: No table, a column missing, a row without image or patient, a label that is no
            1, 0, -1 or blank, or a finding that nobody expects in `Finding Labels`.
    """
    path = _find_table(root, table)
    raw = read_table(path, (), "name one by data.table")
    found = _found_columns(path, raw, columns or FolderColumns())
    frame = raw.select(
        located(root, raw[found["image"]], path),
        *_patient(path, raw, found, columns or FolderColumns()),
        *(
            pl.col(found[role]).alias(name)
            for role, name in (("study", "study_id"), ("view", "view"), ("split", "split"))
            if role in found
        ),
        *_labels(path, raw, labels, other_findings),
    )
    side = next((name for name in raw.columns if plain(name) == "frontallateral"), None)
    if side is not None and "view" in frame.columns:  # CheXpert: AP/PA is blank for laterals
        lateral = raw[side].str.to_uppercase() == "LATERAL"
        frame = frame.with_columns(view=pl.when(lateral).then(pl.lit("LATERAL")).otherwise("view"))
    if "view" in frame.columns:
        frame = of_views(frame, views)
    if "split" not in frame.columns:
        frame = _split(frame, fractions or SplitFractions(), seed, stratify=stratify)
    return Manifest.of(frame, f"folder {root.name} ({path.name})")


def _split(
    frame: pl.DataFrame, fractions: SplitFractions, seed: int, *, stratify: bool
) -> pl.DataFrame:
    """Add the split column."""
    names = [
        name for name in frame.columns if name not in ("image", "patient_id", "study_id", "view")
    ]
    if stratify:
        of_patient = split_stratified(positives_by_patient(frame, names), fractions, seed)
    else:
        of_patient = split_by_hash(frame["patient_id"].unique().to_list(), fractions, seed)
    split = frame["patient_id"].replace_strict(of_patient, return_dtype=pl.String)
    return frame.with_columns(split.alias("split"))


def _find_table(root: Path, table: str) -> Path:
    if not root.is_dir():
        raise DataError(f"no folder {root}: give the folder of images as data.root")
    if table:
        given = root / table
        if given.is_file():
            return given
        raise DataError(f"no table {given}: data.table is a CSV file relative to data.root")
    there = sorted(path.name for path in root.glob("*.csv"))
    candidates: list[str] = [*TABLES, *(there if len(there) == 1 else [])]
    for name in candidates:
        if name in there:
            return root / name
    listed = f"it has {', '.join(there)}" if there else "it has no CSV file"
    raise DataError(f"{root} has none of {', '.join(TABLES)} ({listed}): name one by data.table")


def _found_columns(path: Path, raw: pl.DataFrame, given: FolderColumns) -> dict[str, str]:
    """Role -> column."""
    by_plain = {plain(name): name for name in reversed(raw.columns)}
    found = {}
    for role, names in KNOWN_COLUMNS.items():
        wanted = str(getattr(given, role))
        if wanted and wanted not in raw.columns:
            near = get_close_matches(wanted, raw.columns, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DataError(f"{path} has no column {wanted!r} (data.columns.{role}){hint}")
        column = wanted or next((by_plain[name] for name in names if name in by_plain), "")
        if column:
            found[role] = column
    if "image" not in found:
        raise DataError(
            f"{path} has no column of images ({', '.join(raw.columns[:6])}, ...): name it by "
            "data.columns.image"
        )
    if "patient" not in found and not given.patient_pattern:
        raise DataError(
            f"{path} has no column of patients: name it by data.columns.patient, or give "
            "data.columns.patient_pattern; a split by image would test on people that training saw"
        )
    return found


def _patient(
    path: Path, raw: pl.DataFrame, found: dict[str, str], columns: FolderColumns
) -> Iterable[pl.Series]:
    """The patient of each row."""
    if columns.patient_pattern:
        try:
            pattern = re.compile(columns.patient_pattern)
        except re.error as error:
            raise ConfigError(f"data.columns.patient_pattern is no pattern: {error}") from error
        if pattern.groups != 1:
            raise ConfigError(
                f"data.columns.patient_pattern = {columns.patient_pattern!r} has {pattern.groups} "
                "groups: needed one, around the patient"
            )
        patients = raw[found["image"]].str.extract(columns.patient_pattern, 1)
    else:
        patients = raw[found["patient"]]
    if patients.null_count():
        raise DataError(
            f"{path} names no patient in {patients.null_count()} of {len(patients)} rows: fill "
            "them in or remove them"
        )
    yield patients.alias("patient_id")


def _labels(
    path: Path, raw: pl.DataFrame, wanted: Sequence[str], others: Sequence[str]
) -> list[pl.Series]:
    """Label columns under their known names."""
    known = {plain(alias): name for alias, name in ALIASES.items()}
    known |= {plain(name): name for name in (*CHEXPERT_NAMES, *NIH_NAMES)}
    columns = {known.get(plain(name), name): name for name in raw.columns}
    listed = next((name for name in raw.columns if plain(name) == "findinglabels"), None)
    chosen = list(wanted) or [name for name in columns if plain(name) in known]
    if not chosen and listed is not None:
        chosen = list(NIH_NAMES)
    if not chosen:
        raise DataError(
            f"{path} has no column named as an NIH ChestX-ray14 or CheXpert finding: name yours by "
            "data.labels"
        )
    canonicals = [known.get(plain(name), name) for name in chosen]
    if listed is not None and not columns.keys() >= set(canonicals):
        where = f"{path}, column {listed!r}"
        expected = dict.fromkeys((*NIH_NAMES, *canonicals, *others))
        check_findings(raw[listed], list(expected), where, "data.other_findings names more")
    result = []
    for name, canonical in zip(chosen, canonicals, strict=True):
        if canonical in columns:
            column = raw[columns[canonical]]
            where = f"{path}, column {column.name!r}"
            result.append(label_numbers(column, where).alias(canonical))
        elif listed is not None and plain(name) in known:
            result += finding_columns(raw[listed], [canonical])
        else:
            near = get_close_matches(name, raw.columns, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DataError(f"{path} has no label column {name!r}{hint}")
    return result
