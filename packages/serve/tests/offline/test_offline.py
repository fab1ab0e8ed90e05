import os
import random
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydicom import dcmread

from medqua.core.errors import DataError
from medqua.core.findings import CHEXPERT_NAMES, Calibration, name_findings
from medqua.core.model import Bundle
from medqua.serve.objects.identity import content_of, is_own
from medqua.serve.objects.reference import read_reference
from medqua.serve.offline.run import paths_of, run_batch
from medqua.serve.processes.batcher import BATCH_TOLERANCE
from medqua.serve.report.options import ReportOptions
from medqua.serve.report.sr import build_report, to_bytes
from medqua.serve.settings import Batching, Settings

Fill = Callable[[Path, int], Path]
SETTINGS = Settings(batching=Batching(decoders=1, threads=1))


def report_on(image: bytes) -> bytes:
    """A report of ours."""
    logits = np.zeros((1, 14), np.float32)
    [findings] = name_findings(logits, CHEXPERT_NAMES, Calibration.identity(14))
    options = ReportOptions({"bundle": "ab"}, content_of(image))
    return to_bytes(build_report(findings, read_reference(image), options))


@pytest.mark.anyio
async def test_folder_and_zip_to_one_table_and_a_report_a_dicom_file(
    bundle: Bundle, bundle_folder: Path, tmp_path: Path, fill: Fill, shared_data: Path
):
    genuine = (shared_data / "dicom" / "cxr_NIH_DX_implicit_nofinding.dcm").read_bytes()
    folder = fill(tmp_path / "in", 3)
    (folder / "bad.dcm").write_bytes(b"bad")
    for name in ("one.dcm", "same.dcm"):
        (folder / name).write_bytes(genuine)
    (folder / "own.dcm").write_bytes(report_on(genuine))
    with zipfile.ZipFile(folder / "more.zip", "w") as archive:
        archive.write(folder / "000.png", "inner/000.png")
    output, reports = tmp_path / "out.parquet", tmp_path / "reports"
    told: list[tuple[int, int]] = []
    summary = await run_batch(
        bundle_folder, folder, output, SETTINGS, sr=reports,
        progress=lambda *done: told.append(done),
    )  # fmt: skip
    assert (summary.files, summary.read, summary.resumed, summary.reports) == (8, 6, 0, 2)
    assert told[-1] == (8, 8)
    table = pl.read_parquet(output)
    assert table["source"].to_list() == sorted(table["source"].to_list())
    rows = {Path(row["source"]).relative_to(folder).as_posix(): row for row in table.to_dicts()}
    assert [name for name, row in rows.items() if row["status"] != 200] == ["bad.dcm", "own.dcm"]
    assert "written by MedQua" in rows["own.dcm"]["reason"]
    for finding in bundle.predict([folder / "000.png"])[0]:
        for name in ("000.png", "more.zip/inner/000.png"):
            assert rows[name][finding.label] == pytest.approx(
                finding.probability, abs=BATCH_TOLERANCE
            )
    [file] = reports.iterdir()  # one image, one report
    assert dcmread(file).SOPInstanceUID == file.stem
    assert is_own(dcmread(file))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600  # it names a patient
    assert stat.S_IMODE(reports.stat().st_mode) == 0o700
    assert {name for name, row in rows.items() if row["report"]} == {"one.dcm", "same.dcm"}
    assert rows["one.dcm"]["report"] == rows["same.dcm"]["report"] == file.stem
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out.parquet", "reports"}


def test_manifests_name_files_from_their_own_folder(tmp_path: Path):
    table = pl.DataFrame({"id": [1, 2, 3], "Path": ["a.png", "/abs/b.png", None]})
    table.write_csv(tmp_path / "m.csv")
    table.write_parquet(tmp_path / "m.parquet")
    for name in ("m.csv", "m.parquet"):
        assert list(paths_of(tmp_path / name)) == [tmp_path / "a.png", Path("/abs/b.png")]
    pl.DataFrame({"id": [1]}).write_csv(tmp_path / "no.csv")
    with pytest.raises(DataError, match="columns id: needed is one of path"):
        list(paths_of(tmp_path / "no.csv"))
    (tmp_path / "bad.parquet").write_bytes(b"bad")
    with pytest.raises(DataError, match="cannot be read as a table"):
        list(paths_of(tmp_path / "bad.parquet"))


@pytest.mark.anyio
async def test_sources_and_tables_that_are_none(bundle_folder: Path, tmp_path: Path):
    with pytest.raises(DataError, match="is not there"):
        await run_batch(bundle_folder, tmp_path / "absent", tmp_path / "o.parquet", SETTINGS)
    with pytest.raises(DataError, match="suffix"):
        await run_batch(bundle_folder, tmp_path, tmp_path / "o.csv", SETTINGS)


@pytest.mark.slow
def test_killed_at_any_time_no_file_is_lost_or_twice(
    bundle_folder: Path, tmp_path: Path, fill: Fill
):
    kills = int(os.environ.get("MEDQUA_TEST_KILLS", "3"))
    count = 10 * kills + 30  # some are left to read after the last kill
    folder = fill(tmp_path / "in", count)
    output, journal = tmp_path / "out.parquet", tmp_path / "out.parquet.journal"
    command = [sys.executable, "-m", "medqua.serve", "batch", str(bundle_folder), str(folder)]
    command += [str(output), "batching.max_batch_size=1", "batching.threads=1"]
    dice = random.Random(3)

    def lines() -> int:
        return journal.read_bytes().count(b"\n") if journal.exists() else 0

    for _ in range(kills):
        before = lines()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        until = before + dice.randint(1, 8)
        while lines() < until:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{count} read, 0 refused" in done.stdout
    table = pl.read_parquet(output)
    assert table["source"].to_list() == [str(folder / f"{n:03}.png") for n in range(count)]
    assert set(table["status"]) == {200}
    assert not journal.exists()
