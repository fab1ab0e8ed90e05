import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from medqua.core.errors import ImageError, UnreadableImageError
from medqua.core.vision.image import Decoder, ImageSpec, read_image
from medqua.core.vision.limits import Limits
from medqua.core.vision.recipe import encode_jpeg
from medqua.core.vision.sandbox import Sandbox

ANY = ImageSpec(size=64, scope="any")
JPG = encode_jpeg(np.add.outer(np.arange(90), np.arange(80)).astype(np.uint8))


@pytest.fixture(scope="module")
def decoder():
    with Decoder() as decoder:
        yield decoder


def secrets(path: Path) -> set[str]:
    """Texts of ten or more characters that a file holds."""
    data = path.read_bytes()
    texts, current = set(), bytearray()
    for byte in data[:200_000] + b"\0":
        if 32 < byte < 127:
            current.append(byte)
        else:
            if len(current) >= 10:
                texts.add(current.decode())
            current.clear()
    return texts


def test_every_hostile_file_ends_in_an_image_or_an_error(shared_data: Path, decoder: Decoder):
    files = sorted(path for path in (shared_data / "malformed").rglob("*") if path.is_file())
    images, messages = 0, {}
    for path in files:
        try:
            image = decoder.read(path, ANY).image
            assert image.shape == (64, 64)
            images += 1
        except ImageError as error:
            messages[path] = str(error)
    for path, message in messages.items():
        assert len(message) < 250
        assert not [text for text in secrets(path) if text in message], path.name
    assert len(files) > 200
    assert 100 < images < len(files)


def test_equals_decoding_in_process(shared_data: Path, decoder: Decoder):
    for name in ("cxr_CR-MONO1-10-chest", "cxr_NIH_DX_implicit_nofinding"):
        path = shared_data / "dicom" / f"{name}.dcm"
        for spec in (ImageSpec(), ImageSpec(profile="display", size=None)):
            inside, trusted = decoder.read(path, spec), Decoder(trusted=True).read(path, spec)
            assert np.array_equal(inside.image, trusted.image)
            assert inside.header == trusted.header
        assert np.array_equal(read_image(path, ANY), read_image(path, ANY, trusted=True))


def test_one_process_serves_many_files(decoder: Decoder):
    decoder.read(JPG, ANY)
    process = decoder._sandbox._process
    with pytest.raises(UnreadableImageError, match="neither"):
        decoder.read(b"text", ANY)
    decoder.read(JPG, ANY)
    assert decoder._sandbox._process is process


def test_a_dead_process_is_replaced(decoder: Decoder):
    expected = decoder.read(JPG, ANY).image
    process = decoder._sandbox._process
    process.kill()
    process.wait()
    assert np.array_equal(decoder.read(JPG, ANY).image, expected)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(wall_seconds=0.01), "took over 0.01 s"),
        (Limits(memory_bytes=100 << 20), r"crashed|needs over 100 MiB"),
    ],
)
def test_limits_stop_it(limits, message):
    with Sandbox(limits) as sandbox, pytest.raises(UnreadableImageError, match=message):
        sandbox.decode(JPG, ANY.to_dict())
    assert sandbox._process is None


@pytest.mark.parametrize("limits", [Limits(pixels=100), Limits(side=10), Limits(file_bytes=1000)])
def test_all_limits_reach_the_child(limits):
    with Sandbox(limits) as sandbox, pytest.raises(UnreadableImageError):
        sandbox.decode(JPG, ANY.to_dict())
    with Sandbox(Limits()) as sandbox:
        sandbox.decode(JPG, ANY.to_dict())


def test_the_child_is_confined(decoder: Decoder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MEDQUA_SECRET", "42")
    with Decoder() as fresh:
        fresh.read(JPG, ANY)
        proc = Path(f"/proc/{fresh._sandbox._process.pid}")
        if not proc.is_dir():
            pytest.skip("no /proc on this system")
        limits = (proc / "limits").read_text()
        for line in ("Max core file size        0", "Max file size             0"):
            assert line in limits
        assert "NoNewPrivs:\t1" in (proc / "status").read_text()
        if os.getuid() == 0 or os.access(proc / "environ", os.R_OK):
            assert b"MEDQUA_SECRET" not in (proc / "environ").read_bytes()


def read_in_child(decoder: Decoder, queue) -> None:
    queue.put(decoder.read(JPG, ANY).image)
    decoder.close()


def test_a_forked_process_gets_a_child_of_its_own(decoder: Decoder, patience: float):
    expected = decoder.read(JPG, ANY).image
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=read_in_child, args=(decoder, queue))
    child.start()
    assert np.array_equal(queue.get(timeout=patience), expected)
    child.join(patience)
    assert np.array_equal(decoder.read(JPG, ANY).image, expected)
