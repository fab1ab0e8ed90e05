"""What docs/serving.md tells to type, typed."""

import io
import json
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import polars as pl
import pytest

PAGE = Path(__file__).parents[4] / "docs" / "serving.md"


def blocks() -> list[str]:
    found = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [block for block in found if "curl" in block]


@pytest.fixture
def folder(tmp_path: Path, shared_data: Path, radiograph: bytes) -> Path:
    """A folder with the files that the page speaks of: a genuine chest radiograph, and a ZIP."""
    genuine = sorted((shared_data / "dicom").glob("cxr_*"))
    shutil.copy(genuine[0], tmp_path / "chest.dcm")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("1.png", radiograph)
        archive.write(genuine[0], "2.dcm")
    (tmp_path / "study.zip").write_bytes(packed.getvalue())
    return tmp_path


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_every_command_does_what_the_page_says(served, folder: Path):
    said = []
    assert len(blocks()) == 7
    for block in blocks():
        script = "set -euo pipefail\n" + block.replace("http://localhost:8080", served.url)
        script = script.replace("curl -s ", "curl -sS --fail-with-body -w '\\n' ")
        done = subprocess.run(
            ["bash", "-c", script], cwd=folder, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, (block, done.stdout[-500:], done.stderr)
        said.append(done.stdout)
    results = json.loads(said[0])["results"]
    assert [result["status"] for result in results] == [200]
    assert len(results[0]["findings"]) == 14
    assert pl.read_parquet(folder / "results.parquet")["status"].to_list() == [200, 200]
