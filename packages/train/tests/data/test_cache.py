import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from torch.utils.data import DataLoader

from medqua.core.errors import ConfigError, DataError, UnreadableImageError
from medqua.core.vision.image import ImageSpec, read_image
from medqua.train.data.cache import ImageCache, build_cache, cache_key, shards
from medqua.train.data.cache.shards import images_per_shard, shard_path
from medqua.train.data.dataset import RadiographDataset
from medqua.train.data.images import ArrayStore, FolderStore
from medqua.train.data.levels import compact, expand

SPEC = ImageSpec(size=56)
NAMES = [f"{i}.png" for i in range(7)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in NAMES:
        Image.fromarray(rng.integers(0, 256, (80, 64), dtype=np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def two_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 2 * 56**2)


def build(root: Path, **options: object) -> ImageCache:
    options = {"workers": 1} | options
    spec = options.pop("spec", SPEC)
    return build_cache(root.parent / "cache", FolderStore(root), spec, "test", NAMES, **options)  # type: ignore[arg-type]


@given(st.integers(0, 2**32 - 1), st.sampled_from(["uint8", "uint16", "float32"]))
def test_levels_come_back_bit_for_bit_in_the_smallest_type(seed, kind):
    rng = np.random.default_rng(seed)
    if kind == "float32":
        image = rng.random((3, 4), dtype=np.float32)
        image[0, 0] = np.float32(1 / 3) + np.spacing(np.float32(1 / 3))  # 21845.03 of 65535
    else:
        most = np.iinfo(kind).max
        image = rng.integers(0, most, (3, 4), endpoint=True).astype(np.float32) / np.float32(most)
        image[0, 0] = np.float32(1 / most)  # no level of 8 bits where there are 16
    levels = compact(image)
    assert levels.dtype == kind
    assert expand(levels).tobytes() == image.tobytes()


@pytest.mark.parametrize("profile", ["mimic-cxr-jpg", "display"])
@pytest.mark.parametrize("size", [224, 448])
def test_real_files_come_from_the_cache_as_they_are(shared_data, tmp_path, profile, size):
    files = sorted((shared_data / "dicom").glob("cxr_*.dcm"))
    files += sorted((shared_data / "dicom" / "derived_cxr").glob("*.dcm"))[:3]
    files += sorted((shared_data / "cxr").rglob("*.jpg"))[:5]
    files += sorted((shared_data / "cxr").rglob("*.png"))[:3]
    names = [file.relative_to(shared_data).as_posix() for file in files]
    spec = ImageSpec(size=size, profile=profile, scope="any")
    cache = build_cache(tmp_path, FolderStore(shared_data), spec, "real files", names, workers=2)
    cached = cache.images(names)
    for position, name in enumerate(names):
        direct = read_image(shared_data / name, spec, trusted=True)
        assert cached.read(position).tobytes() == direct.tobytes(), name
    types = set(cache.index["type"])
    assert types == ({0} if profile == "mimic-cxr-jpg" else {0, 2})  # whole levels; what is shown


def test_a_data_set_is_equal_with_a_cache_and_needs_no_source(root, two_a_shard):
    targets = np.zeros((7, 1), np.int8)
    direct = RadiographDataset(NAMES, targets, FolderStore(root), SPEC)
    expected = [direct[i]["image"] for i in range(7)]
    seen: list[int] = []
    cache = build(root, advance=seen.append)
    assert sum(seen) == 7
    assert len(list(cache.folder.glob("*.safetensors"))) == 4
    assert not list(cache.folder.glob(".*.partial"))
    for name in NAMES:
        (root / name).unlink()
    data = RadiographDataset(
        NAMES, targets, FolderStore(root), SPEC, cache=build(root).images(NAMES)
    )
    for workers in (0, 2):
        loader = DataLoader(data, batch_size=None, num_workers=workers)
        for sample, image in zip(loader, expected, strict=True):
            assert np.array_equal(sample["image"], image)
    other = pickle.loads(pickle.dumps(data))
    assert np.array_equal(other[3]["image"], expected[3])


def test_any_selection_and_order_is_read_by_name(root, two_a_shard):
    cached = build(root).images(["5.png", "0.png"])
    assert np.array_equal(cached.read(0), read_image(root / "5.png", SPEC))
    assert np.array_equal(cached.read(1), read_image(root / "0.png", SPEC))
    with pytest.raises(DataError, match=r"does not list 1 images.*lost\.png.*index\.parquet"):
        build(root).images(["0.png", "lost.png"])


def test_another_specification_data_set_or_selection_has_another_cache():
    keys = {
        cache_key(SPEC, "a", NAMES),
        cache_key(ImageSpec(size=84), "a", NAMES),
        cache_key(ImageSpec(size=56, fit="crop"), "a", NAMES),
        cache_key(SPEC, "b", NAMES),
        cache_key(SPEC, "a", NAMES[1:]),
        cache_key(SPEC, "a", NAMES[::-1]),
        cache_key(SPEC, "a", ["0.png1.png", *NAMES[2:]]),
    }
    assert len(keys) == 7
    assert cache_key(SPEC, "a", NAMES) in keys


def test_a_cache_holds_what_its_files_say(root):
    cache = build(root)
    with safe_open(shard_path(cache.folder, 0), "numpy") as shard:
        assert shard.metadata() == {"medqua.cache": cache.folder.name}
        assert shard.get_tensor("uint8").shape == (7, 56, 56)
    about = pl.read_parquet_metadata(cache.folder / "index.parquet")
    assert json.loads(about["medqua.spec"]) == SPEC.to_dict()
    assert cache.index["source_bytes"].to_list() == [(root / name).stat().st_size for name in NAMES]


@pytest.mark.parametrize("place", [0.05, 0.3, 0.9, -1])
def test_a_flipped_byte_names_the_shard_and_what_to_do(root, two_a_shard, place):
    cache = build(root)
    path = shard_path(cache.folder, 1)
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")  # after the header, whose damage is below
    with safe_open(path, "numpy") as shard:
        pixels = shard.get_tensor("uint8").tobytes()
    start = content.index(pixels)
    content[start + (len(pixels) - 1 if place == -1 else int(len(pixels) * place))] ^= 1
    path.write_bytes(content)
    cached = build(root).images(NAMES)
    with pytest.raises(DataError, match=rf"{path.name} is damaged.*delete that file and start"):
        [cached.read(i) for i in (2, 3)]
    assert cached.read(0) is not None
    path.unlink()
    repaired = build(root).images(NAMES)
    assert np.array_equal(repaired.read(2), read_image(root / "2.png", SPEC))


def test_a_truncated_shard_is_found_and_one_of_another_cache_replaced(root, two_a_shard):
    cache = build(root)
    path = shard_path(cache.folder, 0)
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(DataError, match=rf"{path.name} is damaged"):
        build(root).images(NAMES).read(0)
    (cache.folder / "index.parquet").unlink()  # now it is resumed, which looks at each shard
    assert np.array_equal(build(root).images(NAMES).read(0), read_image(root / "0.png", SPEC))
    other = build_cache(root.parent / "other", FolderStore(root), SPEC, "other", NAMES, workers=1)
    path.write_bytes(shard_path(other.folder, 0).read_bytes())
    (cache.folder / "index.parquet").unlink()
    assert path.read_bytes() != content
    build(root)
    assert path.read_bytes() == content


def test_a_damaged_index_says_that_it_can_be_deleted(root):
    index = build(root).folder / "index.parquet"
    content = index.read_bytes()
    index.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"index\.parquet cannot be read.*delete it"):
        build(root)
    pl.DataFrame({"image": NAMES}).write_parquet(index)
    with pytest.raises(DataError, match=r"has the columns \['image'\]: delete it"):
        build(root)
    index.unlink()
    assert len(build(root)) == 7


def test_an_unreadable_image_is_named_or_recorded(root, two_a_shard):
    (root / "3.png").write_bytes(b"no image")
    with pytest.raises(UnreadableImageError, match=r"3\.png: .*data\.skip_unreadable=true"):
        build(root)
    with pytest.raises(UnreadableImageError, match=r"3\.png"):
        build(root, workers=2)
    cached = build(root, skip_unreadable=True).images(NAMES)
    assert cached.read(3) is None
    strict = RadiographDataset(
        NAMES, np.zeros((7, 1), np.int8), FolderStore(root), SPEC, cache=cached
    )
    with pytest.raises(UnreadableImageError, match=r"3\.png"):
        strict[3]
    assert strict[4]["readable"]


def test_sources_that_changed_since_are_found(root):
    cache = build(root)
    assert cache.changed(FolderStore(root)) == []
    with (root / "2.png").open("ab") as file:
        file.write(b"x")
    (root / "5.png").unlink()
    assert cache.changed(FolderStore(root)) == ["2.png", "5.png"]


def test_arrays_mapped_from_disk_are_cached_by_other_processes(tmp_path, two_a_shard):
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    np.save(tmp_path / "train.npy", images)
    store = ArrayStore({"train": np.load(tmp_path / "train.npy", mmap_mode="r")})
    assert len(pickle.dumps(store)) < images.nbytes
    names = [f"train/{i}" for i in range(5)]
    assert store.sizes([*names, "train/5"]) == [784] * 5 + [-1]
    cached = build_cache(tmp_path, store, SPEC, "arrays", names, workers=2).images(names)
    for i, name in enumerate(names):
        assert np.array_equal(cached.read(i), read_image(store.open(name), SPEC, trusted=True))


def test_what_cannot_be_written_or_is_of_no_size(root, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data\.cache = .*file"):
        build_cache(tmp_path / "file", FolderStore(root), SPEC, "test", NAMES)
    with pytest.raises(ConfigError, match=r"image\.size"):
        build(root, spec=ImageSpec(size=None))


@pytest.mark.skipif(sys.platform != "linux", reason="limits a file's size as Linux does")
def test_a_full_disk_leaves_no_half_shard(root):
    program = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000));" + PROGRAM
    )
    done = subprocess.run(
        [sys.executable, "-c", program, root, root.parent / "cache", "7"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "DataError" in done.stderr
    assert "free space or give another data.cache" in done.stderr
    assert not list((root.parent / "cache").rglob("*.safetensors"))
    assert len(build(root)) == 7


PROGRAM = """
import sys
from pathlib import Path
from medqua.core.vision.image import ImageSpec
from medqua.train.data.cache import build_cache, shards
from medqua.train.data.images import FolderStore
shards.SHARD_BYTES = 2 * 56**2
build_cache(
    Path(sys.argv[2]), FolderStore(Path(sys.argv[1])), ImageSpec(size=56), "test",
    [f"{i}.png" for i in range(int(sys.argv[3]))], workers=1,
)
"""


STOPS = """
from medqua.train.data.images import FolderStore
read = FolderStore.open
def stop(store, name):
    if name == "10.png":
        print("there", flush=True)
        sys.stdin.read()
    return read(store, name)
FolderStore.open = stop
"""
"""Before `PROGRAM`: it comes as far as the tenth image, says so and waits to be killed."""


def test_two_processes_share_the_work_and_a_killed_one_is_resumed(tmp_path, two_a_shard, patience):
    count = 100
    folder = tmp_path / "images"
    folder.mkdir()
    image = np.random.default_rng(0).integers(0, 256, (500, 500), dtype=np.uint8)
    Image.fromarray(image).save(folder / "0.png")
    for i in range(1, count):
        os.link(folder / "0.png", folder / f"{i}.png")
    arguments = [folder, tmp_path / "cache", str(count)]
    command = [sys.executable, "-c", PROGRAM, *arguments]
    with subprocess.Popen(
        [sys.executable, "-c", "import sys" + STOPS + PROGRAM, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as first:  # fmt: skip
        assert first.stdout is not None
        assert first.stdout.readline() == "there\n"
        first.send_signal(signal.SIGKILL)
    written = list((tmp_path / "cache").rglob("[0-9]*.safetensors"))
    assert not list((tmp_path / "cache").rglob("index.parquet"))
    before = {path: path.stat().st_mtime_ns for path in written}
    assert 0 < len(before) < count // 2
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(patience) for process in both] == [0, 0]
    names = [f"{i}.png" for i in range(count)]
    assert {path: path.stat().st_mtime_ns for path in written} == before
    cache = build_cache(tmp_path / "cache", FolderStore(folder), SPEC, "test", names)
    assert len(cache) == count
    cached = cache.images(names)
    expected = read_image(folder / "0.png", SPEC)
    assert all(np.array_equal(cached.read(i), expected) for i in range(count))
    assert not list(cache.folder.glob(".*.partial"))


def test_a_shard_holds_some_tens_of_megabytes():
    assert images_per_shard(224) == 668
    assert images_per_shard(8192) == 1
