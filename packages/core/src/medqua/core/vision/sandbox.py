"""Decoding in a process that can be killed.

A codec that loops, swallows memory or crashes takes down a child process and nothing else. The
child lives on between files, because starting it costs a second and decoding one costs a few
hundredths; it is replaced when it dies, after a failure that is not a plain refusal, and after a
number of files. Bytes go in and pixels come out through pipes: nothing is written to disk, no
core is dumped, what codecs print is thrown away, and the child's environment holds no secrets.
The parent checks every reply, and unpickles nothing.
"""

import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from types import TracebackType
from typing import IO, Any, TypeVar

import numpy as np
import numpy.typing as npt

from medqua.core.errors import OutOfScopeError, UnreadableImageError
from medqua.core.vision.limits import Limits

FILES_PER_PROCESS = 1000
STORED: dict[str, Any] = {"stored": True}
"""The request for stored values, in place of an image specification."""
REPLY_BYTES, DESCRIPTION_BYTES = 1 << 16, 1 << 24
Taken = TypeVar("Taken")
LENGTH = struct.Struct("<Q")
ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "LANG", "LC_ALL")
REFUSALS = {"UnreadableImageError": UnreadableImageError, "OutOfScopeError": OutOfScopeError}


class Sandbox:
    """One decoding process, started when first needed; safe to share between threads.

    Files of one sandbox are decoded one after another: take one for each thread that decodes.
    After a fork, and in a copy made by pickling, a sandbox starts a process of its own.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._start_over()

    def decode(
        self, data: bytes, spec: dict[str, Any]
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any] | None]:
        """Decode a file's content.

        Args:
            data: The whole file.
            spec: `ImageSpec.to_dict()`.

        Returns:
            Image `[H, W]`, float32 in [0, 1]; and the fields of its `Header`, None without one.

        Raises:
            UnreadableImageError: If it cannot be decoded, or decoding ran past a limit.
            OutOfScopeError: If the header is out of scope.
        """
        reply, image = self._exchange(
            data, spec, lambda reply, pixels: _image(pixels, reply["shape"], spec["size"])
        )
        header = reply.get("header")
        return image, header if isinstance(header, dict) else None

    def decode_stored(
        self, data: bytes
    ) -> tuple[npt.NDArray[np.uint16] | npt.NDArray[np.int16], dict[str, Any]]:
        """Decode a file's content to stored values; see `medqua.core.vision.stored.read_stored`.

        Raises:
            UnreadableImageError: If it cannot be decoded, or decoding ran past a limit.
        """
        reply, cells = self._exchange(
            data, STORED, lambda reply, pixels: _cells(pixels, reply["description"])
        )
        return cells, reply["description"]

    def start(self) -> None:
        """Start the process, which takes a second, before the first file needs it."""
        with self._lock:
            self._running()

    def close(self) -> None:
        """End the process; a later `decode` starts another."""
        if self._owner == os.getpid():
            with self._lock:
                self._stop()

    def __enter__(self) -> "Sandbox":  # noqa: PYI034  # beartype 0.22 refuses Self here
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> "tuple[type[Sandbox], tuple[Limits]]":
        return type(self), (self.limits,)

    def __del__(self) -> None:
        if getattr(self, "_process", None) is not None and self._owner == os.getpid():
            self._stop()

    def _start_over(self) -> None:
        """Forget the process without ending it: after a fork it is the parent's."""
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._files = 0
        self._timed_out = False

    def _exchange(
        self, data: bytes, spec: dict[str, Any], check: Callable[[dict[str, Any], bytearray], Taken]
    ) -> tuple[dict[str, Any], Taken]:
        """Ask, and raise what the reply refuses or what it must not be."""
        if self._owner != os.getpid():
            self._start_over()
        with self._lock:
            try:
                reply, payload = self._ask(data, spec)
                taken = None if payload is None else check(reply, payload)
            except (OSError, EOFError, ValueError, KeyError, TypeError):
                raise UnreadableImageError(self._post_mortem()) from None
            if taken is None:
                if reply.get("fatal"):
                    self._stop()
                error = REFUSALS.get(str(reply.get("error")), UnreadableImageError)
                raise error(str(reply.get("message", ""))[:500])
            return reply, taken

    def _ask(self, data: bytes, spec: dict[str, Any]) -> tuple[dict[str, Any], bytearray | None]:
        """Send one file and wait for the reply, no longer than the wall limit."""
        process = self._running()
        self._timed_out = False
        watchdog = threading.Timer(self.limits.wall_seconds, self._kill, (process,))
        watchdog.daemon = True
        watchdog.start()
        try:
            if process.stdin is None or process.stdout is None:
                raise EOFError
            write_message(process.stdin, json.dumps(spec).encode(), data)
            stored = spec == STORED
            head = read_exactly(process.stdout, DESCRIPTION_BYTES if stored else REPLY_BYTES)
            reply = json.loads(head)
            if "error" in reply:
                return reply, None
            most = self.limits.data_bytes if stored else 4 * self.limits.pixels
            return reply, read_exactly(process.stdout, most)
        finally:
            watchdog.cancel()

    def _running(self) -> "subprocess.Popen[bytes]":
        """Return a living process that has not served its number of files."""
        if self._process is not None and (
            self._process.poll() is not None or self._files >= FILES_PER_PROCESS
        ):
            self._stop()
        if self._process is None:
            keep = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
            threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            command = [sys.executable, "-P", "-m", "medqua.core.vision.worker"]
            self._process = subprocess.Popen(
                [*command, json.dumps(asdict(self.limits))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=keep | threads,
                cwd="/",  # python-gdcm imports what a file named dl in the working folder holds
            )
            self._files = 0
        self._files += 1
        return self._process

    def _kill(self, process: "subprocess.Popen[bytes]") -> None:
        """End a process that ran out of time."""
        self._timed_out = True
        process.kill()

    def _post_mortem(self) -> str:
        """End the process and say why it gave no good reply."""
        timed_out = self._timed_out
        status = self._stop()
        if timed_out:
            return f"decoding took over {self.limits.wall_seconds:g} s and was stopped"
        if status == -24:  # SIGXCPU
            return f"decoding took over {self.limits.cpu_seconds} s of processor time"
        return "decoding it crashed the decoding process; the file is damaged or hostile"

    def _stop(self) -> int | None:
        """End the process if there is one and return its exit status."""
        process, self._process = self._process, None
        if process is None:
            return None
        for pipe in (process.stdin, process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:
                pass  # what was not yet written to a dead process
        try:
            return process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def _image(payload: bytearray, shape: Any, size: int | None) -> npt.NDArray[np.float32]:
    """Take a reply's pixels for what they must be."""
    height, width = (int(side) for side in shape)
    image = np.frombuffer(payload, np.float32).reshape(height, width)
    if size is not None and image.shape != (size, size):
        raise ValueError
    if not (image.size and image.min() >= 0 and image.max() <= 1):  # a NaN fails as well
        raise ValueError
    return image


def _cells(
    payload: bytearray, description: dict[str, Any]
) -> npt.NDArray[np.uint16] | npt.NDArray[np.int16]:
    """Take a reply's stored values for what they must be."""
    shape = tuple(int(description[side]) for side in ("frames", "rows", "columns"))
    if min(shape) < 1:
        raise ValueError
    if description["signed"]:
        return np.frombuffer(payload, np.int16).reshape(shape)
    return np.frombuffer(payload, np.uint16).reshape(shape)


def write_message(stream: IO[bytes], *parts: bytes) -> None:
    """Write byte strings, each after its length, and flush."""
    for part in parts:
        stream.write(LENGTH.pack(len(part)))
        stream.write(part)
    stream.flush()


def read_exactly(stream: IO[bytes], limit: int) -> bytearray:
    """Read one byte string that `write_message` wrote.

    Raises:
        EOFError: If the stream ends before it does.
        ValueError: If it is over `limit` bytes.
    """
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        raise EOFError
    (length,) = LENGTH.unpack(head)
    if length > limit:
        raise ValueError
    data = bytearray(length)
    view, done = memoryview(data), 0
    while done < length:
        count = stream.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        done += count
    return data
