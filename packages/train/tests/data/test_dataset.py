from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medqua.core.errors import ConfigError, ShapeError, UnreadableImageError
from medqua.core.model.backbone import load_backbone
from medqua.core.vision.image import ImageSpec, read_image
from medqua.core.vision.processor import build_inputs
from medqua.train.data.augmentation import Augmentation
from medqua.train.data.dataset import Collator, RadiographDataset
from medqua.train.data.images import FolderStore
from medqua.train.data.manifest import IGNORED

SPEC = ImageSpec(size=56)
TARGETS = np.array([[1, 0], [0, IGNORED], [1, 1]], np.int8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "c.png"):
        Image.fromarray(rng.integers(0, 256, (80, 64), dtype=np.uint8)).save(tmp_path / name)
    return tmp_path


def make(root: Path, **options: object) -> RadiographDataset:
    names = ["a.png", "b.jpg", "c.png"]
    return RadiographDataset(names, TARGETS, FolderStore(root), SPEC, **options)  # type: ignore[arg-type]


def test_a_sample_is_the_image_as_it_is_served(root):
    sample = make(root)[1]
    assert np.array_equal(sample["image"], read_image(root / "b.jpg", SPEC))
    assert sample["labels"].tolist() == [0, IGNORED]


def test_a_batch_is_what_serving_builds(root):
    processor = load_backbone("tiny").processor
    data = make(root)
    batch = Collator(processor, "Findings?")([data[0], data[2]])
    images = [read_image(root / name, SPEC) for name in ("a.png", "c.png")]
    for name, value in build_inputs(processor, images, "Findings?").items():
        assert batch[name].equal(value), name
    assert batch["labels"].tolist() == [[1.0, 0.0], [1.0, 1.0]]
    assert batch["index"].tolist() == [0, 2]


def test_images_kept_in_memory_are_equal_bit_for_bit_and_need_no_file(root):
    Image.fromarray(np.arange(80 * 64, dtype=np.uint16).reshape(80, 64)).save(root / "c.png")
    fresh, kept = make(root), make(root)
    expected = [fresh[i]["image"] for i in range(3)]
    seen: list[int] = []
    kept.preload(2, seen.append)
    assert sum(seen) == 3
    for path in root.iterdir():
        path.unlink()
    for i in range(3):
        assert np.array_equal(kept[i]["image"], expected[i])


@pytest.mark.parametrize("damage", ["truncated", "absent", "empty"])
def test_an_unreadable_image_is_named(root, damage):
    path = root / "b.jpg"
    content = path.read_bytes()
    path.unlink()
    if damage != "absent":
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    with pytest.raises(UnreadableImageError, match=r"b\.jpg: .*data\.skip_unreadable=true"):
        make(root)[1]
    with pytest.raises(UnreadableImageError, match=r"b\.jpg"):
        make(root).preload(2)
    data = make(root, skip_unreadable=True)
    data.preload(1)
    sample = data[1]
    assert not sample["readable"]
    assert (sample["labels"] == IGNORED).all()
    assert not sample["image"].any()
    assert data.unreadable() == ["b.jpg"]


def test_augmentation_depends_on_seed_epoch_and_index_alone(root):
    augmentation = Augmentation(rotation=10.0, shift=0.1, zoom=0.1, contrast=0.2, brightness=0.1)
    first, second = (make(root, augmentation=augmentation, seed=3) for _ in range(2))
    first[2]
    assert np.array_equal(first[0]["image"], second[0]["image"])
    second.set_epoch(1)
    assert not np.array_equal(first[0]["image"], second[0]["image"])
    image = second[0]["image"]
    assert image.dtype == np.float32
    assert 0 <= image.min() <= image.max() <= 1


def test_augmentation_of_nothing_is_nothing_and_a_shift_is_a_shift():
    image = np.random.default_rng(0).random((40, 40), dtype=np.float32)
    assert Augmentation().apply(image, 0, 0, 0) is image
    spot = np.zeros((41, 41), np.float32)
    spot[20, 20] = 1
    moved = Augmentation(rotation=45.0).apply(spot, 0, 0, 0)
    assert np.unravel_index(moved.argmax(), moved.shape) == (20, 20)
    with pytest.raises(ConfigError, match="rotation"):
        Augmentation(rotation=90.0)


def test_what_a_data_set_cannot_be(root):
    with pytest.raises(ConfigError, match=r"image\.size"):
        RadiographDataset(["a.png"], TARGETS[:1], FolderStore(root), ImageSpec(size=None))
    with pytest.raises(ShapeError, match="1 images with 3 rows"):
        RadiographDataset(["a.png"], TARGETS, FolderStore(root), SPEC)
