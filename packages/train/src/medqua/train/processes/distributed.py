"""One run in any number of processes, as torchrun starts them."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState  # type: ignore[import-untyped]

from medqua.core.errors import ConfigError, MedQuaError
from medqua.train.processes.joining import common_store

T = TypeVar("T")

RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
"""Variables in which launchers count how often they started the same command again."""


def start(threads: int = 0, timeout: float = 1800.0) -> None:
    """Join the other processes of the run, and take this process's share of the cores.

    torchrun sets OMP_NUM_THREADS=1 for several processes, whatever the machine has: threads are
    set here instead.

    Args:
        threads: Threads of this process; 0 is all cores over the processes of this machine.
        timeout: Seconds after which waiting for another process is an error.

    Raises:
        ConfigError: More processes on this machine than it has GPUs.
        MedQuaError: Another process did not come in time.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(threads or max(1, (cores or 1) // here))
    if torch.cuda.is_available():
        check_devices(here, torch.cuda.device_count())
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        _join(timedelta(seconds=timeout))


def _join(timeout: timedelta) -> None:
    """Make the process group; accelerate then finds it made."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    store = common_store(timeout)
    if store is not None:
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=store,
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            timeout=timeout,
        )
    PartialState(cpu=not on_gpu, timeout=timeout)


def check_devices(processes: int, gpus: int) -> None:
    """Refuse more processes on a machine than it has GPUs.

    Raises:
        ConfigError: There are.
    """
    if processes > gpus:
        raise ConfigError(
            f"{processes} processes on a machine of {gpus} GPUs: needed one GPU for each; launch "
            f"with --nproc-per-node={gpus}, or hide the GPUs with CUDA_VISIBLE_DEVICES='' to train "
            "on the CPU"
        )


def restarted(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher started this command again after it had failed or been preempted."""
    return any(environment.get(name, "0") not in ("", "0") for name in RESTARTS)


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


def on_main(do: Callable[[], T]) -> T:
    """Do something on rank 0 alone; every rank gets its result, or raises its error.

    Raises:
        MedQuaError: What rank 0 raised; an error of another kind is raised as it is on rank 0, and
            told in a MedQuaError on the others.
    """
    failed: Exception | None = None
    outcome: tuple[Any, type[MedQuaError] | None, str] = (None, None, "")
    if is_main():
        try:
            outcome = (do(), None, "")
        except Exception as error:
            failed = error
            kind = type(error) if isinstance(error, MedQuaError) else MedQuaError
            outcome = (None, kind, str(error) or type(error).__name__)
    result, kind_of_error, message = from_main(outcome)
    if failed is not None:
        raise failed
    if kind_of_error is not None:
        raise kind_of_error(message)
    done: T = result
    return done


def lost_peer(error: BaseException) -> MedQuaError | None:
    """What to tell about an error that says that another process is gone; None for other errors."""
    gone = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting")
    network = isinstance(error, dist.DistError) or any(sign in str(error) for sign in gone)
    if world_size() < 2 or not network or isinstance(error, MedQuaError):
        return None
    return MedQuaError(
        f"rank {rank()} lost another process of this run, which died or fell silent: its own "
        "message tells why; go on from the last checkpoint with --resume"
    )


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any rank; one small reduction."""
    if not _several():
        return flag
    count = torch.tensor([int(flag)], device=device)
    dist.all_reduce(count)
    return bool(count.item())


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()
