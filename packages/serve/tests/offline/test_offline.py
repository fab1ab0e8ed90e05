import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from pydicom import dcmread

from medqua.core.errors import DataError
from medqua.core.model import Bundle
from medqua.serve.objects.identity import is_own
from medqua.serve.offline.run import paths_of, run_batch
from medqua.serve.processes.batcher import BATCH_TOLERANCE
from medqua.serve.settings import Batching, Settings

Fill = Callable[[Path, int], Path]
SETTINGS = Settings(batching=Batching(decoders=1, threads=1))


@pytest.mark.anyio
async def test_folder_and_zip_to_one_table(
    bundle: Bundle, bundle_folder: Path, tmp_path: Path, fill: Fill
):
    folder = fill(tmp_path / "in", 5)
    (folder / "bad.dcm").write_bytes(b"bad")
    with zipfile.ZipFile(folder / "more.zip", "w") as archive:
        archive.write(folder / "000.png", "inner/000.png")
    output = tmp_path / "out.parquet"
    told: list[tuple[int, int]] = []
    summary = await run_batch(
        bundle_folder, folder, output, SETTINGS, progress=lambda *done: told.append(done)
    )
    assert (summary.files, summary.read, summary.resumed) == (7, 6, 0)
    assert told[-1] == (7, 7)
    table = pl.read_parquet(output)
    assert table["source"].to_list() == sorted(table["source"].to_list())
    assert table.filter(pl.col("status") != 200)["source"].to_list() == [str(folder / "bad.dcm")]
    first = table.filter(pl.col("source") == str(folder / "000.png"))
    again = table.filter(pl.col("source") == str(folder / "more.zip" / "inner" / "000.png"))
    for finding in bundle.predict([folder / "000.png"])[0]:
        for row in (first, again):
            assert row[finding.label].item() == pytest.approx(
                finding.probability, abs=BATCH_TOLERANCE
            )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out.parquet"]


@pytest.mark.anyio
async def test_a_report_a_dicom_file_none_twice(
    bundle_folder: Path, tmp_path: Path, fill: Fill, shared_data: Path
):
    folder = fill(tmp_path / "in", 1)
    genuine = shared_data / "dicom" / "cxr_NIH_DX_implicit_nofinding.dcm"
    for name in ("a.dcm", "b.dcm"):
        (folder / name).write_bytes(genuine.read_bytes())
    output, reports = tmp_path / "out.parquet", tmp_path / "reports"
    summary = await run_batch(bundle_folder, folder, output, SETTINGS, sr=reports)
    assert (summary.read, summary.reports) == (3, 2)
    [file] = reports.iterdir()  # one image, one report
    assert dcmread(file).SOPInstanceUID == file.stem
    assert is_own(dcmread(file))
    assert pl.read_parquet(output)["report"].to_list() == [None, file.stem, file.stem]
    again = folder / "c.dcm"
    again.write_bytes(file.read_bytes())
    summary = await run_batch(bundle_folder, again, output, SETTINGS)
    assert (summary.files, summary.read) == (1, 0)
    [reason] = pl.read_parquet(output)["reason"]
    assert "written by MedQua" in reason


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
