"""Checkpoints on a real disk: whole, altered, cut short, and refused by the disk."""

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from medqua.core.errors import DataError, MedQuaError
from medqua.train.trainer.checkpoint import (
    RECORD,
    WEIGHTS,
    Checkpoints,
    load_trained_state,
    put_trained_state,
    trained_state,
    verify,
)


def write(checkpoints: Checkpoints, step: int, size: int = 100) -> Path:
    with checkpoints.writing(step) as folder:
        (folder / WEIGHTS).write_bytes(bytes([step % 256]) * size)
        (folder / "optimizer.pt").write_bytes(b"moments")
    return checkpoints.path(step)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The disk takes no file above a size, as if it were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def checkpoints(tmp_path: Path, said: list[str]) -> Checkpoints:
    return Checkpoints(tmp_path / "trainer_state", said.append)


def test_a_checkpoint_records_the_hash_of_every_file(checkpoints: Checkpoints) -> None:
    path = write(checkpoints, 5)
    record = json.loads((path / RECORD).read_text())
    assert record["step"] == 5
    assert set(record["files"]) == {WEIGHTS, "optimizer.pt"}
    # sha256sum of b"moments"
    assert record["files"]["optimizer.pt"] == (
        "690a8d18f75dfaa79dd8134ac62cdad42fffe0f34cb78dd14e2d3aae3ae83ad3"
    )
    verify(path)
    assert checkpoints.last() == path


def test_no_checkpoint_is_none(checkpoints: Checkpoints) -> None:
    assert checkpoints.last() is None
    assert not checkpoints.is_whole(None)


@pytest.mark.parametrize("name", [WEIGHTS, "optimizer.pt", RECORD])
def test_a_flipped_byte_is_named_and_the_one_before_is_taken(
    checkpoints: Checkpoints, said: list[str], name: str
) -> None:
    good, bad = write(checkpoints, 5), write(checkpoints, 10)
    content = bytearray((bad / name).read_bytes())
    content[3] ^= 0x80
    (bad / name).write_bytes(content)
    assert checkpoints.last() == good
    assert len(said) == 1
    assert "Passing over checkpoint-10" in said[0]
    assert name in said[0]
    assert not checkpoints.is_whole(10)
    assert checkpoints.is_whole(5)
    assert checkpoints.last() == good
    assert write(checkpoints, 10) == checkpoints.last()  # the run comes there again


def test_a_missing_file_and_another_version_are_damage(checkpoints: Checkpoints) -> None:
    path = write(checkpoints, 5)
    record = json.loads((path / RECORD).read_text())
    (path / RECORD).write_text(json.dumps({**record, "version": 99}))
    with pytest.raises(DataError, match="version 99: needed 1"):
        verify(path)
    (path / RECORD).write_text(json.dumps(record))
    (path / "optimizer.pt").unlink()
    with pytest.raises(DataError, match=r"optimizer\.pt is missing"):
        verify(path)


def test_only_damaged_ones_are_refused(checkpoints: Checkpoints) -> None:
    (write(checkpoints, 5) / WEIGHTS).write_bytes(b"")
    with pytest.raises(DataError, match=r"no checkpoint in .* is whole, of 1"):
        checkpoints.last()


def test_a_half_one_is_never_taken(checkpoints: Checkpoints, said: list[str]) -> None:
    good = write(checkpoints, 5)
    half = checkpoints.folder / ".checkpoint-10.partial"
    shutil.copytree(good, half)  # killed between the record and the name
    hand = checkpoints.folder / "checkpoint-20"
    shutil.copytree(good, hand)
    (hand / RECORD).unlink()
    assert checkpoints.last() == good
    assert not half.exists()
    assert said == [
        f"Passing over checkpoint-20: {hand} holds no {RECORD}: it is no whole checkpoint"
    ]


def test_a_full_disk_leaves_the_last_good_one(checkpoints: Checkpoints) -> None:
    good = write(checkpoints, 5)
    with (
        largest_file(10_000),
        pytest.raises(
            MedQuaError,
            match=r"step 10 could not be written.*File too large.*"
            "checkpoint-5 is whole and stays the last: free or mend the disk",
        ),
    ):
        write(checkpoints, 10, size=50_000)
    assert [path.name for path in checkpoints.folder.iterdir()] == ["checkpoint-5"]
    assert checkpoints.last() == good


def test_a_disk_full_at_the_first_says_so(checkpoints: Checkpoints) -> None:
    with largest_file(10_000), pytest.raises(MedQuaError, match="There is none before it"):
        write(checkpoints, 5, size=50_000)
    assert checkpoints.last() is None


def test_the_newest_and_the_best_stay(checkpoints: Checkpoints) -> None:
    for step in (1, 2, 3, 10):
        write(checkpoints, step)
    checkpoints.remove_old(best=1)
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == [
        "checkpoint-1",
        "checkpoint-10",
        "checkpoint-3",
    ]


def test_trained_parameters_and_buffers_come_back() -> None:
    def model(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        made = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
        made[0].requires_grad_(False)
        made[1](torch.randn(8, 3))
        return made

    first, second = model(0), model(1)
    state = trained_state(first)
    assert set(state) == {
        *("1.weight", "1.bias", "2.weight", "2.bias"),
        *("1.running_mean", "1.running_var", "1.num_batches_tracked"),
    }
    put_trained_state(second, state, "here")
    assert all(value.equal(trained_state(second)[name]) for name, value in state.items())
    assert not second[0].weight.equal(first[0].weight)  # frozen: the backbone's
    with pytest.raises(DataError, match="here is of another model: 7 tensors differ"):
        put_trained_state(nn.Linear(2, 2).requires_grad_(False), state, "here")


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it is no checkpoint of MedQua"):
        load_trained_state(nn.Linear(2, 2), tmp_path)
