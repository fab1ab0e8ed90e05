"""An answer says which model gave it, whichever runs when it is asked for."""

import io
import json
from typing import Any

import polars as pl

from medqua.serve.jobs.tables import parquet, tabulate

OLD = {"bundle": "a" * 64, "export": None, "version": "0.1.0"}
NEW = {"bundle": "b" * 64, "export": "c" * 64, "version": "0.2.0"}
RUNNING = {**NEW, "profile": "mimic-cxr-jpg"}


def answer(label: str, **made_by: Any) -> dict[str, Any]:
    return {
        "source": "x", "status": 200, "findings": [{"label": label, "probability": 0.5}],
        "refusal": None, "notes": [], "sha256": "d" * 64, "seconds": 0.1, **made_by,
    }  # fmt: skip


def written(answers: list[dict[str, Any]]) -> tuple[pl.DataFrame, dict[str, Any] | None]:
    file = parquet(tabulate(answers, ["Edema"]), RUNNING)
    told = pl.read_parquet_metadata(io.BytesIO(file)).get("medqua")
    return pl.read_parquet(io.BytesIO(file)), None if told is None else json.loads(told)


def test_rows_of_two_models_each_name_their_own() -> None:
    table, metadata = written([answer("Edema", **OLD), answer("Mass", **NEW)])
    assert table["bundle"].to_list() == [OLD["bundle"], NEW["bundle"]]
    assert table["export"].to_list() == [None, NEW["export"]]
    assert table["version"].to_list() == ["0.1.0", "0.2.0"]
    assert metadata is None  # which would say of all rows what is true of one
    assert table["Edema"].to_list() == [0.5, None]
    assert table["Mass"].to_list() == [None, 0.5]  # a label that the running model does not have


def test_the_running_model_is_named_for_its_own_rows_alone() -> None:
    assert written([answer("Edema", **NEW)])[1] == RUNNING
    assert written([])[1] == RUNNING
    assert written([answer("Edema", **OLD)])[1] is None
    table, metadata = written([answer("Edema")])  # as earlier releases kept it
    assert metadata is None
    assert table["bundle"].to_list() == [None]
