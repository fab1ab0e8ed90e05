"""An archive on a local Ray cluster of several nodes, one of which is killed."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

Fill = Callable[[Path, int], Path]
SERVE = [sys.executable, "-m", "medqua.serve"]


@pytest.mark.slow
def test_a_node_killed_in_mid_run_loses_nothing(
    nodes: Any, environment: dict[str, str], bundle_folder: Path, tmp_path: Path, fill: Fill
):
    count = 120
    folder = fill(tmp_path / "in", count)
    (folder / "bad.dcm").write_bytes(b"bad")
    output, journal = tmp_path / "out.parquet", tmp_path / "out.parquet.journal"
    command = [*SERVE, "cluster", "batch", str(bundle_folder), str(folder), str(output)]
    command += ["--address", nodes.address, "--readers", "2"]
    command += ["batching.max_batch_size=1", "batching.decoders=1"]
    run = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    while not journal.exists() or journal.read_bytes().count(b"\n") < 11:
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.05)
    nodes.kill()
    before = journal.read_bytes().count(b"\n") - 1 if journal.exists() else count
    out, err = run.communicate(timeout=300)
    assert before < count  # it was killed in mid-run
    assert run.returncode == 1, err  # one file is bad
    assert f"{count} read, 1 refused, 0 by an earlier run" in out
    table = pl.read_parquet(output)
    names = [*(str(folder / f"{n:03}.png") for n in range(count)), str(folder / "bad.dcm")]
    assert table["source"].to_list() == sorted(names)
    assert not journal.exists()
    alone = tmp_path / "alone.parquet"
    subprocess.run(
        [*SERVE, "batch", str(bundle_folder), str(folder), str(alone)],
        check=False, capture_output=True, env=environment,
    )  # fmt: skip
    one = pl.read_parquet(alone)
    assert one.columns == table.columns
    for column in ("source", "status", "sha256"):
        assert one[column].to_list() == table[column].to_list()
    for column in (c for c in one.columns if one[c].dtype == pl.Float64 and c != "seconds"):
        assert one[column].to_numpy() == pytest.approx(
            table[column].to_numpy(), abs=1e-4, nan_ok=True
        )


def test_a_run_goes_on_from_the_journal_that_it_finds(tmp_path: Path, fill: Fill):
    from medqua.serve.cluster.archive import _items, _keep
    from medqua.serve.offline.journal import Journal

    folder = fill(tmp_path / "in", 3)
    journal = Journal(tmp_path / "journal", {"run": 1})
    first = {"source": str(folder / "000.png"), "status": 200}
    rows = [{"answer": json.dumps({**first, "seconds": n})} for n in (1, 2)]
    told: list[tuple[int, int]] = []
    _keep(rows, journal, 3, lambda *done: told.append(done))
    assert [each["seconds"] for each in journal.answers()] == [1]  # the first counts
    assert told[-1] == (1, 3)
    left = [item["path"] for item in _items(folder, journal)]
    assert left == [str(folder / "001.png"), str(folder / "002.png")]
    journal.close()


def test_a_cluster_that_does_not_answer_is_told_without_a_traceback(
    environment: dict[str, str], bundle_folder: Path, tmp_path: Path, fill: Fill
):
    folder = fill(tmp_path / "in", 1)
    command = [*SERVE, "cluster", "batch", str(bundle_folder), str(folder), "out.parquet"]
    told = subprocess.run(
        [*command, "--address", "127.0.0.1:1"], capture_output=True, text=True, check=False,
        cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert told.returncode == 2
    assert "no cluster answers at 127.0.0.1:1" in told.stderr
    assert "Traceback" not in told.stderr
