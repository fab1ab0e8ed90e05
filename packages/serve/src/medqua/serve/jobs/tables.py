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
}


def tabulate(answers: Iterable[Mapping[str, Any]], labels: Sequence[str]) -> pl.DataFrame:
    """Build a table of answers.

    Args:
        answers: As `Answer.to_dict` gives them.
        labels: The model's findings: a column each with its probability, Float64, null in the row
            of a file without findings.

    Returns:
        Columns `source`, `status`, `error`, `reason`, `notes`, `sha256`, `seconds`,
        `report` (SOP instance UID of the structured report, null where none was written), then
        labels.
    """
    rows = []
    for answer in answers:
        refusal = answer["refusal"] or {"error": None, "reason": None}
        row = {name: answer[name] for name in ("source", "status", "notes", "sha256", "seconds")}
        row["report"] = answer.get("report")
        found = {f["label"]: f["probability"] for f in answer["findings"] or ()}
        rows.append(row | dict(refusal) | {label: found.get(label) for label in labels})
    return pl.DataFrame(rows, schema={**_SCHEMA, **dict.fromkeys(labels, pl.Float64)})


def parquet(table: pl.DataFrame, provenance: Mapping[str, Any]) -> bytes:
    """Return a table as a Parquet file; its metadata hold what produced it, as JSON."""
    file = BytesIO()
    table.write_parquet(file, metadata={"medqua": json.dumps(dict(provenance))})
    return file.getvalue()


def write_whole(file: Path, content: bytes) -> None:
    """Write a file so that it is there in whole or not at all, also after a power cut."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with beside.open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
