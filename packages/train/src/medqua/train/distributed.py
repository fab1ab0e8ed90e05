"""One run in any number of processes, as torchrun starts them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState  # type: ignore[import-untyped]

T = TypeVar("T")


def start(threads: int = 0) -> None:
    """Join the other processes of the run, and take this process's share of the cores.

    torchrun sets OMP_NUM_THREADS=1 for several processes, whatever the machine has: threads are
    set here instead.

    Args:
        threads: Threads of this process; 0 is all cores over the processes of this machine.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(threads or max(1, (cores or 1) // here))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        PartialState(cpu=not torch.cuda.is_available())


def stop() -> None:
    """Leave the other processes."""
    if _several():
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if _several() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _several() else 1


def is_main() -> bool:
    """Whether this process is the one that writes and speaks."""
    return rank() == 0


@contextmanager
def main_first() -> Iterator[bool]:
    """Let rank 0 do something that others then find done; they wait before the block.

    If rank 0 fails, the others are released into the block and meet the same failure or a
    missing file there, instead of waiting for ever.

    Yields:
        Whether this is rank 0.
    """
    if not is_main():
        dist.barrier()
        yield False
        return
    try:
        yield True
    finally:
        if _several():
            dist.barrier()


def from_main(value: T) -> T:
    """What rank 0 gives, on every rank."""
    if not _several():
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0)
    result: T = box[0]
    return result


def gather(value: T) -> list[T]:
    """What every rank gives, in order, on every rank."""
    if not _several():
        return [value]
    box: list[Any] = [None] * world_size()
    dist.all_gather_object(box, value)
    return box


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any rank; one small reduction."""
    if not _several():
        return flag
    count = torch.tensor([int(flag)], device=device)
    dist.all_reduce(count)
    return bool(count.item())


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()
