"""Processes that find each other in a store where dead ones left their addresses."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from medqua.core.errors import MedQuaError
from medqua.train.processes.joining import agree, common_store

SECONDS = timedelta(seconds=900)


@pytest.fixture
def store() -> dist.Store:
    return dist.HashStore()


def words(store: dist.Store, size: int) -> set[str]:
    """What processes of one attempt agree on; the last ranks come first."""
    with ThreadPoolExecutor(size) as pool:
        come = [pool.submit(agree, store, rank, size, SECONDS) for rank in reversed(range(size))]
        return {one.result() for one in come}


def test_each_attempt_has_a_word_of_its_own(store: dist.Store) -> None:
    found = [words(store, 4) for _ in range(3)]
    assert [len(one) for one in found] == [1, 1, 1]
    assert len(set.union(*found)) == 3


def test_what_a_dead_process_asked_is_passed_over(store: dist.Store) -> None:
    words(store, 3)
    store.set("hello/1", "asked by one that died before it heard")
    store.set("welcome/stale", "a word of an attempt before")
    assert len(words(store, 3)) == 1


def test_another_number_of_processes_than_before(store: dist.Store) -> None:
    assert len(words(store, 4)) == len(words(store, 2)) == len(words(store, 5)) == 1


@pytest.mark.parametrize(("rank", "missing"), [(0, 1), (1, 0)])
def test_who_does_not_come_is_named(store: dist.Store, rank: int, missing: int) -> None:
    with pytest.raises(MedQuaError, match=rf"rank {missing} did not join within 0\.2 seconds"):
        agree(store, rank, 2, timedelta(seconds=0.2))


def test_a_store_of_the_launcher_is_shared_by_attempts() -> None:
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    told = {
        **{"TORCHELASTIC_USE_AGENT_STORE": "True", "RANK": "0", "WORLD_SIZE": "1"},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.port)},
    }
    first, second = (common_store(SECONDS, told) for _ in range(2))
    assert first is not None
    assert second is not None
    first.set("address", "of one that died")
    assert not second.check(["address"])
    assert common_store(SECONDS, {**told, "TORCHELASTIC_USE_AGENT_STORE": "False"}) is None
