"""What readers of published tables share: text columns, labels, names, and the held-out part."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import polars as pl

from medqua.core.errors import ConfigError, DataError
from medqua.core.findings.labels import ALIASES, CHEXPERT_TO_NIH, NIH_TO_CHEXPERT
from medqua.train.data.manifest import checked_labels
from medqua.train.data.split import hashed_place

FRONTAL = ("AP", "PA")
"""Views that a model of frontal radiographs is trained on."""


def read_table(path: Path, needed: Sequence[str], todo: str) -> pl.DataFrame:
    """A CSV file, every column as text.

    Args:
        path: The file.
        needed: Columns that it must have.
        todo: What to do where it is absent or lacks a column.

    Raises:
        DataError: It is absent, no CSV, or lacks a column; the nearest is named.
    """
    if not path.is_file():
        raise DataError(f"no table {path}: {todo}")
    try:
        table = pl.read_csv(path, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path} is no readable CSV: {str(error).splitlines()[0]}") from error
    for name in needed:
        if name not in table.columns:
            near = get_close_matches(name, table.columns, n=1)
            hint = f"; the nearest there is {near[0]!r}" if near else ""
            raise DataError(f"{path} has no column {name!r}{hint}: {todo}")
    return table


def label_numbers(column: pl.Series, where: str) -> pl.Series:
    """A label column read as text, as Int8 of 1, 0, -1 and null.

    Args:
        column: Text.
        where: What to call the column in an error.

    Raises:
        DataError: A cell is another number, or no number.
    """
    trimmed = column.str.strip_chars()
    numbers = trimmed.replace("", None).cast(pl.Float64, strict=False)
    text = column.filter(numbers.is_null() & (trimmed != ""))
    if text.len():
        raise DataError(
            f"{where} holds text in {text.len()} rows: a label is 1 (present), 0 (absent), "
            "-1 (uncertain) or blank"
        )
    return checked_labels(numbers, where)


def own_names(labels: Sequence[str], known: Sequence[str], where: str) -> dict[str, str]:
    """What a data set calls the labels asked for.

    A label of CheXpert may be asked of NIH and the other way round, where one means exactly the
    other: `Pleural Effusion` is NIH's `Effusion`. So a model is tested on another site under the
    names that it was trained by.

    Args:
        labels: Names asked for.
        known: Names of the data set.
        where: What to call the data set in an error.

    Returns:
        Label asked for -> name in the data set.

    Raises:
        DataError: It has no label that means the same; the nearest is named.
    """
    by_plain = {plain(name): name for name in known}
    exact = {
        plain(one.name): plain(one.other)
        for one in (*CHEXPERT_TO_NIH, *NIH_TO_CHEXPERT)
        if one.other is not None and one.relation == "exact"
    }
    result = {}
    for label in labels:
        name = plain(ALIASES.get(label, label))
        found = by_plain.get(name) or by_plain.get(exact.get(name, ""))
        if found is None:
            near = get_close_matches(label, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
            raise DataError(f"{where} has no label that means {label!r}: {hint}")
        result[label] = found
    return result


def hold_out(frame: pl.DataFrame, share: float, seed: int) -> pl.DataFrame:
    """Move a share of the training patients to `validate`, by a hash of seed and patient.

    Args:
        frame: With `patient_id` (null: the image stands for itself), `image` and `split`.
        share: Share of the training patients, (0, 1).
        seed: Seed of the hash.

    Raises:
        ConfigError: `share` is not within (0, 1).
    """
    if not 0 < share < 1:
        raise ConfigError(f"data.validate = {share}: needed a share of patients within (0, 1)")
    whose = frame.select(pl.coalesce("patient_id", "image"))["patient_id"]
    held = {name for name in whose.unique() if hashed_place(name, seed) < share}
    chosen = whose.is_in(pl.Series(sorted(held), dtype=pl.String).implode())
    moved = pl.when((pl.col("split") == "train") & chosen).then(pl.lit("validate"))
    return frame.with_columns(moved.otherwise("split").alias("split"))


def of_views(frame: pl.DataFrame, views: Sequence[str]) -> pl.DataFrame:
    """Rows of these views; those of unknown view are kept, and no view asked for keeps all.

    Args:
        frame: With a `view` column; `AP Supine` is an AP view.
        views: Views to keep.
    """
    if not views:
        return frame
    first = pl.col("view").str.strip_chars().str.split(" ").list.first()
    wanted = list(views)
    return frame.filter(
        pl.col("view").is_null() | pl.col("view").is_in(wanted) | first.is_in(wanted)
    )


def located(root: Path, names: pl.Series, table: Path) -> pl.Series:
    """Images relative to the root; bare names are looked for in subfolders, as NIH packs them.

    Raises:
        DataError: A row names no image, or a name is there twice.
    """
    if names.null_count():
        raise DataError(f"{table} names no image in {names.null_count()} of {len(names)} rows")
    if names.len() == 0 or (root / names[0]).is_file() or "/" in names[0]:
        return names.alias("image")
    wanted = set(names.to_list())
    places: dict[str, str] = {}
    for file in sorted(root.rglob("*")):
        if file.name in wanted and file.is_file():
            relative = file.relative_to(root).as_posix()
            if file.name in places:
                raise DataError(
                    f"{root} has {file.name} twice, as {places[file.name]} and {relative}: name "
                    f"images by their path in {table.name}"
                )
            places[file.name] = relative
    return names.replace(places).alias("image")


def finding_columns(found: pl.Series, labels: Sequence[str]) -> list[pl.Series]:
    """Label columns of a column of findings between `|`, as NIH has it: 1 named, 0 not.

    Args:
        found: `Cardiomegaly|Effusion`, or `No Finding`.
        labels: Columns wanted, by their names in the data set.
    """
    said = _said(found)
    return [said.list.contains(_spelled(name)).cast(pl.Int8).alias(name) for name in labels]


def check_findings(found: pl.Series, known: Sequence[str], where: str, remedy: str = "") -> None:
    """Refuse a finding that a data set does not have.

    Args:
        found: As in `finding_columns`.
        known: All findings that may be named beside `No Finding`.
        where: What to call the column in an error.
        remedy: What else an error may tell to do.

    Raises:
        DataError: One is unknown, or a row names none.
    """
    said = _said(found)
    allowed = {_spelled(name) for name in (*known, "No Finding")}
    unknown = sorted(set(said.explode().drop_nulls().unique()) - allowed)
    if unknown:
        near = get_close_matches(unknown[0], sorted(allowed), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise DataError(
            f"{where} names unknown findings, among them {unknown[0]!r}{hint}: needed "
            f"{', '.join(known)} or No Finding" + (f"; {remedy}" if remedy else "")
        )


def plain(name: str) -> str:
    """A column name in lower case without punctuation, so that `No_Finding` is `No Finding`."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _said(found: pl.Series) -> pl.Series:
    """The findings of each row, spelled as `_spelled`."""
    split = found.fill_null("").str.split("|")
    return split.list.eval(pl.element().str.strip_chars().str.replace_all(" ", "_"))


def _spelled(finding: str) -> str:
    return finding.replace(" ", "_")
