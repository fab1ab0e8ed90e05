"""Answers as a table: one row a file, one column a finding."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl

_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "source": pl.String,
    "status": pl.Int32,
    "error": pl.String,
    "reason": pl.String,
    "notes": pl.List(pl.String),
    "sha256": pl.String,
    "seconds": pl.Float64,
    "report": pl.String,
    "bundle": pl.String,
    "export": pl.String,
    "version": pl.String,
}

_MADE_BY = ("bundle", "export", "version")


def tabulate(answers: Iterable[Mapping[str, Any]], labels: Sequence[str]) -> pl.DataFrame:
    """Build a table of answers.

    Args:
        answers: As `Answer.to_dict` gives them.
        labels: Findings that have a column in any case; those of an answer that has others come
            after them. A column holds its probability, Float64, null in the row of a file without
            it.

    Returns:
        Columns `source`, `status`, `error`, `reason`, `notes`, `sha256`, `seconds`,
        `report` (SOP instance UID of the structured report, null where none was written),
        `bundle`, `export` and `version` (which model and release gave the answer, null where none
        did or it was not kept), then labels.
    """
    answers = list(answers)
    told = (f["label"] for answer in answers for f in answer["findings"] or ())
    labels = list(dict.fromkeys((*labels, *told)))
    rows = []
    for answer in answers:
        refusal = answer["refusal"] or {"error": None, "reason": None}
        row = {name: answer[name] for name in ("source", "status", "notes", "sha256", "seconds")}
        row |= {name: answer.get(name) for name in ("report", *_MADE_BY)}
        found = {f["label"]: f["probability"] for f in answer["findings"] or ()}
        rows.append(row | dict(refusal) | {label: found.get(label) for label in labels})
    return pl.DataFrame(rows, schema={**_SCHEMA, **dict.fromkeys(labels, pl.Float64)})


def parquet(table: pl.DataFrame, provenance: Mapping[str, Any]) -> bytes:
    """Return a table as a Parquet file.

    Args:
        table: As `tabulate` gives it.
        provenance: What the model that is known now says of itself. It stands in the file's
            metadata, as JSON, where every row is that model's; the rows say it for themselves.
    """
    file = BytesIO()
    own = tuple(provenance.get(name) for name in _MADE_BY)
    made_by = set(table.select(_MADE_BY).unique().rows())
    told = {"medqua": json.dumps(dict(provenance))} if made_by <= {own} else {}
    table.write_parquet(file, metadata=told)
    return file.getvalue()


def write_whole(file: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Write a file so that it is there in whole or not at all, also after a power cut.

    Args:
        file: Where.
        content: What.
        mode: Of the file, less the process's umask.
    """
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
