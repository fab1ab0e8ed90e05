from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from medqua.core.errors import ConfigError, DataError
from medqua.core.findings.labels import NIH_NAMES
from medqua.train.data.folder import FolderColumns, read_folder
from medqua.train.data.split import SplitFractions


def write(root: Path, text: str, name: str = "labels.csv") -> Path:
    (root / name).write_text(text)
    return root


ROWS = "file,patient_id,view,Edema,No_Finding,age\n" + "".join(
    f"{i}.jpg,p{i % 40},{'AP' if i % 3 else 'LATERAL'},{i % 2},,60\n" for i in range(120)
)


def test_columns_are_found_by_name_and_patients_stay_together(tmp_path):
    manifest = read_folder(write(tmp_path, ROWS))
    assert manifest.labels == ("Edema", "No Finding")
    assert manifest.frame["No Finding"].null_count() == 120
    assert set(manifest.frame["split"]) == {"train", "validate", "test"}
    of_patient = manifest.frame.group_by("patient_id").agg(pl.col("split").n_unique())
    assert of_patient["split"].to_list() == [1] * 40


def test_views_are_filtered_where_known(tmp_path):
    assert read_folder(write(tmp_path, ROWS), views=("AP", "PA")).frame.height == 80
    blank = ROWS.replace(",LATERAL,", ",,")
    assert read_folder(write(tmp_path, blank), views=("AP", "PA")).frame.height == 120


def test_a_split_column_is_used(tmp_path):
    text = "image,patient,split,Mass\na.png,1,train,1\nb.png,2,val,0\nc.png,3,test,0\n"
    manifest = read_folder(write(tmp_path, text))
    assert manifest.frame["split"].to_list() == ["train", "validate", "test"]


def test_columns_and_labels_of_ones_own_are_named(tmp_path):
    text = "scan,person,set,broken rib\na.png,1,train,1\nb.png,2,val,0\nc.png,3,test,-1\n"
    columns = FolderColumns(image="scan", patient="person", split="set")
    manifest = read_folder(write(tmp_path, text), columns=columns, labels=("broken rib",))
    assert manifest.frame["broken rib"].to_list() == [1, 0, -1]


def test_the_table_of_nih_with_findings_in_one_column(tmp_path):
    text = (
        "Image Index,Finding Labels,Follow-up #,Patient ID,View Position\n"
        "00000001_000.png,Cardiomegaly|Pleural_Thickening,0,1,PA\n"
        "00000002_000.png,No Finding,0,2,PA\n"
    )
    write(tmp_path, text, "Data_Entry_2017_v2020.csv")
    (tmp_path / "images_001").mkdir()
    for name in ("00000001_000.png", "00000002_000.png"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "images_001" / name)
    manifest = read_folder(tmp_path)
    assert manifest.labels == NIH_NAMES
    assert manifest.frame["image"][0] == "images_001/00000001_000.png"
    first, second = manifest.frame.select(NIH_NAMES).rows(named=True)
    assert {name for name, value in first.items() if value == 1} == {
        "Cardiomegaly",
        "Pleural_Thickening",
    }
    assert set(second.values()) == {0}


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("Cardiomegaly|Granuloma", r"'Finding Labels' names unknown findings.*'Granuloma'"),
        ("Cardiomegalia", r"'Cardiomegalia' \(did you mean 'Cardiomegaly'\?\)"),
        ("Pleural Effusion", "'Pleural_Effusion'"),  # NIH's name is Effusion
        ("mass", r"'mass' \(did you mean 'Mass'\?\)"),
        ("", "unknown findings, among them ''"),
    ],
)
def test_an_unknown_finding_in_the_column_is_refused(tmp_path, said, words):
    text = f"file,patient_id,Finding Labels\na.png,1,{said}\nb.png,2,No Finding\n"
    with pytest.raises(DataError, match=words) as refused:
        read_folder(write(tmp_path, text))
    assert "data.other_findings names more" in str(refused.value)


def test_other_findings_may_be_named(tmp_path):
    text = "file,patient_id,Finding Labels\na.png,1,Mass|Old fracture\nb.png,2,No Finding\n"
    root = write(tmp_path, text)
    manifest = read_folder(root, labels=("Mass",), other_findings=("Old fracture",))
    assert manifest.labels == ("Mass",)
    assert manifest.frame["Mass"].to_list() == [1, 0]


def test_the_table_of_chexpert_with_patients_in_paths(tmp_path):
    text = "Path,Sex,Frontal/Lateral,AP/PA,Pleural Effusion\n" + "".join(
        f"v/train/patient0000{i}/study1/view{j}.jpg,F,{'Frontal' if j else 'Lateral'},"
        f"{'AP' if j else ''},{i % 2}.0\n"
        for i in range(9)
        for j in range(2)
    )
    columns = FolderColumns(patient_pattern=r"patient(\d+)")
    root = write(tmp_path, text, "train.csv")
    manifest = read_folder(
        root, columns=columns, views=("AP", "PA"), fractions=SplitFractions(0.3, 0.3)
    )
    assert manifest.frame.height == 9
    assert manifest.frame["patient_id"].n_unique() == 9


def test_real_radiographs(shared_data):
    manifest = read_folder(shared_data / "cxr", views=("AP", "PA"), stratify=True)
    assert manifest.frame.height == 754
    assert manifest.labels == (*NIH_NAMES, "No Finding")
    assert all((shared_data / "cxr" / name).is_file() for name in manifest.frame["image"])
    for split in ("train", "validate", "test"):
        rows = manifest.split(split)
        assert all((rows[name] == 1).any() for name in NIH_NAMES), split


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("patient_id,Edema\n1,1\n", r"no column of images.*data\.columns\.image"),
        ("file,Edema\na.png,1\n", r"no column of patients.*data\.columns\.patient"),
        ("file,patient_id,Edema\na.png,,1\n", "names no patient in 1 of 1"),
        ("file,patient_id,Edema\n,1,1\n", "names no image in 1 of 1"),
        ("file,patient_id,Edema\na.png,1,yes\n", "'Edema' holds text in 1 rows"),
        ("file,patient_id,Edema\na.png,1,7\n", "holds 7"),
        ("file,patient_id,rib\na.png,1,1\n", r"name yours by data\.labels"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, text, words):
    with pytest.raises(DataError, match=words):
        read_folder(write(tmp_path, text))


def test_names_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match=r"data\.root"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="it has no CSV file"):
        read_folder(tmp_path)
    write(tmp_path, ROWS)
    with pytest.raises(DataError, match=r"no table .*truth\.csv"):
        read_folder(tmp_path, table="truth.csv")
    with pytest.raises(DataError, match="did you mean 'file'"):
        read_folder(tmp_path, columns=FolderColumns(image="files"))
    with pytest.raises(DataError, match="did you mean 'Edema'"):
        read_folder(tmp_path, labels=("Edama",))
    with pytest.raises(ConfigError, match="needed one"):
        read_folder(tmp_path, columns=FolderColumns(patient_pattern="p(.)(.)"))
    with pytest.raises(ConfigError, match="no pattern"):
        read_folder(tmp_path, columns=FolderColumns(patient_pattern="("))
