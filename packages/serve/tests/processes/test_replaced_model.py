"""An answer is of the model that the service was started with, or there is none."""

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medqua.core.findings import Calibration
from medqua.core.model import Bundle
from medqua.serve.processes.reader import Reader
from medqua.serve.settings import Batching, Settings


@pytest.mark.anyio
async def test_a_lost_worker_does_not_come_back_as_another_model(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = bundle.save(tmp_path / "bundle")
    settings = Settings(batching=Batching(decoders=1, threads=1))
    async with Reader.open(folder, settings) as reader:
        other = replace(bundle, calibration=Calibration((3.0,) * 14))
        other.save(folder, overwrite=True)
        [worker] = reader.workers.pids
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(TimeoutError):  # it waits for a worker that may never come
            async with asyncio.timeout(1):
                await reader.workers.read([np.zeros((112, 112), np.float32)])
        async with asyncio.timeout(120):
            while "another model lies in the folder" not in caplog.text:
                await asyncio.sleep(0.1)
        assert reader.workers.ready == 0
