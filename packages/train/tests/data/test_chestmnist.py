from pathlib import Path

import numpy as np
import pytest

from medqua.core.errors import DataError
from medqua.core.vision.image import ImageSpec, read_image
from medqua.train.data.chestmnist import ARCHIVES, LABELS, fetch_chestmnist, read_chestmnist

COUNTS = {"train": 12, "val": 5, "test": 7}


def arrays(pixels: int = 28) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    result = {}
    for split, count in COUNTS.items():
        result[f"{split}_images"] = rng.integers(0, 256, (count, pixels, pixels), dtype=np.uint8)
        result[f"{split}_labels"] = rng.integers(0, 2, (count, 14), dtype=np.uint8)
    return result


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "chestmnist.npz"
    np.savez_compressed(path, **arrays())
    return path


def test_labels_and_images_keep_their_order(archive):
    manifest, store = read_chestmnist(archive, 28, check_md5=False)
    assert manifest.labels == LABELS
    assert manifest.counts()["validate"] == {"images": 5, "studies": 0, "patients": 0}
    rows = manifest.split("train")
    assert (rows.select(LABELS).to_numpy() == arrays()["train_labels"]).all()
    image = read_image(store.open(rows["image"][11]), ImageSpec(size=28), trusted=True)
    assert np.array_equal(image, arrays()["train_images"][11].astype(np.float32) / np.float32(255))
    assert store.absent(["train/11", "train/12", "test/6"]) == ["train/12"]


def test_images_are_mapped_from_disk_and_unpacked_once(archive):
    _, store = read_chestmnist(archive, 28, check_md5=False)
    assert isinstance(store.arrays["train"], np.memmap)
    before = (archive.with_suffix("") / "train_images.npy").stat().st_mtime_ns
    read_chestmnist(archive, 28, check_md5=False)
    assert (archive.with_suffix("") / "train_images.npy").stat().st_mtime_ns == before


def test_an_altered_archive_is_refused(archive):
    with pytest.raises(DataError, match=f"published is {ARCHIVES[28].md5}"):
        read_chestmnist(archive, 28)


@pytest.mark.parametrize("name", ["train_images", "test_labels"])
def test_a_missing_array_is_named(tmp_path, name):
    path = tmp_path / "x.npz"
    np.savez(path, **{key: value for key, value in arrays().items() if key != name})
    with pytest.raises(DataError, match=f"has no {name}.npy"):
        read_chestmnist(path, 28, check_md5=False)


def test_another_size_and_wrong_labels_are_refused(tmp_path, archive):
    with pytest.raises(DataError, match=r"data\.pixels"):
        read_chestmnist(archive, 64, check_md5=False)
    path = tmp_path / "x.npz"
    np.savez(path, **{**arrays(), "val_labels": np.zeros((5, 13), np.uint8)})
    with pytest.raises(DataError, match="val_labels is"):
        read_chestmnist(path, 28, check_md5=False)


def test_pickled_arrays_are_not_loaded(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, **{**arrays(), "train_labels": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(DataError, match="no intact npz"):
        read_chestmnist(path, 28, check_md5=False)


def test_what_is_no_archive(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"PK nothing")
    with pytest.raises(DataError, match="no intact npz"):
        read_chestmnist(tmp_path / "x.npz", 28, check_md5=False)
    with pytest.raises(DataError, match="no archive"):
        read_chestmnist(tmp_path / "y.npz", 28)


def test_nothing_is_downloaded_unasked(tmp_path, archive):
    with pytest.raises(DataError, match=r"data\.download=true"):
        fetch_chestmnist(tmp_path / "empty", 64, allow_download=False)
    with pytest.raises(DataError, match="28, 64, 128, 224"):
        fetch_chestmnist(tmp_path, 32, allow_download=True)
    assert fetch_chestmnist(tmp_path, 28, allow_download=False) == archive
    assert fetch_chestmnist(archive, 28, allow_download=False) == archive
