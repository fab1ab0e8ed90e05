"""A running service, as a user starts it."""

import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image


def png(seed: int = 0, shape: tuple[int, int] = (70, 66)) -> bytes:
    levels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def radiograph() -> bytes:
    return png()


@dataclass
class Served:
    """A service in a process of its own."""

    process: subprocess.Popen
    folder: Path
    patience: float
    url: str = ""
    follower: threading.Thread | None = None
    log: list[dict] = field(default_factory=list)
    text: list[str] = field(default_factory=list)

    @property
    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=self.patience)

    def end(self) -> None:
        """Ask it to end, and wait until it has."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(self.patience)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise
        if self.follower is not None:
            self.follower.join(self.patience)
        self.process.stderr.close()


def start(patience: float, bundle: Path, folder: Path, *overrides: str) -> Served:
    """Start a service and wait until it listens."""
    storage = [f"storage.spool={folder / 'spool'}", f"storage.audit={folder / 'audit.jsonl'}"]
    command = [sys.executable, "-m", "medqua.serve", "app", str(bundle), "listen.port=0"]
    process = subprocess.Popen(
        [*command, *storage, *overrides],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    served = Served(process, folder, patience)
    listening = threading.Event()

    def follow() -> None:
        for line in process.stderr:
            served.text.append(line)
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            served.log.append(entry)
            if entry["event"] == "listening":
                served.url = f"http://{entry['host']}:{entry['port']}"
                listening.set()
        listening.set()

    served.follower = threading.Thread(target=follow, daemon=True)
    served.follower.start()
    listening.wait(patience)
    if not served.url:
        process.kill()
        raise RuntimeError("".join(served.text))
    return served


@pytest.fixture(scope="session")
def served(
    bundle_folder: Path,
    start_service: Callable[..., Served],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    limits = ("limits.body_seconds=900", "limits.body_bytes=20_000_000", "batching.threads=1")
    served = start_service(bundle_folder, folder, "limits.requests_per_second=0", *limits)
    yield served
    served.end()


@pytest.fixture(scope="session")
def start_service(patience: float) -> Callable[..., Served]:
    """Start a service: `start_service(bundle, folder, *overrides)`; the test ends it."""
    return partial(start, patience)


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with served.client as client:
        yield client
