import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medqua.core.errors import DataError
from medqua.train.data.manifest import IGNORED, LabelPolicy, Manifest

ROWS = {
    "image": ["b.jpg", "a.jpg", "c.jpg"],
    "patient_id": ["p2", "p1", "p3"],
    "split": ["validate", "train", "test"],
    "Edema": pl.Series([1, 0, -1], dtype=pl.Int8),
    "Fracture": pl.Series([None, None, 1], dtype=pl.Int8),
}


def table(**changes: object) -> pl.DataFrame:
    return pl.DataFrame({**ROWS, **changes})


@pytest.mark.parametrize(
    ("uncertain", "blank", "expected"),
    [
        ("ignore", "zero", [[1, 0], [0, 0], [IGNORED, 1]]),
        ("zeros", "ignore", [[1, IGNORED], [0, IGNORED], [0, 1]]),
        ("ones", "zero", [[1, 0], [0, 0], [1, 1]]),
    ],
)
def test_policy_decides_uncertain_and_blank(uncertain, blank, expected):
    targets = LabelPolicy(uncertain, blank).targets(table().select("Edema", "Fracture"))
    assert targets.dtype == np.int8
    assert targets.tolist() == expected


def test_manifest_has_all_keys_in_order_and_is_sorted():
    manifest = Manifest.of(table(), "a test")
    assert manifest.frame.columns[:5] == ["image", "patient_id", "study_id", "split", "view"]
    assert manifest.labels == ("Edema", "Fracture")
    assert manifest.frame["image"].to_list() == ["a.jpg", "b.jpg", "c.jpg"]
    assert manifest.counts()["train"] == {"images": 1, "studies": 0, "patients": 1}


@settings(deadline=None)
@given(st.permutations(range(3)))
def test_fingerprint_does_not_know_the_order_of_rows(order):
    assert (
        Manifest.of(table()[list(order)], "a").fingerprint == Manifest.of(table(), "b").fingerprint
    )


@pytest.mark.parametrize("column", ["image", "patient_id", "split", "Edema"])
def test_fingerprint_knows_every_value(column):
    changed = {
        "image": ["x.jpg", "a.jpg", "c.jpg"],
        "patient_id": ["p9", "p1", "p3"],
        "split": ["test", "train", "test"],
        "Edema": pl.Series([1, 0, None], dtype=pl.Int8),
    }[column]
    other = Manifest.of(table(**{column: changed}), "a").fingerprint
    assert other != Manifest.of(table(), "a").fingerprint


def test_writing_and_reading_give_the_same_manifest(tmp_path):
    manifest = Manifest.of(table(), "a test")
    manifest.write(tmp_path / "m.parquet")
    again = Manifest.read(tmp_path / "m.parquet")
    assert again.frame.equals(manifest.frame)
    assert again.source == "a test"
    assert list(tmp_path.iterdir()) == [tmp_path / "m.parquet"]


def test_a_broken_parquet_file_is_an_error(tmp_path):
    (tmp_path / "m.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="no readable Parquet"):
        Manifest.read(tmp_path / "m.parquet")
    with pytest.raises(DataError, match="no manifest"):
        Manifest.read(tmp_path / "absent.parquet")


@pytest.mark.parametrize("name", ["val", "VALID", "validation", "dev"])
def test_usual_names_of_the_validation_split_are_understood(name):
    manifest = Manifest.of(table(split=[name, "train", "test"]), "a")
    assert manifest.split("validate").height == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split": ["trian", "train", "test"]}, "did you mean 'train'"),
        ({"split": [None, "train", "test"]}, "blank"),
        ({"image": ["a.jpg", "a.jpg", "c.jpg"]}, "more than once"),
        ({"image": [None, "a.jpg", "c.jpg"]}, "without an image"),
        ({"patient_id": ["p1", "p1", "p3"]}, "1 patients in more than one split"),
        ({"Edema": [2, 0, 1]}, "'Edema' holds 2"),
        ({"Edema": ["yes", "no", ""]}, "holds text"),
    ],
)
def test_what_a_manifest_cannot_be(changes, words):
    with pytest.raises(DataError, match=words):
        Manifest.of(table(**changes), "a test")


def test_no_label_no_row_and_no_image_of_a_split_are_errors():
    with pytest.raises(DataError, match="no label column"):
        Manifest.of(table().drop("Edema", "Fracture"), "a test")
    with pytest.raises(DataError, match="no image left"):
        Manifest.of(table()[:0], "a test")
    with pytest.raises(DataError, match="'train' split"):
        Manifest.of(table().filter(pl.col("split") != "train"), "a test").split("train")


def test_dropping_images_leaves_the_others():
    assert Manifest.of(table(), "a").drop(["b.jpg"]).frame["image"].to_list() == ["a.jpg", "c.jpg"]
