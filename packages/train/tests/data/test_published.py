"""NIH ChestX-ray14, CheXpert and VinDr-CXR, in small data sets of the published layouts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from medqua.core.errors import ConfigError, DataError
from medqua.core.findings.labels import CHEXPERT_NAMES, NIH_NAMES
from medqua.train.data.chexpert import read_chexpert
from medqua.train.data.manifest import Manifest
from medqua.train.data.nih import read_nih
from medqua.train.data.vindr import VINDR_NAMES, read_vindr
from medqua.train.inputs import make_splits, open_data_set
from medqua.train.recipe import Recipe, load_recipe

NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(path)


def cells(names: Sequence[str], seen: set[str]) -> str:
    return ",".join(str(int(name in seen)) for name in names)


@pytest.fixture
def nih(tmp_path: Path) -> Path:
    """Forty patients of train_val, ten of test; each with a PA and an AP image."""
    lines, lists = [NIH_HEADER], {"train_val_list.txt": "", "test_list.txt": ""}
    findings = ("No Finding", "Cardiomegaly|Effusion", "Pleural_Thickening", "Hernia")
    for patient in range(50):
        for follow_up, view in enumerate(("PA", "AP")):
            name = f"{patient + 1:08d}_{follow_up:03d}.png"
            lines.append(
                f"{name},{findings[patient % 4]},{follow_up},{patient + 1},58,M,{view},2682,2749,"
                "0.143,0.143,"
            )
            lists["test_list.txt" if patient >= 40 else "train_val_list.txt"] += f"{name}\n"
            picture(tmp_path / f"images_{1 + patient % 3:03d}" / "images" / name)
    (tmp_path / "Data_Entry_2017.csv").write_text("\n".join(lines) + "\n")
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def chexpert(tmp_path: Path) -> Path:
    """Thirty patients in train.csv, four in valid.csv, each with a frontal and a lateral image."""
    header = f"Path,Sex,Age,Frontal/Lateral,AP/PA,{','.join(CHEXPERT_NAMES)}"
    for split, patients in (("train", range(30)), ("valid", range(30, 34))):
        lines = [header]
        for patient in patients:
            folder = f"{split}/patient{patient:05d}/study1"
            cells = ["", "1.0", "0.0", "-1.0"][patient % 4] if split == "train" else "0.0"
            for name, side, view in (
                ("view1_frontal", "Frontal", ("AP", "PA", "")[patient % 3]),
                ("view2_lateral", "Lateral", ""),
            ):
                labels = ",".join([cells] + ["1.0"] + [""] * 12)
                lines.append(
                    f"CheXpert-v1.0-small/{folder}/{name}.jpg,Female,68,{side},{view},{labels}"
                )
                picture(tmp_path / folder / f"{name}.jpg")
        (tmp_path / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def vindr(tmp_path: Path) -> Path:
    """Forty training images of three readers, ten of consensus."""
    folder = tmp_path / "annotations"
    folder.mkdir()
    lines = [f"image_id,rad_id,{','.join(VINDR_NAMES)}"]
    for image in range(40):
        picture(tmp_path / "train" / f"{image:032x}.png")
        for reader in range(3):  # image % 4 of the three see cardiomegaly
            seen = {"Cardiomegaly"} if reader < image % 4 else set()
            lines.append(f"{image:032x},R{reader + 1},{cells(VINDR_NAMES, seen)}")
    (folder / "image_labels_train.csv").write_text("\n".join(lines) + "\n")
    names = ["Other disease" if name == "Other diseases" else name for name in VINDR_NAMES]
    lines = [f"image_id,{','.join(names)}"]
    for image in range(40, 50):
        picture(tmp_path / "test" / f"{image:032x}.png")
        lines.append(f"{image:032x},{cells(names, {'Other disease'})}")
    (folder / "image_labels_test.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def splits(manifest: Manifest) -> dict[str, int]:
    return {name: row["images"] for name, row in manifest.counts().items()}


def recipe(kind: str, root: Path, *overrides: str) -> Recipe:
    return load_recipe(kind, [f"data.root={root}", "image.size=56", "data.workers=0", *overrides])


def test_nih_is_split_as_published_and_validates_on_other_patients(nih):
    manifest = read_nih(nih, validate=0.25)
    assert manifest.labels == NIH_NAMES
    assert splits(manifest)["test"] == 20
    held = splits(manifest)["validate"]
    assert 8 <= held <= 32
    assert held % 2 == 0  # both images of each patient
    assert splits(manifest)["train"] + held == 80
    first = manifest.frame.filter(pl.col("image") == "images_002/images/00000002_001.png")
    assert first["patient_id"].item() == "2"
    assert first["view"].item() == "AP"
    assert first["study_id"].item() == "2-1"
    said = {name for name in NIH_NAMES if first[name].item() == 1}
    assert said == {"Cardiomegaly", "Effusion"}
    assert all(first[name].item() == 0 for name in set(NIH_NAMES) - said)
    assert read_nih(nih, validate=0.25).fingerprint == manifest.fingerprint
    other = read_nih(nih, validate=0.25, seed=1)
    assert set(other.split("validate")["image"]) != set(manifest.split("validate")["image"])
    assert splits(read_nih(nih, views=("PA",)))["test"] == 10


def test_nih_answers_to_the_names_of_a_model_of_chexpert(nih):
    labels = ("Pleural Effusion", "Cardiomegaly", "No Finding")
    manifest = read_nih(nih, labels=labels)
    assert manifest.labels == labels
    row = manifest.frame.filter(pl.col("patient_id") == "2").row(0, named=True)
    assert [row[name] for name in labels] == [1, 1, 0]
    with pytest.raises(DataError, match="no label that means 'Support Devices'"):
        read_nih(nih, labels=("Support Devices",))
    with pytest.raises(DataError, match="did you mean 'Hernia'"):
        read_nih(nih, labels=("Herniae",))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda root: (root / "Data_Entry_2017.csv").unlink(), r"no table .*Data_Entry_2017\.csv"),
        (lambda root: (root / "test_list.txt").unlink(), r"test_list\.txt cannot be read"),
        (
            lambda root: edit(root / "Data_Entry_2017.csv", "View Position", "ViewPosition"),
            "no column 'View Position'; the nearest there is 'ViewPosition'",
        ),
        (
            lambda root: edit(root / "Data_Entry_2017.csv", "Hernia", "Hernai"),
            r"unknown findings, among them 'Hernai' \(did you mean 'Hernia'",
        ),
        (
            lambda root: edit(root / "Data_Entry_2017.csv", "No Finding", ""),
            "unknown findings, among them ''",
        ),
        (
            lambda root: edit(root / "train_val_list.txt", "00000007_000.png\n", ""),
            r"1 images that are in neither .*00000007_000\.png",
        ),
        (
            lambda root: edit(root / "test_list.txt", "00000041_0", "00000001_000.png\n00000041_0"),
            r"1 images are in both .*00000001_000\.png",
        ),
        (
            lambda root: picture(root / "images_009" / "00000001_000.png"),
            r"00000001_000\.png twice",
        ),
        (
            lambda root: (root / "images_001" / "images" / "00000001_000.png").unlink(),
            r"1 images that are not there, among them 00000001_000\.png",
        ),
    ],
)
def test_a_damaged_nih_is_refused_by_name(nih, damage, words):
    damage(nih)
    with pytest.raises(DataError, match=words):
        open_data_set(recipe("nih", nih).data, lambda _: None)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_chexpert_is_tested_by_radiologists_labels(chexpert):
    manifest = read_chexpert(chexpert, validate=0.3)
    assert manifest.labels == CHEXPERT_NAMES
    assert splits(manifest)["test"] == 4
    assert sum(splits(manifest).values()) == 34
    assert set(manifest.frame["view"]) == {"AP", "PA", None}  # frontal, though it says no more
    row = manifest.frame.filter(pl.col("patient_id") == "patient00003").row(0, named=True)
    assert row["image"] == "train/patient00003/study1/view1_frontal.jpg"
    assert row["study_id"] == "patient00003/study1"
    assert [row[name] for name in CHEXPERT_NAMES[:3]] == [-1, 1, None]
    everything = read_chexpert(chexpert, views=())
    assert sum(splits(everything).values()) == 68
    assert everything.frame["view"].value_counts().rows_by_key("view")["LATERAL"] == [(34,)]


def test_the_test_table_of_chexpert_makes_valid_the_validation(chexpert):
    (chexpert / "test_labels.csv").write_text(
        f"Path,{','.join(CHEXPERT_NAMES)}\n"
        f"test/patient64741/study1/view1_frontal.jpg{',0.0' * 14}\n"
        f"test/patient64741/study1/view2_lateral.jpg{',0.0' * 14}\n"
    )
    manifest = read_chexpert(chexpert, test="test")
    assert splits(manifest) == {"train": 30, "validate": 4, "test": 1}
    assert "test_labels.csv" in manifest.source


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda root: (root / "valid.csv").unlink(), r"no table .*valid\.csv: download CheXpert"),
        (lambda root: edit(root / "train.csv", "Path,", "File,"), "no column 'Path'"),
        (
            lambda root: edit(root / "train.csv", "Edema", "Oedema"),
            "no label that means 'Edema'",
        ),
        (
            lambda root: edit(root / "train.csv", "patient00003/", "person3/"),
            "names no patient in the Path of 2 of 60",
        ),
        (lambda root: edit(root / "train.csv", "-1.0", "-2.0"), "holds -2"),
        (lambda root: edit(root / "train.csv", "-1.0", "maybe"), "holds text in 14 rows"),
        (
            lambda root: edit(root / "valid.csv", "patient00030/", "patient00003/"),
            "1 patients in more than one split",
        ),
        (
            lambda root: (root / "valid/patient00031/study1/view1_frontal.jpg").unlink(),
            "1 images that are not there, among them valid/patient00031",
        ),
    ],
)
def test_a_damaged_chexpert_is_refused_by_name(chexpert, damage, words):
    damage(chexpert)
    with pytest.raises(DataError, match=words):
        open_data_set(recipe("chexpert", chexpert, "data.validate=0.3").data, lambda _: None)


def test_a_test_table_that_is_not_there(chexpert):
    with pytest.raises(DataError, match=r"no table .*test\.csv: .*data\.test=valid"):
        read_chexpert(chexpert, test="test")


def test_vindr_takes_the_majority_of_readers_and_their_consensus(vindr):
    manifest = read_vindr(vindr, source="png", validate=0.3)
    assert manifest.labels == VINDR_NAMES
    assert splits(manifest)["test"] == 10
    cardiomegaly = manifest.frame.filter(pl.col("split") != "test")["Cardiomegaly"]
    assert cardiomegaly.to_list() == [int(i % 4 >= 2) for i in range(40)]
    assert manifest.split("test")["Other diseases"].to_list() == [1] * 10
    assert manifest.frame["patient_id"].null_count() == 50
    assert manifest.frame["image"][0] == f"test/{40:032x}.png"


def test_readers_who_disagree_evenly_leave_a_label_uncertain(vindr):
    path = vindr / "annotations" / "image_labels_train.csv"
    rows = path.read_text().splitlines()
    path.write_text("\n".join(row for row in rows if ",R3," not in row) + "\n")
    manifest = read_vindr(vindr, labels=("Cardiomegaly", "Pleural Effusion", "No Finding"))
    told = manifest.frame.filter(pl.col("split") != "test")["Cardiomegaly"].to_list()
    assert told == [(0, -1, 1, 1)[i % 4] for i in range(40)]
    assert manifest.frame["image"][0].endswith(".dicom")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda root: (root / "annotations/image_labels_test.csv").unlink(),
            r"no table .*image_labels_test\.csv: download VinDr-CXR",
        ),
        (
            lambda root: edit(root / "annotations/image_labels_train.csv", "rad_id", "reader"),
            "no column 'rad_id'",
        ),
        (
            lambda root: edit(root / "annotations/image_labels_train.csv", "COPD", "CPOD"),
            "no label that means 'COPD'",
        ),
        (
            lambda root: edit(root / "annotations/image_labels_train.csv", ",R2,0", ",R2,-1"),
            "holds -1: a reader says 1 or 0",
        ),
        (
            lambda root: edit(root / "annotations/image_labels_train.csv", ",R2,", ",R1,"),
            "80 rows in which one reader reads one image more than once",
        ),
        (
            lambda root: (root / "test" / f"{41:032x}.png").unlink(),
            "1 images that are not there, among them test/",
        ),
    ],
)
def test_a_damaged_vindr_is_refused_by_name(vindr, damage, words):
    damage(vindr)
    with pytest.raises(DataError, match=words):
        open_data_set(recipe("vindr", vindr, "data.source=png").data, lambda _: None)


@pytest.mark.parametrize("kind", ["nih", "chexpert", "vindr"])
def test_a_published_set_is_read_to_its_images(kind, request, tmp_path):
    root = request.getfixturevalue(kind)
    extra = ("data.source=png",) if kind == "vindr" else ()
    own = recipe(kind, root, "data.validate=0.3", f"data.cache={tmp_path / 'cache'}", *extra)
    data = open_data_set(own.data, lambda _: None)
    parts = make_splits(own, data)
    assert all(len(part) and part[0]["readable"] for part in parts.values())
    assert parts["train"].targets.shape[1] == len(own.data.labels)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["nih", "chexpert", "vindr"])
@pytest.mark.parametrize(
    ("override", "words"),
    [("data.validate=1", r"data\.validate"), ("data.labels=", "at least one label")],
)
def test_what_a_recipe_of_a_published_set_cannot_say(kind, override, words):
    with pytest.raises(ConfigError, match=words):
        load_recipe(kind, [override])


@pytest.mark.parametrize("kind", ["nih", "chexpert", "vindr"])
def test_a_folder_that_is_not_there(kind, tmp_path):
    with pytest.raises(DataError, match=r"no folder .*data\.root"):
        open_data_set(recipe(kind, tmp_path / "nowhere").data, lambda _: None)
    with pytest.raises(ConfigError, match=r"data\.root is not given"):
        open_data_set(load_recipe(kind).data, lambda _: None)
