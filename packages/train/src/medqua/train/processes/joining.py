"""Joining the processes of a run, also when a launcher starts some or all of them again.

torchrun keeps one store for all attempts of a run, so a process that starts again may read there
the address of one that is dead, and wait for it in vain. The number of the attempt does not help:
machines count their own restarts. Here rank 0 draws a word for each attempt, and gives it only to
who has asked for it anew; the group's addresses are then kept under that word.

    hello/RANK          what a living process of that rank drew: its question
    welcome/QUESTION    rank 0's word, given to whoever asks
    heard/WORD/RANK     that rank has it
"""

import os
import time
import uuid
from collections.abc import Mapping
from datetime import timedelta

from torch.distributed import (  # type: ignore[attr-defined]  # torch lists not all it exports
    DistStoreError,
    PrefixStore,
    Store,
    TCPStore,
)

from medqua.core.errors import MedQuaError

PAUSE = 0.02
"""Seconds between two looks of rank 0 for new questions."""


def common_store(timeout: timedelta, environment: Mapping[str, str] = os.environ) -> Store | None:
    """A store for this attempt alone, or None where the launcher's own is new each time.

    Args:
        timeout: How long to wait for the other processes.
        environment: What torchrun tells a process.

    Raises:
        MedQuaError: Another process did not come in time.
    """
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    store = TCPStore(
        environment["MASTER_ADDR"],
        int(environment["MASTER_PORT"]),
        size,
        is_master=False,
        timeout=timeout,
    )
    kept = PrefixStore("medqua", store)
    return PrefixStore(f"medqua/{agree(kept, rank, size, timeout)}", store)


def agree(store: Store, rank: int, size: int, timeout: timedelta) -> str:
    """One word that the living processes share, whatever dead ones left in the store.

    Args:
        store: Of all attempts.
        rank: This process.
        size: Number of processes.
        timeout: How long to wait for the other processes.

    Raises:
        MedQuaError: Another process did not come in time.
    """
    if rank == 0:
        return _lead(store, size, timeout)
    question = uuid.uuid4().hex
    store.set(f"hello/{rank}", question)
    try:
        store.wait([f"welcome/{question}"], timeout)
    except DistStoreError as error:
        raise _late(0, timeout) from error
    word: str = store.get(f"welcome/{question}").decode()
    store.set(f"heard/{word}/{rank}", "")
    return word


def _lead(store: Store, size: int, timeout: timedelta) -> str:
    """Draw the word and answer until all have it; a question may be a dead process's."""
    word = uuid.uuid4().hex
    answered: dict[int, str] = {}
    waiting = set(range(1, size))
    until = time.monotonic() + timeout.total_seconds()
    while waiting:
        for rank in sorted(waiting):
            if store.check([f"heard/{word}/{rank}"]):
                waiting.remove(rank)
            elif store.check([f"hello/{rank}"]):
                question = store.get(f"hello/{rank}").decode()
                if answered.get(rank) != question:
                    store.set(f"welcome/{question}", word)
                    answered[rank] = question
        if waiting and time.monotonic() > until:
            raise _late(min(waiting), timeout)
        time.sleep(PAUSE)
    return word


def _late(rank: int, timeout: timedelta) -> MedQuaError:
    return MedQuaError(
        f"rank {rank} did not join within {timeout.total_seconds():g} seconds: see its own "
        "message; run.timeout sets how long to wait"
    )
