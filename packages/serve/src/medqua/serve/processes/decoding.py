"""Decoding of many files at a time, each in a process that can be killed."""

import asyncio
import queue
from concurrent.futures import ThreadPoolExecutor

from medqua.core.vision import limits as vision
from medqua.core.vision.image import Decoded, Decoder, ImageSpec
from medqua.serve.settings import Limits


def decoding_limits(limits: Limits) -> vision.Limits:
    """Return what one file may cost its decoding process."""
    return vision.Limits(
        file_bytes=limits.file_bytes,
        pixels=limits.pixels,
        memory_bytes=limits.decode_memory_bytes,
        cpu_seconds=limits.decode_cpu_seconds,
        wall_seconds=limits.decode_seconds,
    )


class Decoders:
    """A pool of decoding processes, each with a thread that talks to it.

    Args:
        count: How many.
        limits: What one file may cost.
    """

    def __init__(self, count: int, limits: vision.Limits) -> None:
        self._idle: queue.SimpleQueue[Decoder] = queue.SimpleQueue()
        self._all = [Decoder(limits=limits) for _ in range(count)]
        for decoder in self._all:
            self._idle.put(decoder)
        self._threads = ThreadPoolExecutor(count, "medqua-decoder")

    def start(self) -> None:
        """Start the processes and wait for none, so that the first files need not."""
        for decoder in self._all:
            decoder.start()

    async def read(self, content: bytes, spec: ImageSpec) -> Decoded:
        """Decode a file's content.

        Raises:
            ImageError: It cannot be decoded, costs more than it may, or is out of scope.
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, self._read, content, spec
        )

    def close(self) -> None:
        """End the processes."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        for decoder in self._all:
            decoder.close()

    def _read(self, content: bytes, spec: ImageSpec) -> Decoded:
        decoder = self._idle.get()
        try:
            return decoder.read(content, spec)
        finally:
            self._idle.put(decoder)
