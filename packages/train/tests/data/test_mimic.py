import gzip
from pathlib import Path

import polars as pl
import pytest

from medqua.core.errors import DataError
from medqua.train.data.mimic import LABELS, read_mimic

STUDIES = {  # study -> (subject, {label: value})
    50414267: (10000032, {"Edema": "1.0", "Fracture": "0.0"}),
    53189527: (10000032, {"No Finding": "1.0"}),
    57375967: (10000764, {"Pneumonia": "-1.0"}),
    58836461: (10000898, {"Lung Opacity": "1.0"}),
}
IMAGES = [  # dicom_id, study, view, split
    ("02aa804e", 50414267, "PA", "train"),
    ("174413ec", 50414267, "LATERAL", "train"),
    ("2a2277a9", 53189527, "AP", "train"),
    ("096052b7", 57375967, "PA", "validate"),
    ("dcfeeac4", 58836461, "AP", "test"),
    ("ffffffff", 59999999, "AP", "test"),  # a study that no labeler read
    ("eeeeeeee", 58836461, "", "test"),
]


def write(root: Path, stem: str, lines: list[str], *, packed: bool = True) -> None:
    text = "\n".join(lines) + "\n"
    if packed:
        (root / f"{stem}.csv.gz").write_bytes(gzip.compress(text.encode()))
    else:
        (root / f"{stem}.csv").write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    subject = {study: value[0] for study, value in STUDIES.items()} | {59999999: 10000999}
    write(
        tmp_path,
        "mimic-cxr-2.0.0-split",
        ["dicom_id,study_id,subject_id,split"]
        + [f"{d},{s},{subject[s]},{split}" for d, s, _, split in IMAGES],
    )
    write(
        tmp_path,
        "mimic-cxr-2.0.0-metadata",
        ["dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows"]
        + [f'{d},{subject[s]},{s},"CHEST (PA, LAT)",{v},3056' for d, s, v, _ in IMAGES],
    )
    for labeler in ("chexpert", "negbio"):
        write(
            tmp_path,
            f"mimic-cxr-2.0.0-{labeler}",
            ["subject_id,study_id," + ",".join(LABELS)]
            + [
                f"{person},{study}," + ",".join(found.get(name, "") for name in LABELS)
                for study, (person, found) in STUDIES.items()
            ],
        )
    write(
        tmp_path,
        "mimic-cxr-2.1.0-test-set-labeled",
        [
            "study_id," + ",".join(LABELS).replace("Lung Opacity", "Airspace Opacity"),
            "58836461," + ",".join("0.0" if name == "Lung Opacity" else "1.0" for name in LABELS),
        ],
        packed=False,
    )
    return tmp_path


def test_frontal_images_with_their_official_path_and_labels(root):
    frame = read_mimic(root).frame
    assert frame["image"].to_list() == [
        "files/p10/p10000032/s50414267/02aa804e.jpg",
        "files/p10/p10000032/s53189527/2a2277a9.jpg",
        "files/p10/p10000764/s57375967/096052b7.jpg",
        "files/p10/p10000898/s58836461/dcfeeac4.jpg",
    ]
    assert frame.columns[5:] == list(LABELS)
    row = frame.row(0, named=True)
    assert (row["patient_id"], row["study_id"], row["view"]) == ("10000032", "50414267", "PA")
    assert (row["Edema"], row["Fracture"], row["Pneumonia"]) == (1, 0, None)
    assert frame.row(2, named=True)["Pneumonia"] == -1


def test_every_view_on_request_and_dicom_names(root):
    frame = read_mimic(root, views=(), source="dicom").frame
    assert frame.height == 6
    assert frame["image"][0].endswith("02aa804e.dcm")


def test_rows_in_another_order_give_the_same_manifest(root):
    expected = read_mimic(root).frame
    path = root / "mimic-cxr-2.0.0-metadata.csv.gz"
    head, *rows = gzip.decompress(path.read_bytes()).decode().splitlines()
    write(root, "mimic-cxr-2.0.0-metadata", [head, *reversed(rows)])
    assert read_mimic(root).frame.equals(expected)


def test_the_radiologists_labels_replace_those_of_the_test_split(root):
    frame = read_mimic(root, test_labels="radiologist").frame
    test = frame.filter(pl.col("split") == "test").row(0, named=True)
    assert test["Lung Opacity"] == 0  # "Airspace Opacity" there
    assert test["Edema"] == 1
    assert frame.filter(pl.col("split") == "train").equals(
        read_mimic(root).frame.filter(pl.col("split") == "train")
    )


def test_labels_in_the_order_asked_for(root):
    assert read_mimic(root, labels=("Pneumonia", "Edema")).labels == ("Pneumonia", "Edema")


def test_an_unpacked_table_with_a_byte_order_mark_is_read(root):
    packed = root / "mimic-cxr-2.0.0-split.csv.gz"
    text = gzip.decompress(packed.read_bytes())
    packed.unlink()
    (root / "mimic-cxr-2.0.0-split.csv").write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
    assert read_mimic(root).frame.height == 4


def test_a_missing_or_misnamed_table_is_named(root):
    path = root / "mimic-cxr-2.0.0-split.csv.gz"
    path.rename(root / "mimic-cxr-2.0.0-splits.csv.gz")
    with pytest.raises(DataError, match=r"splits\.csv\.gz is there: rename it"):
        read_mimic(root)
    with pytest.raises(DataError, match=r"data\.root is the folder"):
        read_mimic(root / "nowhere")


def test_a_missing_column_is_named_with_the_nearest(root):
    write(root, "mimic-cxr-2.0.0-metadata", ["dicom_id,View_Position", "02aa804e,PA"])
    with pytest.raises(DataError, match="'ViewPosition'; the nearest there is 'View_Position'"):
        read_mimic(root)


def test_a_missing_label_is_named(root):
    with pytest.raises(DataError, match=r"no column 'Hernia'.*data\.labels"):
        read_mimic(root, labels=("Edema", "Hernia"))


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b broken", b"dicom_id,ViewPosition\n"])
def test_a_damaged_table_is_an_error_with_advice(root, content):
    (root / "mimic-cxr-2.0.0-metadata.csv.gz").write_bytes(content)
    with pytest.raises(DataError, match="download it again"):
        read_mimic(root)


def test_a_truncated_table_is_an_error_with_advice(root):
    path = root / "mimic-cxr-2.0.0-chexpert.csv.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="download it again"):
        read_mimic(root)


def test_identifiers_that_are_no_numbers_are_an_error(root):
    write(root, "mimic-cxr-2.0.0-split", ["dicom_id,study_id,subject_id,split", "a,s1,p1,train"])
    with pytest.raises(DataError, match="no intact table"):
        read_mimic(root)


def test_a_wrong_split_name_is_an_error(root):
    path = root / "mimic-cxr-2.0.0-split.csv.gz"
    write(
        root,
        "mimic-cxr-2.0.0-split",
        gzip.decompress(path.read_bytes()).decode().replace("validate", "holdout").splitlines(),
    )
    with pytest.raises(DataError, match="unknown split names 'holdout'"):
        read_mimic(root)


def test_a_label_that_is_no_label_is_an_error(root):
    write(
        root, "mimic-cxr-2.0.0-chexpert", ["study_id," + ",".join(LABELS), "50414267,3" + "," * 13]
    )
    with pytest.raises(DataError, match=r"chexpert\.csv\.gz, column 'Atelectasis' holds 3"):
        read_mimic(root)


def test_no_image_left_is_an_error(root):
    with pytest.raises(DataError, match=r"data\.views"):
        read_mimic(root, views=("LAO",))
