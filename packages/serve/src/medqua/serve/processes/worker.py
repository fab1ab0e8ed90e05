"""The process that holds the model: batches in, findings out, until its parent is gone.

A message to it is a batch `[B, H, W]` float32 or `Explain`; its answer `Answered` or `Failed`. It
first sends a `Model`, after a warm inference. Both ends are the service's own code: nothing of a
client but pixels, which the decoding process has made and the parent has checked, reaches it.
"""

import signal
import time
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from medqua.core.errors import BundleError, MedQuaError
from medqua.core.findings.result import Findings
from medqua.serve.inference.engine import Engine, Explains, Model, open_engine

WARM_SIDE = 448
"""Side of the warm image where the model reads any size, in pixels."""


@dataclass(frozen=True, eq=False)
class Explain:
    """A request to tell how the answer to one image comes about."""

    image: np.ndarray
    """`[H, W]` float32 in [0, 1]."""
    covering: tuple[int, int, int, int] | None = None
    """Left, top, width and height of the part whose regions are covered in turn; None explains
    the findings instead."""


@dataclass(frozen=True)
class Answered:
    """Findings of a batch, or one explanation."""

    results: tuple[dict[str, Any], ...]
    """One an image: `findings`, and `quantum` where the engine tells it, or what `Explains` tells;
    plain JSON values."""
    seconds: float
    """Time of the forward pass."""


@dataclass(frozen=True)
class Failed:
    """A batch that the engine could not read, or an engine that could not be opened."""

    error: str
    """Class of the error."""
    reason: str
    """Its message."""


def work(connection: Connection, directory: Path, device: str, threads: int) -> None:
    """Open the model, say so, then answer batches until the connection ends.

    Args:
        connection: To the parent.
        directory: Bundle or export.
        device: Where the model runs.
        threads: Threads of one operator.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent drains, and then closes us
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
    try:
        engine = open_engine(directory, device, threads)
        side = engine.image.size or WARM_SIDE
        engine.read([np.linspace(0, 1, side * side, dtype=np.float32).reshape(side, side)])
    except Exception as error:
        connection.send(Failed(type(error).__name__, str(error)))
        return
    explains = isinstance(engine, Explains)
    connection.send(Model(engine.labels, engine.image, dict(engine.provenance()), explains))
    while True:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            return
        try:
            connection.send(answer(engine, message))
        except OSError:
            return


def answer(engine: Engine, message: np.ndarray | Explain) -> Answered | Failed:
    """Read one batch `[B, H, W]` float32, or explain one image."""
    start = time.perf_counter()
    try:
        if isinstance(message, Explain):
            results: tuple[dict[str, Any], ...] = (_explain(engine, message),)
        else:
            results = tuple(map(_told, engine.read(list(message))))
    except MedQuaError as error:
        return Failed(type(error).__name__, str(error))
    except Exception as error:  # a defect of the engine must not end the process
        return Failed(type(error).__name__, "the model could not read this image")
    return Answered(results, time.perf_counter() - start)


def _told(findings: Findings) -> dict[str, Any]:
    quantum = getattr(findings, "quantum", None)
    return {"findings": findings.to_dict()["findings"], "quantum": quantum and quantum.to_dict()}


def _explain(engine: Engine, wanted: Explain) -> dict[str, Any]:
    if not isinstance(engine, Explains):
        raise BundleError("an export does not tell how its answers come about; serve the bundle")
    if wanted.covering is None:
        return engine.explain(wanted.image)
    return engine.occlude(wanted.image, wanted.covering)
