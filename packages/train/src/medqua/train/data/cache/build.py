"""Writing the cache: each shard by whichever process takes its lock, of this run or another.

A run on several nodes, or two runs at once, share the work without talking to each other. After a
`kill -9` the kernel frees the locks, and whole shards are not written again.
"""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import polars as pl
from filelock import FileLock, Timeout

from medqua.core.errors import ConfigError, DataError, ImageError, UnreadableImageError
from medqua.core.vision.image import ImageSpec, read_image
from medqua.train.data.cache.read import INDEX_NAME, ImageCache
from medqua.train.data.cache.shards import (
    Entry,
    cache_key,
    images_per_shard,
    index_of,
    is_whole,
    shard_path,
    write_shard,
)
from medqua.train.data.images import ImageStore
from medqua.train.data.levels import compact


@dataclass(frozen=True)
class Plan:
    """What a cache is to hold."""

    folder: Path
    """`DIR/KEY`."""

    key: str
    """Its hash."""

    store: ImageStore
    """Where images come from."""

    spec: ImageSpec
    """How they are read."""

    skip_unreadable: bool
    """Go on without images that cannot be read."""


def build_cache(
    root: Path,
    store: ImageStore,
    spec: ImageSpec,
    source: str,
    images: Sequence[str],
    *,
    workers: int = 0,
    skip_unreadable: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> ImageCache:
    """Open the cache of these images, after writing what of it is missing.

    Args:
        root: Folder of caches; this one is a folder of it.
        store: Where images come from.
        spec: How they are read; its `size` is needed, a shard holds images of one size.
        source: The data set in words.
        images: All image names, in the order of the manifest.
        workers: Processes that decode; 0 is one for each core this process may use.
        skip_unreadable: Record images that cannot be read, instead of raising.
        advance: Called with the number of images found or written since its last call.

    Raises:
        ConfigError: `spec.size` is None.
        UnreadableImageError: An image cannot be read and may not be skipped.
        DataError: No folder or shard can be written.
    """
    if spec.size is None:
        raise ConfigError("image.size is not given: the cache needs images of one size")
    key = cache_key(spec, source, images)
    folder = root.expanduser() / key
    each = images_per_shard(spec.size)
    parts = [images[start : start + each] for start in range(0, len(images), each)]
    cache = ImageCache.find(folder)
    if cache is not None and all(shard_path(folder, i).is_file() for i in range(len(parts))):
        advance(len(images))
        return cache
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"data.cache = {root} cannot be made: {error}") from error
    plan = Plan(folder, key, store, spec, skip_unreadable)
    missing = []
    for number, part in enumerate(parts):
        if is_whole(shard_path(folder, number), key):
            advance(len(part))
        else:
            missing.append((number, part))
    _write(plan, missing, workers or _cores(), advance)
    with FileLock(folder / ".index.lock"):
        index = pl.concat(
            index_of(shard_path(folder, number), number, part) for number, part in enumerate(parts)
        )
        partial = folder / f".{INDEX_NAME}.partial"
        about = {"spec": json.dumps(spec.to_dict()), "source": source, "key": key}
        index.write_parquet(
            partial, metadata={f"medqua.{name}": value for name, value in about.items()}
        )
        partial.replace(folder / INDEX_NAME)
        for pattern in (".*.safetensors.*.partial", ".*.safetensors.lock"):
            for stale in folder.glob(pattern):  # every shard is whole: nobody writes one
                stale.unlink(missing_ok=True)
    return ImageCache.open(folder)


def _write(
    plan: Plan,
    missing: Sequence[tuple[int, Sequence[str]]],
    workers: int,
    advance: Callable[[int], None],
) -> None:
    """Write shards: first those that nobody else is writing, then wait for the others."""
    for wait in (False, True):
        busy = []
        with _pool(min(workers, len(missing))) as pool:
            if pool is None:
                done = ((part, _take(plan, *part, wait)) for part in missing)
            else:
                futures = {pool.submit(_take, plan, *part, wait): part for part in missing}
                done = ((futures[one], one.result()) for one in as_completed(futures))
            try:
                for part, written in done:
                    if written:
                        advance(len(part[1]))
                    else:
                        busy.append(part)
            except BrokenProcessPool as error:
                raise DataError(
                    "a process that decodes images for data.cache died, probably for want of "
                    "memory: start again with fewer of them (data.workers); what is written is kept"
                ) from error
        missing = busy


def _take(plan: Plan, number: int, images: Sequence[str], wait: bool) -> bool:
    """Write a shard unless it is there; False if another process has its lock."""
    path = shard_path(plan.folder, number)
    try:
        with FileLock(plan.folder / f".{path.name}.lock", timeout=-1 if wait else 0):
            if not is_whole(path, plan.key):
                write_shard(path, plan.key, [_entry(plan, image) for image in images])
    except Timeout:
        return False
    return True


def _entry(plan: Plan, image: str) -> Entry:
    """Read one image."""
    source_bytes = plan.store.sizes([image])[0]
    try:
        decoded = read_image(plan.store.open(image), plan.spec, trusted=True)
    except ImageError as error:
        if not plan.skip_unreadable:
            raise unreadable(image, error) from error
        return Entry(image, None, source_bytes)
    return Entry(image, compact(decoded), source_bytes)


def unreadable(image: str, error: ImageError) -> UnreadableImageError:
    """The error that names an image and says what to do."""
    return UnreadableImageError(
        f"{image}: {error}. Repair or remove it, or train without such images by "
        "data.skip_unreadable=true"
    )


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes that end with this one; None where one is enough."""
    if workers < 2:
        yield None
        return
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_follow_parent
    )
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _follow_parent() -> None:
    """End when the parent does, however it ends; leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()


def _cores() -> int:
    """Cores for this process, shared with the other processes of a run on this machine."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
