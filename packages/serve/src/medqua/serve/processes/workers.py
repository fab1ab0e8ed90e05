"""The processes that hold the model, and what happens when one is lost.

batch -> a free worker -> findings
| lost (killed, crashed, silent for too long)
v
started anew; its images are read again, each alone: one that loses a worker a second
time ends in an error, the others in findings
"""

import asyncio
import logging
import os
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from medqua.core import errors
from medqua.core.errors import BundleError, MedQuaError
from medqua.serve.inference.engine import Model
from medqua.serve.processes.worker import Answered, Explain, Failed, work
from medqua.serve.settings import Batching

log = logging.getLogger("medqua.serve")

START_SECONDS = 300.0
"""Time in which a worker must have opened the model, in seconds."""

LONGEST_PAUSE = 30.0
"""Longest pause between attempts to start a worker, in seconds."""


class WorkerLostError(MedQuaError):
    """An image that twice was in a worker's hands when it was lost."""


class _LostError(Exception):
    """The process is gone, or did not answer."""


class _Worker:
    """One process, and the pipe to it. Its methods block: they are called in threads."""

    def __init__(self, arguments: tuple[Path, str, int], processes: "list[Any]") -> None:
        self._arguments, self._processes = arguments, processes
        self._connection: Connection | None = None
        self._process: Any = None
        self.warm = False
        """Whether the model of the process that runs has read a warm image."""

    @property
    def pid(self) -> int | None:
        """Process id of the one that runs, None between two."""
        return self._process.pid if self._process is not None else None

    def launch(self) -> None:
        """Start the process; `start` waits for it."""
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        process = context.Process(
            target=work, args=(theirs, *self._arguments), daemon=True, name="medqua-worker"
        )
        process.start()
        theirs.close()
        self._process = process
        self._processes.append(process)

    def start(self) -> Model:
        """Start the process, unless it is launched, and wait until the model is warm.

        Raises:
            MedQuaError: The model cannot be opened.
        """
        if self._process is None:
            self.launch()
        try:
            told = self._receive(START_SECONDS)
        except _LostError:
            self.stop()
            raise BundleError(
                "a worker ended before the model was open: is memory short?"
            ) from None
        if isinstance(told, Failed):
            self.stop()
            raise _as_error(told)
        if not isinstance(told, Model):
            raise BundleError(f"a worker began with {type(told).__name__}: a defect")
        self.warm = True
        return told

    def ask(self, message: np.ndarray | Explain, seconds: float) -> Answered | Failed:
        """Have a batch `[B, H, W]` float32 read, or an image explained.

        Raises:
            _LostError: The process is gone, or did not answer within `seconds`; it is ended.
        """
        try:
            if self._connection is None:
                raise _LostError
            self._connection.send(message)
            answer: Answered | Failed = self._receive(seconds)
            return answer
        except (_LostError, OSError):
            self.stop()
            raise _LostError from None

    def stop(self) -> None:
        """End the process."""
        self.warm = False
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._processes.remove(self._process)
            self._process = None

    def _receive(self, seconds: float) -> Any:
        if self._connection is None:
            raise _LostError
        try:
            if not self._connection.poll(seconds):
                raise _LostError
            return self._connection.recv()
        except (EOFError, OSError):
            raise _LostError from None


class Workers:
    """A pool of processes that hold the same model. Lives in one event loop.

    Args:
        directory: Bundle or export.
        batching: How many there are, and where they run.

    Attributes:
        on_loss: Called each time that one is lost.
        model: What they say they are; known after `start`.
    """

    model: Model

    def __init__(self, directory: Path, batching: Batching) -> None:
        threads = batching.threads or max(1, (os.cpu_count() or 1) // batching.workers)
        self._batching = batching
        self.on_loss: Callable[[], None] = lambda: None
        self._processes: list[Any] = []
        self._workers = [
            _Worker((directory, batching.device, threads), self._processes)
            for _ in range(batching.workers)
        ]
        self._threads = ThreadPoolExecutor(batching.workers, "medqua-worker")
        self._free: asyncio.Queue[_Worker] = asyncio.Queue()
        self._revivals: set[asyncio.Task[None]] = set()
        self._end = weakref.finalize(self, _kill, self._processes)

    @property
    def ready(self) -> int:
        """Workers whose process runs with a warm model."""
        return sum(worker.warm for worker in self._workers)

    @property
    def pids(self) -> list[int]:
        """Their process ids."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    def launch(self) -> None:
        """Start the processes and wait for none, so that they open the model meanwhile."""
        for worker in self._workers:
            worker.launch()

    async def start(self) -> None:
        """Start those that are not launched, and wait until each has read a warm image.

        Raises:
            MedQuaError: The model cannot be opened.
        """
        loop = asyncio.get_running_loop()
        starts = [loop.run_in_executor(self._threads, w.start) for w in self._workers]
        told = await asyncio.gather(*starts, return_exceptions=True)
        for model in told:
            if isinstance(model, BaseException):
                await self.close()
                raise model
            self.model = model
        for worker in self._workers:
            self._free.put_nowait(worker)

    async def read(self, images: Sequence[np.ndarray]) -> list[dict[str, Any] | MedQuaError]:
        """Have images of one size read.

        Args:
            images: `[H, W]` float32 in [0, 1].

        Returns:
            Findings of each, or why there are none: `WorkerLostError` where two workers were lost.
        """
        try:
            return await self._ask(images)
        except _LostError:
            pass
        results: list[dict[str, Any] | MedQuaError] = []
        for image in images:
            try:
                results += await self._ask([image])
            except _LostError:
                results.append(
                    WorkerLostError("reading this image ended the model's process twice; try again")
                )
        return results

    async def explain(self, wanted: Explain) -> dict[str, Any]:
        """Have an image explained.

        Raises:
            WorkerLostError: Two workers were lost, or did not answer within `worker_seconds`.
            MedQuaError: What the engine says of it.
        """
        for _ in range(2):
            try:
                answer = await self._hand(wanted)
            except _LostError:
                continue
            if isinstance(answer, Failed):
                raise _as_error(answer)
            return answer.results[0]
        raise WorkerLostError("explaining this image ended the model's process twice; try again")

    async def close(self) -> None:
        """End all processes."""
        for task in self._revivals:
            task.cancel()
        self._end()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _ask(self, images: Sequence[np.ndarray]) -> list[dict[str, Any] | MedQuaError]:
        answer = await self._hand(np.stack(images))
        if isinstance(answer, Answered):
            return list(answer.results)
        if len(images) == 1:
            return [_as_error(answer)]
        return [(await self._ask([image]))[0] for image in images]  # one spoils no other's result

    async def _hand(self, message: np.ndarray | Explain) -> Answered | Failed:
        """Hand a message to the next free worker.

        Raises:
            _LostError: The worker was lost; another is on its way.
        """
        worker = await self._free.get()
        loop = asyncio.get_running_loop()
        seconds = self._batching.worker_seconds
        call = loop.run_in_executor(self._threads, worker.ask, message, seconds)
        try:
            answer = await call
        except _LostError:
            self.on_loss()
            task = asyncio.create_task(self._revive(worker))
            self._revivals.add(task)
            task.add_done_callback(self._revivals.discard)
            raise
        self._free.put_nowait(worker)
        return answer

    async def _revive(self, worker: _Worker) -> None:
        """Start a worker anew, as often as it takes."""
        pause = 0.5
        loop = asyncio.get_running_loop()
        while True:
            try:
                told = await loop.run_in_executor(self._threads, worker.start)
                if told.provenance != self.model.provenance:
                    await loop.run_in_executor(self._threads, worker.stop)
                    log.error("another model lies in the folder now; restart the service")
                    raise BundleError("another model lies in the folder now")
            except MedQuaError:
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                self._free.put_nowait(worker)
                return


def _as_error(failed: Failed) -> MedQuaError:
    kind = getattr(errors, failed.error, BundleError)
    known = isinstance(kind, type) and issubclass(kind, MedQuaError)
    return kind(failed.reason) if known else BundleError(failed.reason)


def _kill(processes: "list[Any]") -> None:
    """End processes, also at the interpreter's exit: they heed no other signal."""
    for process in list(processes):
        process.kill()
    for process in list(processes):
        process.join()
