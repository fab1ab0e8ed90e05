"""The decoding process of a sandbox: limits itself, then decodes what it is sent.

Started by `medqua.core.vision.sandbox` as
`python -m medqua.core.vision.worker LIMITS`, the fields of `Limits` as JSON.
"""

import ctypes
import json
import os
import resource
import sys
from dataclasses import asdict
from typing import Any

if __name__ == "__main__":  # pydicom would load it, to fetch samples
    sys.modules["requests"] = None  # type: ignore[assignment]

from medqua.core.errors import ImageError
from medqua.core.vision.dicom import read_dicom  # noqa: F401 loads the codecs before the first file
from medqua.core.vision.image import ImageSpec, decode_image
from medqua.core.vision.limits import Limits
from medqua.core.vision.sandbox import STORED, read_exactly, write_message
from medqua.core.vision.stored import read_stored

PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 4, 38


def main(limits: Limits) -> None:
    """Answer files within `limits` until the input ends."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # what codecs print must not reach the replies or a log
        os.dup2(nowhere, descriptor)
    _confine(limits.memory_bytes)
    while True:
        try:
            spec = json.loads(read_exactly(requests, 1 << 16))
            data = bytes(read_exactly(requests, limits.file_bytes))
        except EOFError:
            return
        _allow_cpu(limits.cpu_seconds)
        try:
            if spec == STORED:
                cells, description = read_stored(data, limits)
                reply: dict[str, Any] = {"description": description}
                payload = cells.tobytes()
            else:
                decoded = decode_image(data, ImageSpec.from_dict(spec), limits)
                header = None if decoded.header is None else asdict(decoded.header)
                reply = {"shape": decoded.image.shape, "header": header}
                payload = decoded.image.tobytes()
        except ImageError as error:
            write_message(replies, _refusal(type(error).__name__, str(error)))
        except MemoryError:
            needed = f"over {limits.memory_bytes >> 20} MiB"
            reason = f"decoding it needs {needed}; the file is hostile or huge"
            write_message(replies, _refusal("UnreadableImageError", reason, fatal=True))
        else:
            write_message(replies, json.dumps(reply).encode(), payload)


def _refusal(name: str, message: str, *, fatal: bool = False) -> bytes:
    """Build the reply for a file that is refused; `fatal` asks for a fresh process."""
    return json.dumps({"error": name, "message": message, "fatal": fatal}).encode()


def _confine(memory_bytes: int) -> None:
    """Limit memory; forbid files, core dumps and new privileges."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # a core pattern with a pipe ignores RLIMIT_CORE
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _allow_cpu(seconds: int) -> None:
    """Grant some more processor time from now on; SIGXCPU ends the process past it."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = int(usage.ru_utime + usage.ru_stime) + 1
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (used + seconds, hard))


if __name__ == "__main__":
    main(Limits(**json.loads(sys.argv[1])))
