"""The service asked everything that its own description allows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HOOKS = """
import schemathesis

@schemathesis.serializer("application/dicom", "multipart/related")
def as_it_is(context, value):
    content = getattr(value, "data", value)
    return content if isinstance(content, bytes) else str(content).encode()
"""
"""How bodies are sent that schemathesis does not know."""


@pytest.mark.slow
def test_nothing_that_the_description_allows_is_a_server_error(served, tmp_path: Path):
    schemathesis = Path(sys.executable).with_name("schemathesis")
    command = [str(schemathesis), "run", f"{served.url}/openapi.json", "--max-examples", "40"]
    command += ["--checks", "not_a_server_error", "--phases", "examples,coverage,fuzzing"]
    command += ["--seed", "1", "--request-timeout", "900", "--no-color"]
    (tmp_path / "hooks.py").write_text(HOOKS)
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {"SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert "Fuzzing" in done.stdout
    assert "Unresolvable" not in done.stdout
    assert served.process.poll() is None
    with served.client as client:
        assert client.get("/v1/admin/status").json()["admitted"] == 0
