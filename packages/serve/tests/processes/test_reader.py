import asyncio
import io
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medqua.core.errors import BundleError
from medqua.core.model import Bundle
from medqua.serve.processes.batcher import BATCH_TOLERANCE, OverloadError
from medqua.serve.processes.reader import Answer, Observer, Reader
from medqua.serve.settings import Batching, Limits, Settings

pytestmark = pytest.mark.anyio


def png(seed: int) -> bytes:
    levels = np.random.default_rng(seed).integers(0, 256, (70, 66), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    return file.getvalue()


SETTINGS = Settings(
    batching=Batching(max_queue_delay=0.05, decoders=1, threads=1), limits=Limits(pixels=20_000)
)


class Heard:
    """What an observer was told since it was last asked."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.batches: list[int] = []
        self.answers: list[Answer] = []
        self.decoded: list[float] = []

    def observer(self) -> Observer:
        return Observer(
            batch=lambda size, seconds: self.batches.append(size),
            answered=lambda answer: self.answers.append(answer),
            decoded=lambda seconds: self.decoded.append(seconds),
        )


@pytest.fixture(scope="module")
def heard() -> Heard:
    return Heard()


@pytest.fixture(scope="module")
async def reader(anyio_backend: str, bundle_folder: Path, heard: Heard):
    async with Reader.open(bundle_folder, SETTINGS, heard.observer()) as reader:
        yield reader


def probabilities(answer: Answer) -> list[float]:
    assert answer.findings is not None, answer.reason
    return [finding["probability"] for finding in answer.findings]


async def test_in_a_batch_as_alone_as_the_bundle_itself(reader: Reader, bundle: Bundle):
    files = [png(seed) for seed in range(8)]
    together = await asyncio.gather(
        *(reader.read(file, name=str(i)) for i, file in enumerate(files))
    )
    assert [answer.source for answer in together] == [str(i) for i in range(8)]
    for file, answer in zip(files, together, strict=True):
        alone = await reader.read(file)
        itself = [finding.probability for finding in bundle.predict([file])[0]]
        assert probabilities(answer) == pytest.approx(probabilities(alone), abs=BATCH_TOLERANCE)
        assert probabilities(answer) == pytest.approx(itself, abs=BATCH_TOLERANCE)
        assert answer.notes == ("no DICOM header: taken for a frontal chest radiograph",)


async def test_a_bad_file_spoils_no_other(reader: Reader):
    good, bad, empty = await asyncio.gather(*(reader.read(f) for f in (png(1), b"no image", b"")))
    assert (good.status, bad.status, empty.status) == (200, 422, 422)
    assert (bad.error, bad.findings) == ("UnreadableImageError", None)


async def test_a_lost_worker_loses_no_request(reader: Reader):
    (old,) = reader.workers.pids
    tasks = [asyncio.create_task(reader.read(png(seed))) for seed in range(4)]
    while not any(task.done() for task in tasks):
        await asyncio.sleep(0.001)
        if reader.workers.pids == [old]:
            os.kill(old, signal.SIGKILL)
            break
    answers = await asyncio.gather(*tasks)
    assert [answer.status for answer in answers] == [200] * 4
    assert reader.workers.pids != [old]
    assert reader.workers.ready == 1
    assert reader.batcher.admitted == 0


@pytest.mark.slow
async def test_who_loses_two_workers_is_told_so(reader: Reader):
    stop = asyncio.Event()

    async def killer() -> None:
        killed: set[int] = set()
        while len(killed) < 2:
            for pid in reader.workers.pids:
                if pid not in killed and reader.workers.ready == 1:
                    os.kill(pid, signal.SIGSTOP)  # it hangs, so that it surely holds the image
                    if stop.is_set():
                        os.kill(pid, signal.SIGKILL)
                        killed.add(pid)
            await asyncio.sleep(0.01)

    task = asyncio.create_task(killer())
    request = asyncio.create_task(reader.read(png(3)))
    while reader.batcher.queued or not reader.batcher.admitted:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)
    stop.set()
    answer = await request
    await task
    assert (answer.status, answer.error) == (503, "WorkerLostError")
    assert "try again" in answer.reason
    assert (await reader.read(png(3))).status == 200


async def test_a_deadline_is_kept_while_the_worker_hangs(reader: Reader):
    (pid,) = reader.workers.pids
    os.kill(pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(900):
            answer = await reader.read(png(1), deadline=reader.deadline(0.5))
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (answer.status, answer.error) == (504, "DeadlineError")
    assert (await reader.read(png(1))).status == 200


async def test_places_are_given_back_by_who_gives_up(reader: Reader):
    tasks = [asyncio.create_task(reader.read(png(seed))) for seed in range(5)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert reader.batcher.admitted == 0


async def test_overload_is_refused_at_the_door(reader: Reader):
    for _ in range(SETTINGS.batching.max_queue):
        reader.batcher.enter()
    with pytest.raises(OverloadError):
        await reader.read(png(1))
    for _ in range(SETTINGS.batching.max_queue):
        reader.batcher.leave()


async def test_observer_is_told(reader: Reader, heard: Heard):
    heard.forget()
    await reader.read(png(1), name="a")
    large = io.BytesIO()
    Image.new("L", (200, 200)).save(large, "PNG")
    assert (await reader.read(large.getvalue(), name="b")).status == 422
    assert heard.batches == [1]
    assert [answer.source for answer in heard.answers] == ["a", "b"]
    assert len(heard.decoded) == 2


async def test_a_folder_that_is_no_bundle(tmp_path: Path):
    with pytest.raises(BundleError, match="no bundle"):
        async with Reader.open(tmp_path, SETTINGS):
            pass
