import pytest
from hypothesis import given
from hypothesis import strategies as st

from medqua.train.trainer.order import EpochOrder


@given(
    st.integers(1, 50), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 5)
)
def test_processes_share_the_batches_of_one(
    n_images: int, ranks: int, micro: int, accumulated: int, epoch: int
) -> None:
    batch = ranks * micro * accumulated
    alone = EpochOrder(n_images, batch, batch, 7)
    alone.set_epoch(epoch)
    parts = [EpochOrder(n_images, batch, micro, 7, rank, ranks) for rank in range(ranks)]
    for part in parts:
        part.set_epoch(epoch)
        assert len(list(part)) == len(part) == accumulated * alone.steps
    micros = [list(part) for part in parts]
    for step, whole in enumerate(alone):
        taken = range(step * accumulated, (step + 1) * accumulated)
        assert whole == [i for m in taken for rank in range(ranks) for i in micros[rank][m]]


@given(st.integers(1, 50), st.integers(1, 20))
def test_an_epoch_holds_every_image(n_images: int, batch: int) -> None:
    seen = [i for whole in EpochOrder(n_images, batch, batch, 0) for i in whole]
    assert sorted(seen[:n_images]) == list(range(n_images))
    assert seen[n_images:] == (seen[:n_images] * batch)[: len(seen) - n_images]


def test_epochs_and_seeds_differ_and_repeat() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        batches = EpochOrder(40, 8, 8, seed)
        batches.set_epoch(epoch)
        return list(batches)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_steps_of_an_epoch() -> None:
    assert [EpochOrder(n, 8, 8, 0).steps for n in (1, 8, 9)] == [1, 1, 2]
    assert pytest.approx(len(EpochOrder(9, 8, 2, 0, 1, 2))) == 4
