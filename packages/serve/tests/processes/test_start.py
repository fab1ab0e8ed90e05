"""What a start must not load, and which process it may spare what."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medqua.serve.demo import DEMO
from medqua.serve.inference.engine import needs_no_bitsandbytes
from medqua.serve.processes.workers import Workers
from medqua.serve.settings import Batching

HEAVY = ("torch._dynamo", "transformers", "peft", "bitsandbytes", "highdicom")


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("medqua.serve.inference.session", HEAVY),
        ("medqua.serve.http.app", ("torch", *HEAVY)),
        ("medqua.serve.processes.workers", ("torch", "pydicom", "fastapi", *HEAVY)),
    ],
)
def test_a_start_does_not_load(module: str, absent: tuple[str, ...]):
    code = f"import sys, {module}; print([name for name in {absent} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_bitsandbytes_is_spared_where_the_backbone_has_no_4_bits(tmp_path: Path):
    assert needs_no_bitsandbytes(DEMO)
    assert not needs_no_bitsandbytes(tmp_path)  # a backbone from elsewhere, or an export
    bundle = tmp_path / "bundle"
    (bundle / "backbone").mkdir(parents=True)
    config = bundle / "backbone" / "config.json"
    shutil.copy(DEMO / "backbone" / "config.json", config)
    assert needs_no_bitsandbytes(bundle)
    four_bits = json.loads(config.read_text()) | {"quantization_config": {"load_in_4bit": True}}
    config.write_text(json.dumps(four_bits))
    assert not needs_no_bitsandbytes(bundle)
    config.write_text("[]")
    assert not needs_no_bitsandbytes(bundle)
    config.write_bytes(b"{")
    assert not needs_no_bitsandbytes(bundle)


@pytest.mark.anyio
async def test_launched_workers_are_waited_for_not_started_again():
    workers = Workers(DEMO, Batching())
    workers.launch()
    launched = workers.pids
    try:
        await workers.start()
        assert workers.pids == launched
        assert workers.ready == 1
        assert len(workers.model.labels) == 14
    finally:
        await workers.close()
