"""Phantoms: what a cause does to the image, what the labels follow from, and the tree's layout."""

import gzip
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medqua.core.errors import ConfigError, DataError
from medqua.core.vision.image import ImageSpec, read_image
from medqua.train.data.mimic import read_mimic
from medqua.train.data.phantom import is_phantom_tree, write_tree
from medqua.train.data.phantom.canvas import Canvas, Exposure, Plane
from medqua.train.data.phantom.causes import (
    BORDERLINE,
    FINDINGS,
    OPAQUE,
    PREVALENCE,
    Cause,
    Patient,
    draw_patient,
    labels,
    next_study,
)
from medqua.train.data.phantom.detector import Storage, attenuation, expose, store
from medqua.train.data.phantom.sheet import contact_sheet

PA = Exposure(
    view="PA",
    height=180,
    width=160,
    shift=(0.0, 0.0),
    tilt=0.0,
    inspiration=1.0,
    dose=20.0,
    seed=1,
)


def healthy(seed: int = 3) -> Patient:
    return replace(draw_patient(np.random.default_rng(seed)), causes={})


def cause(severity: float = 0.8, side: int = -1) -> Cause:
    return Cause(severity=severity, side=side, place=(0.5, 0.5), seed=7)


def shown(finding: str, severity: float = 0.8, side: int = -1) -> Plane:
    return attenuation(replace(healthy(), causes={finding: cause(severity, side)}), PA)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantoms") / "tree"
    write_tree(root, patients=12, seed=5, size=96, processes=1)
    return root


@pytest.mark.parametrize("finding", sorted(PREVALENCE))
def test_every_cause_changes_the_image(finding: str):
    difference = np.abs(shown(finding) - attenuation(healthy(), PA))
    assert difference.max() > 0.05


@pytest.mark.parametrize("finding", ["Pleural Effusion", "Pneumothorax", "Consolidation"])
def test_a_cause_stays_on_its_side(finding: str):
    x = Canvas(PA).x
    for side in (-1, 1):
        difference = np.abs(shown(finding, side=side) - attenuation(healthy(), PA))
        assert difference[x * side < -0.1].max() < 1e-3 < difference[x * side > 0.1].max()


@settings(max_examples=8, deadline=None)
@given(st.floats(0.0, 0.45), st.floats(0.5, 1.0))
def test_more_severe_is_more(low: float, high: float):
    baseline = attenuation(healthy(), PA)

    def added(finding: str, severity: float) -> float:
        return float((shown(finding, severity) - baseline).sum())

    assert added("Pleural Effusion", high) > added("Pleural Effusion", low) > 0
    assert added("Cardiomegaly", high) > added("Cardiomegaly", low) > 0


def test_cardiomegaly_widens_the_heart_to_its_ratio():
    """The heart's added width follows the cardiothoracic ratio of its cause."""
    x, baseline = Canvas(PA).x, attenuation(healthy(), PA)
    widths = []
    for severity in (0.2, 0.6, 1.0):
        touched = np.abs(shown("Cardiomegaly", severity) - baseline) > 0.05
        widths.append(float(x[touched].max()))
    assert widths == sorted(widths)
    assert widths[-1] - widths[0] > 0.05


def test_pneumothorax_darkens_the_rim():
    assert (shown("Pneumothorax") - attenuation(healthy(), PA)).min() < -0.1


def test_exposure_alone_decides_the_noise():
    patient = healthy()
    assert np.array_equal(expose(patient, PA), expose(patient, PA))
    other = expose(patient, replace(PA, seed=2))
    assert not np.array_equal(expose(patient, PA), other)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_twins_of_one_exposure_add_up_to_the_full_scale(bits: int):
    signal = expose(healthy(), PA)
    two = store(signal, Storage(bits=bits, photometric="MONOCHROME2"))
    one = store(signal, Storage(bits=bits, photometric="MONOCHROME1"))
    assert two.max() < 1 << bits
    assert np.all(one.astype(int) + two.astype(int) == (1 << bits) - 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31))
def test_labels_follow_from_causes(seed: int):
    rng = np.random.default_rng(seed)
    patient = draw_patient(rng)
    for study in (patient, next_study(patient, rng)):
        found = labels(study.causes, rng)
        assert tuple(found) == FINDINGS
        assert set(found.values()) <= {1.0, 0.0, -1.0, None}
        for name in set(FINDINGS) - {"Lung Opacity", "Consolidation", "No Finding"}:
            if name not in study.causes:
                assert found[name] != 1.0
            elif name != "Support Devices" and study.causes[name].severity < BORDERLINE:
                assert found[name] == -1.0
        if any(found[name] == 1.0 for name in OPAQUE if name in study.causes):
            assert found["Lung Opacity"] == 1.0
        assert (found["No Finding"] == 1.0) == (not set(study.causes) - {"Support Devices"})


def test_tree_is_read_as_mimic_and_split_by_patient(tree: Path):
    assert is_phantom_tree(tree)
    manifest = read_mimic(tree)
    assert set(manifest.labels) == set(FINDINGS)
    split = pl.read_csv(tree / "mimic-cxr-2.0.0-split.csv.gz")
    assert set(split["split"]) <= {"train", "validate", "test"}
    assert split.group_by("subject_id").agg(pl.col("split").n_unique())["split"].max() == 1
    metadata = pl.read_csv(tree / "mimic-cxr-2.0.0-metadata.csv.gz")
    assert set(metadata["ViewPosition"]) <= {"AP", "PA", "LATERAL"}
    assert metadata["subject_id"].min() > 20_000_000  # no subject of MIMIC
    by_hand = pl.read_csv(tree / "mimic-cxr-2.1.0-test-set-labeled.csv")
    assert "Airspace Opacity" in by_hand.columns
    tested = split.filter(pl.col("split") == "test")["study_id"]
    assert set(by_hand["study_id"]) == set(tested)


def test_each_dicom_and_its_jpg_are_one_image(tree: Path):
    spec = ImageSpec(size=None, scope="any")
    seen = set()
    for dicom in sorted(tree.rglob("*.dcm")):
        ds = pydicom.dcmread(dicom)
        seen.add((ds.PhotometricInterpretation, ds.file_meta.TransferSyntaxUID.name))
        assert np.array_equal(read_image(dicom, spec), read_image(dicom.with_suffix(".jpg"), spec))
        assert str(ds.PatientName).startswith("PHANTOM^")
        assert ds.BitsStored in (10, 12, 14, 16)
        assert ds.ViewPosition in ("AP", "PA", "LL")
        assert list(ds.PatientOrientation) == ["P" if ds.ViewPosition == "LL" else "L", "F"]
        assert ds.Modality in ("CR", "DX")
    assert {photometric for photometric, _ in seen} == {"MONOCHROME1", "MONOCHROME2"}
    assert len({syntax for _, syntax in seen}) == 2


def test_reports_say_what_is_there(tree: Path):
    truth = pl.read_csv(tree / "phantom-truth.csv")
    for study, subject in truth.select("study_id", "subject_id").unique().rows():
        text = (tree / "files" / "p90" / f"p{subject}" / f"s{study}.txt").read_text()
        assert "SYNTHETIC" in text
        if study in truth.filter(pl.col("finding") == "Pneumothorax")["study_id"]:
            assert "pneumothorax" in text.lower() or "pleural air" in text.lower()


def test_bytes_do_not_depend_on_the_number_of_processes(tree: Path, tmp_path: Path):
    again = tmp_path / "again"
    write_tree(again, patients=12, seed=5, size=96, processes=2)
    files = sorted(p.relative_to(tree) for p in tree.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert all((tree / p).read_bytes() == (again / p).read_bytes() for p in files)


def test_a_tree_is_reused_or_refused(tree: Path, tmp_path: Path):
    before = sorted(p.stat().st_mtime_ns for p in tree.rglob("*"))
    write_tree(tree, patients=12, seed=5, size=96)
    assert before == sorted(p.stat().st_mtime_ns for p in tree.rglob("*"))
    with pytest.raises(DataError, match="other parameters"):
        write_tree(tree, patients=12, seed=6, size=96)
    (tmp_path / "else").mkdir()
    with pytest.raises(DataError, match="no phantom tree"):
        write_tree(tmp_path / "else", patients=12)
    with pytest.raises(ConfigError, match="at least 10"):
        write_tree(tmp_path / "few", patients=3)


def test_tables_are_gzip_without_a_time(tree: Path):
    data = (tree / "mimic-cxr-2.0.0-chexpert.csv.gz").read_bytes()
    assert data[4:8] == b"\0\0\0\0"
    assert gzip.GzipFile(fileobj=io.BytesIO(data)).readline().startswith(b"subject_id,study_id,")


def test_contact_sheet_is_drawn(tmp_path: Path):
    contact_sheet(tmp_path / "sheet.png", seed=1, size=48)
    spec = ImageSpec(size=None, scope="any")
    assert read_image(tmp_path / "sheet.png", spec).shape[1] == 5 * 48
