"""CUDA-Q in a process of its own: its target, its seeds and its threads meet nobody else's.

    parent                                    python -m medqua.core.quantum.runtime.worker
      {"id": 1, "verb": "submit", ...}  --->
                                        <---  {"id": 1, "answer": ...}  or  {"id": 1, "error": ...}

One JSON object a line. Submissions run one after another, in order; waiting for a machine does not
hold them up. A submission may name a file: what a machine gave as its handle is kept there before
it is told, so that it survives a parent that was killed meanwhile. A worker whose parent is gone
ends when the submission in hand has been kept; one that hangs can be killed.
"""

import asyncio
import contextlib
import json
import os
import sys
import threading
from collections.abc import Mapping
from typing import Any

from medqua.core.quantum.runtime.errors import ProviderError


class Worker:
    """The parent's end. Use within one event loop; `close` when done."""

    def __init__(self, lock: int | None = None) -> None:
        """Args: lock: File descriptor of a lock that the process shall hold as long as it lives."""
        self._lock = lock
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._last = 0
        self._starting = asyncio.Lock()

    async def start(self) -> asyncio.subprocess.Process:
        """Return the process when it is ready to be asked, started if there is none.

        Raises:
            ProviderError: It ended before it was ready.
        """
        async with self._starting:
            return await self._alive()

    async def ask(self, verb: str, timeout: float, **fields: object) -> Any:
        """Return the answer to one request.

        Args:
            verb: What is asked.
            timeout: Seconds to wait, once the process is there.
            fields: The request; JSON.

        Raises:
            ProviderError: The worker answers an error, or dies (`kind` is then `doubt`).
            TimeoutError: No answer in time; the process may be at it still.
        """
        process = await self.start()
        self._last += 1
        key, future = self._last, asyncio.get_running_loop().create_future()
        self._waiting[key] = future
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps({"id": key, "verb": verb, **fields}).encode() + b"\n")
            async with asyncio.timeout(timeout):
                with contextlib.suppress(ConnectionError):  # then the reader tells
                    await process.stdin.drain()
                return await future
        finally:
            self._waiting.pop(key, None)

    async def close(self, grace: float = 0.0) -> None:
        """End the process.

        Args:
            grace: Seconds it has to finish the submission in hand before it is killed.
        """
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), grace)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        if self._reader is not None:
            await self._reader

    async def _alive(self) -> asyncio.subprocess.Process:
        """Return the process, started if there is none."""
        if self._process is not None and self._process.returncode is None:
            return self._process
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "medqua.core.quantum.runtime.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=() if self._lock is None else (self._lock,),
            start_new_session=True,  # Ctrl-C is the parent's
            limit=2**26,
        )
        ready = self._waiting[0] = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read(self._process))
        await ready
        return self._process

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Hand answers to those who wait for them, until the process ends."""
        assert process.stdout is not None
        while line := await process.stdout.readline():
            reply = json.loads(line)
            future = self._waiting.get(reply["id"])
            if future is None or future.done():
                continue
            if "error" in reply:
                kind = reply.get("kind", "refused")
                future.set_exception(ProviderError(reply["error"], kind))
            else:
                future.set_result(reply["answer"])
        code = await process.wait()
        for future in self._waiting.values():
            if not future.done():
                text = f"the CUDA-Q process ended with status {code}"
                future.set_exception(ProviderError(text, "doubt"))


def main() -> None:
    """Answer requests from standard input until it ends."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from medqua.core.quantum.runtime import kernels, remote

    assert kernels.cudaq  # imported by the main thread: from another it crashes later

    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what CUDA-Q prints is no reply
    writing = threading.Lock()

    replies.write(b'{"id": 0, "answer": "ready"}\n')

    def answer(key: int, verb: str, fields: Mapping[str, Any]) -> bool:
        reply: dict[str, Any] = {"id": key}
        try:
            reply["answer"] = remote.VERBS[verb](**fields)
        except Exception as error:
            reply["error"] = str(error) or type(error).__name__
            reply["kind"] = getattr(error, "kind", "refused")
        if verb != "prepare" or "error" in reply:
            with writing, contextlib.suppress(OSError):  # nobody may be left to read it
                replies.write(json.dumps(reply).encode() + b"\n")
        return "error" not in reply

    for line in sys.stdin.buffer:
        fields = json.loads(line)
        key, verb = fields.pop("id"), fields.pop("verb")
        if verb != "fetch":
            answer(key, verb, fields)
        elif answer(key, "prepare", {"target": fields["target"]}):
            threading.Thread(target=answer, args=(key, verb, fields), daemon=True).start()
    os._exit(0)  # threads that wait for a machine would keep the process


if __name__ == "__main__":
    main()
