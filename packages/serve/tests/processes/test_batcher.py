import asyncio
import time

import numpy as np
import pytest

from medqua.core.errors import MedQuaError
from medqua.serve.processes.batcher import (
    Batcher,
    BatchError,
    DeadlineError,
    OverloadError,
    Priority,
)
from medqua.serve.settings import Batching

pytestmark = pytest.mark.anyio

IMAGE = np.zeros((2, 2), np.float32)


def numbered(number: int, shape: tuple[int, int] = (2, 2)) -> np.ndarray:
    return np.full(shape, number, np.float32)


class Engine:
    """Answers with the number an image is filled with, and remembers its batches."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.batches = seconds, []
        self.busy = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()

    async def read(self, images):
        self.batches.append([int(image[0, 0]) for image in images])
        self.busy.set()
        await self.go.wait()
        await asyncio.sleep(self.seconds)
        if any(image[0, 0] < 0 for image in images):
            raise RuntimeError("defect")
        return [
            MedQuaError("odd") if image[0, 0] % 2 else {"number": int(image[0, 0])}
            for image in images
        ]


def soon() -> float:
    return time.monotonic() + 900


async def running(engine: Engine, **options) -> Batcher:
    batcher = Batcher(engine.read, Batching(**options))
    batcher.start()
    return batcher


async def hold(engine: Engine, batcher: Batcher) -> "asyncio.Task":
    """Keep the only worker busy, so that a queue forms."""
    engine.go.clear()
    first = asyncio.create_task(batcher.submit(numbered(1000), soon()))
    await engine.busy.wait()
    return first


async def test_images_are_gathered_up_to_the_batch_size():
    engine = Engine()
    batcher = await running(engine, max_batch_size=4, max_queue_delay=0.05)
    results = await asyncio.gather(*(batcher.submit(numbered(2 * i), soon()) for i in range(10)))
    assert [result["number"] for result in results] == list(range(0, 20, 2))
    assert [len(batch) for batch in engine.batches] == [4, 4, 2]
    await batcher.close()


async def test_a_single_image_waits_for_the_delay_and_is_read_alone():
    engine = Engine()
    batcher = await running(engine, max_queue_delay=0.05)
    start = time.monotonic()
    await batcher.submit(numbered(2), soon())
    assert time.monotonic() - start >= 0.045  # no second one came to fill the batch
    await batcher.close()


async def test_a_full_batch_does_not_wait():
    engine = Engine()
    batcher = await running(engine, max_batch_size=2, max_queue_delay=3600.0)
    results = await asyncio.gather(*(batcher.submit(numbered(2), soon()) for _ in range(2)))
    assert results == [{"number": 2}] * 2  # an hour before the delay is over
    assert [len(batch) for batch in engine.batches] == [2]
    await batcher.close()


async def test_one_image_fails_alone():
    engine = Engine()
    batcher = await running(engine, max_batch_size=3)
    results = await asyncio.gather(
        *(batcher.submit(numbered(i), soon()) for i in (2, 3, 4)), return_exceptions=True
    )
    assert [results[0], results[2]] == [{"number": 2}, {"number": 4}]
    assert isinstance(results[1], MedQuaError)
    await batcher.close()


async def test_a_defect_fails_its_batch_and_no_later_one():
    engine = Engine()
    batcher = await running(engine)
    with pytest.raises(BatchError, match="RuntimeError"):
        await batcher.submit(numbered(-1), soon())
    assert await batcher.submit(numbered(2), soon()) == {"number": 2}
    await batcher.close()


async def test_the_more_urgent_overtake():
    engine = Engine()
    batcher = await running(engine, max_batch_size=2, max_queue_delay=0.0)
    first = await hold(engine, batcher)
    tasks = [
        asyncio.create_task(batcher.submit(numbered(n), soon(), priority))
        for n, priority in (
            (20, Priority.BULK),
            (10, Priority.NORMAL),
            (12, Priority.NORMAL),
            (0, Priority.URGENT),
        )
    ]
    await asyncio.sleep(0)
    engine.go.set()
    await asyncio.gather(first, *tasks)
    assert engine.batches == [[1000], [0, 10], [12, 20]]
    await batcher.close()


async def test_only_images_of_one_size_share_a_batch_and_order_stays():
    engine = Engine()
    batcher = await running(engine, max_batch_size=4, max_queue_delay=0.0)
    first = await hold(engine, batcher)
    sizes = [(2, 2), (3, 3), (2, 2), (3, 3), (2, 2)]
    tasks = [
        asyncio.create_task(batcher.submit(numbered(2 * i, size), soon()))
        for i, size in enumerate(sizes)
    ]
    await asyncio.sleep(0)
    engine.go.set()
    await asyncio.gather(first, *tasks)
    assert engine.batches[1:] == [[0, 4, 8], [2, 6]]
    await batcher.close()


async def test_who_is_gone_is_not_read():
    engine = Engine()
    batcher = await running(engine, max_queue_delay=0.0)
    first = await hold(engine, batcher)
    gone = asyncio.create_task(batcher.submit(numbered(6), soon()))
    stays = asyncio.create_task(batcher.submit(numbered(8), soon()))
    await asyncio.sleep(0)
    gone.cancel()
    engine.go.set()
    await asyncio.gather(first, stays)
    assert engine.batches == [[1000], [8]]
    await batcher.close()


async def test_a_deadline_ends_the_wait_and_takes_the_image_off_the_queue():
    engine = Engine()
    batcher = await running(engine, max_queue_delay=0.0)
    first = await hold(engine, batcher)
    with pytest.raises(DeadlineError, match="deadline"):
        await batcher.submit(numbered(6), time.monotonic() + 0.05)
    with pytest.raises(DeadlineError):
        await batcher.submit(numbered(6), time.monotonic() - 1)
    engine.go.set()
    await first
    await batcher.submit(numbered(8), soon())
    assert engine.batches == [[1000], [8]]
    await batcher.close()


async def test_a_full_house_refuses_and_says_when_to_come_again():
    batcher = Batcher(Engine().read, Batching(max_queue=8, max_batch_size=2))
    for _ in range(8):
        batcher.enter()
    with pytest.raises(OverloadError) as refused:
        batcher.enter()
    assert refused.value.retry_after >= 1
    batcher.leave()
    batcher.enter()
    assert batcher.admitted == 8


async def test_places_pass_on_in_order_and_none_is_lost_by_who_gives_up():
    batcher = Batcher(Engine().read, Batching(max_queue=2, max_batch_size=2))
    batcher.enter()
    batcher.enter()
    order: list[int] = []

    async def come(number: int) -> None:
        await batcher.wait_to_enter()
        order.append(number)

    tasks = [asyncio.create_task(come(number)) for number in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(OverloadError):  # no overtaking of those who wait
        batcher.enter()
    tasks[1].cancel()
    batcher.leave()
    tasks[0].cancel()  # just as its place came free
    await asyncio.sleep(0.01)
    batcher.leave()
    await asyncio.sleep(0.01)
    assert order == [2, 3]
    batcher.leave()
    batcher.leave()
    assert batcher.admitted == 0
    assert all(task.done() for task in tasks)


async def test_closing_cancels_those_who_wait():
    engine = Engine()
    batcher = await running(engine)
    first = await hold(engine, batcher)
    waiting = asyncio.create_task(batcher.submit(IMAGE, soon()))
    await asyncio.sleep(0)
    await batcher.close()
    for task in (first, waiting):
        with pytest.raises(asyncio.CancelledError):
            await task
