"""Many single images into few batches, in order of priority, none beyond its deadline.

    place  -> an image is admitted, or refused at once when the house is full (429)
    queue  -> by priority, then by arrival; a client that is gone leaves it
    batch  -> images of one size: as many as fit, or what has come within `max_queue_delay`

A batch waits for a free worker with its images still in the queue, so that a later, more urgent
one can overtake them.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

from medqua.core.errors import MedQuaError
from medqua.serve.settings import Batching

BATCH_TOLERANCE = 1e-4
"""How far a probability may differ between an image alone and in a batch, float32."""

Read = Callable[[Sequence[np.ndarray]], Awaitable[list[dict[str, Any] | MedQuaError]]]
"""Reads images of one size: `Workers.read`."""


class Priority(IntEnum):
    """Who goes first."""

    URGENT = 0
    NORMAL = 1
    BULK = 2


class OverloadError(MedQuaError):
    """No place is free; `retry_after` says when one may be, in whole seconds."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(MedQuaError):
    """The answer did not come within the time that its client gave."""


class BatchError(MedQuaError):
    """A batch that failed by a defect of the service, not by its images."""


@dataclass(eq=False)
class _Waiting:
    """An image in the queue."""

    image: np.ndarray
    deadline: float
    since: float
    answer: "asyncio.Future[dict[str, Any]]" = field(repr=False)


class Batcher:
    """Gathers images and hands them to workers. Lives in one event loop.

    Args:
        read: Reads a batch.
        batching: Sizes and delays.
        on_batch: Called with size and seconds of every batch that was read.
    """

    def __init__(
        self,
        read: Read,
        batching: Batching,
        on_batch: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self._read, self._batching, self._on_batch = read, batching, on_batch
        self._queues: dict[Priority, deque[_Waiting]] = {p: deque() for p in Priority}
        self._places: deque[asyncio.Future[None]] = deque()
        self._taken = 0
        self._arrived = asyncio.Event()
        self._seconds_per_image = 0.05
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def admitted(self) -> int:
        """Images admitted and not yet answered."""
        return self._taken

    @property
    def queued(self) -> int:
        """Images that wait for a worker."""
        return sum(len(queue) for queue in self._queues.values())

    def start(self) -> None:
        """Begin to gather; one gatherer a worker."""
        self._tasks = [asyncio.create_task(self._gather()) for _ in range(self._batching.workers)]

    async def close(self) -> None:
        """Stop; whoever still waits is told so by `asyncio.CancelledError`."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for queue in self._queues.values():
            for waiting in queue:
                waiting.answer.cancel()
            queue.clear()

    def enter(self) -> None:
        """Take a place now.

        Raises:
            OverloadError: None is free, or others wait for one.
        """
        if self._taken >= self._batching.max_queue or self._places:
            waiting = self._taken + len(self._places)
            seconds = math.ceil(waiting * self._seconds_per_image / self._batching.workers)
            raise OverloadError(
                f"{waiting} images are waiting, the most that are admitted: try again later",
                min(max(1, seconds), 60),
            )
        self._taken += 1

    async def wait_to_enter(self) -> None:
        """Take a place as soon as one is free; first come, first served."""
        if self._taken < self._batching.max_queue and not self._places:
            self._taken += 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._places.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.leave()
            elif place in self._places:
                self._places.remove(place)
            raise

    def leave(self) -> None:
        """Give a place back."""
        while self._places:
            place = self._places.popleft()
            if not place.done():
                place.set_result(None)
                return
        self._taken -= 1

    async def submit(
        self, image: np.ndarray, deadline: float, priority: Priority = Priority.NORMAL
    ) -> dict[str, Any]:
        """Have one image read; the caller holds a place. Cancelling takes it off the queue.

        Args:
            image: `[H, W]` float32 in [0, 1].
            deadline: On the clock of `time.monotonic`, in seconds.
            priority: Who goes first.

        Returns:
            `findings`, and `quantum` where the engine tells it; plain JSON values.

        Raises:
            DeadlineError: It was not read in time.
            MedQuaError: What the engine says of this image.
        """
        answer = asyncio.get_running_loop().create_future()
        now = time.monotonic()
        self._queues[priority].append(_Waiting(image, deadline, now, answer))
        self._arrived.set()
        try:
            return await asyncio.wait_for(answer, max(0.0, deadline - now))
        except TimeoutError:
            raise DeadlineError(
                "not read before its deadline; allow more time, or try later"
            ) from None

    async def _gather(self) -> None:
        """Make one batch after another."""
        while True:
            while not self._first():
                self._arrived.clear()
                await self._arrived.wait()
            while (first := self._first()) and self._alike(first) < self._batching.max_batch_size:
                left = first.since + self._batching.max_queue_delay - time.monotonic()
                if left <= 0:
                    break
                self._arrived.clear()
                try:
                    await asyncio.wait_for(self._arrived.wait(), left)
                except TimeoutError:
                    break
            batch = self._take()
            if batch:
                await self._answer(batch)

    def _first(self) -> _Waiting | None:
        """Return who is next, and forget those at the front who are gone."""
        for queue in self._queues.values():
            while queue and queue[0].answer.done():
                queue.popleft()
            if queue:
                return queue[0]
        return None

    def _alike(self, first: _Waiting) -> int:
        """Count the images that can be in one batch with `first`."""
        shape = first.image.shape
        return sum(
            w.image.shape == shape and not w.answer.done()
            for queue in self._queues.values()
            for w in queue
        )

    def _take(self) -> list[_Waiting]:
        """Take the next batch off the queues."""
        first = self._first()
        batch: list[_Waiting] = []
        if first is None:
            return batch
        for queue in self._queues.values():
            kept: list[_Waiting] = []
            while queue and len(batch) < self._batching.max_batch_size:
                waiting = queue.popleft()
                if waiting.answer.done():
                    continue
                if waiting.image.shape == first.image.shape:
                    batch.append(waiting)
                else:
                    kept.append(waiting)
            queue.extendleft(reversed(kept))
        return batch

    async def _answer(self, batch: list[_Waiting]) -> None:
        """Have a batch read, and give everyone what is theirs."""
        start = time.monotonic()
        try:
            results = await self._read([waiting.image for waiting in batch])
        except asyncio.CancelledError:
            for waiting in batch:
                waiting.answer.cancel()
            raise
        except Exception as error:  # a defect: those of this batch are told, the others go on
            results = [BatchError(f"the batch could not be read: {type(error).__name__}")] * len(
                batch
            )
        seconds = time.monotonic() - start
        self._seconds_per_image += 0.1 * (seconds / len(batch) - self._seconds_per_image)
        self._on_batch(len(batch), seconds)
        for waiting, result in zip(batch, results, strict=True):
            if waiting.answer.done():
                continue
            if isinstance(result, MedQuaError):
                waiting.answer.set_exception(result)
            else:
                waiting.answer.set_result(result)
