"""Processes that write reports, so that neither their cost nor a file's header is the service's.

    clerk = Clerk(1)
    report = await clerk.do(report_of, answer, grounds)

One is started with its first task. One that is lost, or does not answer in time, is started anew.
"""

import asyncio
import queue
import signal
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from io import BytesIO
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, ParamSpec, TypeVar

from medqua.core.errors import ImageError, MedQuaError
from medqua.serve.report.grounds import Grounds, findings_of, read_grounds

P = ParamSpec("P")
T = TypeVar("T")

SECONDS = 60.0
"""Time in which a task must be done, in seconds; the first includes the start of the process."""


class ReportError(MedQuaError, RuntimeError):
    """A report could not be written."""


def report_of(answer: Mapping[str, Any], grounds: Mapping[str, Any]) -> tuple[str, bytes]:
    """Write the report of an answer.

    Args:
        answer: With status 200, as `Answer.to_dict` gives it.
        grounds: As `Grounds.to_dict` gives them.

    Returns:
        Its SOP instance UID, and the DICOM file.
    """
    from medqua.serve.report.sr import build_report, to_bytes

    known, findings = _known(answer, grounds), findings_of(answer)
    report = build_report(findings, known.reference(), known.options(), when=known.time)
    return str(report.SOPInstanceUID), to_bytes(report)


def objects_of(
    answer: Mapping[str, Any],
    grounds: Mapping[str, Any],
    picture: bytes | None = None,
    key_object: bool = False,
) -> list[tuple[str, bytes]]:
    """Write the report of an answer, and what comes with it.

    Args:
        answer: With status 200, as `Answer.to_dict` gives it.
        grounds: As `Grounds.to_dict` gives them.
        picture: As `picture_of` gives it, for a secondary capture; None writes none.
        key_object: Write a key object selection too, where there are likely findings.

    Returns:
        SOP instance UID and DICOM file of each, the report first.
    """
    import numpy as np
    from PIL import Image

    from medqua.serve.report.capture import build_capture
    from medqua.serve.report.key_object import build_key_object
    from medqua.serve.report.sr import to_bytes

    known = _known(answer, grounds)
    options, when = known.options(), known.time
    findings, image = findings_of(answer), known.reference()
    written = [report_of(answer, grounds)]
    if picture is not None:
        pixels = np.asarray(Image.open(BytesIO(picture)))
        capture = build_capture(findings, image, pixels, options, when=when)
        written.append((str(capture.SOPInstanceUID), to_bytes(capture)))
    if key_object:
        selection = build_key_object(findings, image, options, when=when)
        if selection is not None:
            written.append((str(selection.SOPInstanceUID), to_bytes(selection)))
    return written


def _known(answer: Mapping[str, Any], grounds: Mapping[str, Any]) -> Grounds:
    """Return grounds; those kept by earlier releases knew the file by its hash alone."""
    return Grounds.from_dict({"content": answer["sha256"], **grounds})


def picture_of(content: bytes) -> bytes:
    """Return the picture of a file for its secondary capture, as a PNG of 8 bits.

    Raises:
        ImageError: It cannot be decoded.
    """
    import numpy as np
    from PIL import Image

    from medqua.core.vision.image import ImageSpec, read_image
    from medqua.serve.report.capture import SIDE

    levels = read_image(content, ImageSpec(profile="display", size=SIDE, scope="any"))
    stream = BytesIO()
    Image.fromarray(np.rint(255 * levels).astype(np.uint8)).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def grounds_of(
    content: bytes, provenance: Mapping[str, Any], device: str, when: str
) -> dict[str, Any]:
    """Take from a file what its report needs, as plain JSON values.

    Raises:
        ImageError: It is no DICOM file, or lacks a UID.
    """
    return read_grounds(content, provenance, device, datetime.fromisoformat(when)).to_dict()


class Clerk:
    """Writes reports in processes of its own.

    Args:
        count: How many.
    """

    def __init__(self, count: int = 1) -> None:
        self._running: list[Any] = []
        self._idle: queue.SimpleQueue[_Desk] = queue.SimpleQueue()
        for _ in range(count):
            self._idle.put(_Desk(self._running))
        self._threads = ThreadPoolExecutor(count, "medqua-clerk")
        self._end = weakref.finalize(self, _kill, self._running)

    def start(self) -> None:
        """Start a process now, so that the first report does not wait for it."""
        self._threads.submit(self._start)

    async def do(self, task: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """Have a function of this module, or another that can be imported, called in a process.

        Raises:
            ImageError: As the task raised it.
            ReportError: It ended otherwise, was killed, or took too long.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._do, task, args, named)

    def close(self) -> None:
        """End the processes."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._end()

    def _start(self) -> None:
        desk = self._idle.get()
        try:
            desk.start()
        finally:
            self._idle.put(desk)

    def _do(self, task: Callable[..., T], args: tuple[Any, ...], named: dict[str, Any]) -> T:
        desk = self._idle.get()
        try:
            return desk.ask(task, args, named)
        finally:
            self._idle.put(desk)


class _Desk:
    """One process, and the pipe to it."""

    def __init__(self, running: list[Any]) -> None:
        self._running = running
        self._process: Any = None
        self._connection: Connection | None = None

    def start(self) -> None:
        """Start the process, if none runs."""
        if self._connection is None:
            with suppress(OSError):
                self._start()

    def ask(self, task: Callable[..., T], args: tuple[Any, ...], named: dict[str, Any]) -> T:
        """Have a task done; see `Clerk.do`."""
        try:
            connection = self._connection or self._start()
            connection.send((task, args, named))
            if not connection.poll(SECONDS):
                raise TimeoutError
            done, result = connection.recv()
        except (EOFError, OSError):
            self._stop()
            raise ReportError("the process that writes reports was lost; try again") from None
        if done:
            return result  # type: ignore[no-any-return]
        kind, reason = result
        if kind == "ImageError":
            raise ImageError(reason)
        raise ReportError(f"the report could not be written ({kind})")

    def _start(self) -> Connection:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(theirs,), daemon=True, name="medqua-clerk"
        )
        self._process.start()
        theirs.close()
        self._running.append(self._process)
        return self._connection

    def _stop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._running.remove(self._process)
            self._process = None


def _work(connection: Connection) -> None:
    """Do tasks until the connection ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent drains, and then closes us
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    import medqua.serve.report.sr  # noqa: F401  # takes a second or two, better now than later

    while True:
        try:
            task, args, named = connection.recv()
        except (EOFError, OSError):
            return
        try:
            told = True, task(*args, **named)
        except ImageError as error:
            told = False, ("ImageError", str(error))  # ours hold no patient data
        except Exception as error:  # its text may
            told = False, (type(error).__name__, "")
        try:
            connection.send(told)
        except OSError:
            return


def _kill(running: list[Any]) -> None:
    for process in running:
        process.kill()
    for process in running:
        process.join()
