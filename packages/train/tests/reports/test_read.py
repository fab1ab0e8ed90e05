"""Reports from folders and archives in MIMIC-CXR's layout; those that are missing are named."""

import zipfile
from pathlib import Path

import polars as pl
import pytest

from medqua.core.errors import DataError
from medqua.train.data.mimic import LABELS, read_mimic
from medqua.train.data.phantom import write_tree
from medqua.train.reports.labeller import UNMENTIONED, label_text
from medqua.train.reports.read import ARCHIVE, read_reports, report_path, sections

ROWS = pl.DataFrame(
    {
        "patient_id": ["90000001", "90000001", "90000002"],
        "study_id": ["95000001", "95000001", "95000009"],
    }
)
TEXT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 COMPARISON:  None.

 FINDINGS:

 The lungs are clear.
 No effusion: none at all.

 IMPRESSION:

 No acute process.
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for patient, study in ROWS.unique().iter_rows():
        path = tmp_path / "tree" / report_path(patient, study)
        path.parent.mkdir(parents=True)
        path.write_text(TEXT if study.endswith("1") else " WET READ: 1 PM\n All is well.\n")
    return tmp_path / "tree"


def test_a_path_is_that_of_the_published_tree():
    assert report_path("10000032", "50414267") == "files/p10/p10000032/s50414267.txt"


def test_sections_are_those_with_a_heading_in_capitals():
    assert sections(TEXT) == {
        "findings": "The lungs are clear. No effusion: none at all.",
        "impression": "No acute process.",
    }
    assert sections("FINDINGS:\n\nIMPRESSION: Clear.") == {"impression": "Clear."}
    assert sections("nothing of the kind") == {}


def test_folder_archive_and_folder_of_an_archive_read_alike(folder: Path, tmp_path: Path):
    expected = read_reports(folder, ROWS, ["findings"])
    text = "The lungs are clear. No effusion: none at all."
    assert expected == ({"95000001": text}, ["95000009"])
    (tmp_path / "zip").mkdir()
    archive = tmp_path / "zip" / ARCHIVE
    with zipfile.ZipFile(archive, "w") as out:
        for path in folder.rglob("*.txt"):
            out.write(path, f"some/{path.relative_to(folder)}")
    assert read_reports(archive, ROWS, ["findings"]) == expected
    assert read_reports(archive.parent, ROWS, ["findings"]) == expected


def test_reports_of_a_phantom_tree_say_what_its_table_says(tmp_path: Path):
    root = tmp_path / "phantoms"
    write_tree(root, patients=10, seed=3, size=64, dicom=False, processes=1)
    rows = read_mimic(root, views=()).frame
    texts, without = read_reports(root, rows, ["findings", "impression"])
    assert not without
    for row in rows.select("study_id", *LABELS).iter_rows(named=True):
        said = label_text(texts[row["study_id"]])
        table = {name: UNMENTIONED if row[name] is None else row[name] for name in LABELS}
        assert said == table


def test_what_is_missing_is_named(folder: Path, tmp_path: Path):
    (folder / report_path("90000002", "95000009")).unlink()
    with pytest.raises(DataError, match="no report files/p90/p90000002/s95000009"):
        read_reports(folder, ROWS, ["findings"])
    with pytest.raises(DataError, match="no reports at"):
        read_reports(tmp_path / "absent", ROWS, ["findings"])
    (tmp_path / ARCHIVE).write_bytes(b"no zip")
    with pytest.raises(DataError, match="no zip archive"):
        read_reports(tmp_path / ARCHIVE, ROWS, ["findings"])
    with pytest.raises(DataError, match="names no studies"):
        read_reports(folder, ROWS.with_columns(study_id=pl.lit(None)), ["findings"])
