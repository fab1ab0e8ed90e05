"""The engine as a service: the same findings as in this process, and what happens when it ends."""

import hashlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from medqua.core.errors import ConfigError
from medqua.serve.demo import DEMO
from medqua.serve.processes.batcher import BATCH_TOLERANCE
from medqua.ui.findings import BundleReader
from medqua.ui.server import Credentials, EngineUnavailableError, ServerReader

KEY = "mq_of_the_viewer"
SAMPLE = Path(__file__).parents[1] / "src/medqua/ui/samples/phantom-pa-effusion.dcm"

Start = Callable[[int], subprocess.Popen[str]]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, patience: float) -> Iterator[Start]:
    """Start the service of the demo bundle, with a key, and wait until it is ready."""
    folder, running = tmp_path_factory.mktemp("engine"), []
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    config = folder / "serve.toml"
    config.write_text(f'[[access.keys]]\nname = "viewer"\nsha256 = "{digest}"\n')

    def begin(port: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "medqua.serve", "app", str(DEMO), "--config", str(config)]
        process = subprocess.Popen(
            [*command, f"listen.port={port}", "batching.threads=1"],
            stderr=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            text=True,
        )
        running.append(process)
        assert process.stderr is not None
        for line in process.stderr:
            if '"listening"' in line:
                return process
        raise RuntimeError("the service did not start")

    yield begin
    for process in running:
        process.terminate()
        process.wait(patience)
        process.stderr.close()


def test_findings_are_the_same_both_ways_and_a_lost_engine_is_found_again(
    start: Start,
    closed_port: int,
    tmp_path: Path,
    patience: float,
    eventually: Callable[..., object],
):
    key = tmp_path / "key"
    key.write_text(KEY + "\n")
    content = SAMPLE.read_bytes()
    address = f"http://127.0.0.1:{closed_port}"
    server = ServerReader(address, Credentials.choose(key, None), seconds=patience)
    assert "cannot be reached" in server.state
    with pytest.raises(EngineUnavailableError, match="cannot be reached"):
        server.read("a.dcm", content)
    engine = start(closed_port)
    eventually(lambda: not server.state)
    there = server.read("name of a patient.dcm", content)
    embedded = BundleReader(DEMO)
    embedded.start()
    here = embedded.read("a.dcm", content)
    assert here.findings is not None
    assert there.findings is not None
    assert [row.label for row in there.rows] == [row.label for row in here.rows]
    expected = [row.probability for row in here.rows]
    assert [row.probability for row in there.rows] == pytest.approx(expected, abs=BATCH_TOLERANCE)
    assert [f.code for f in there.findings] == [f.code for f in here.findings]
    assert there.notes == here.notes
    assert there.provenance == here.provenance
    assert there.record["bundle"] == here.record["bundle"]
    without = [row.classical for row in here.rows]
    assert [row.classical for row in there.rows] == pytest.approx(without, abs=BATCH_TOLERANCE)
    assert [row.validated for row in there.rows] == [row.validated for row in here.rows]
    assert there.rows[0].validated is not None
    assert there.image == here.image
    assert there.routes is not None
    assert here.routes is not None
    for one, other in zip(there.routes.layers, here.routes.layers, strict=True):
        assert one.ansatz == other.ansatz
        assert np.array_equal(one.theta, other.theta)
        assert np.array_equal(one.depth, other.depth)
        assert one.gate == pytest.approx(other.gate, abs=BATCH_TOLERANCE)
        assert one.values == pytest.approx(other.values, abs=BATCH_TOLERANCE)
    size = (640, 560)
    covered = server.occlude(content, size)
    expected_cover = embedded.occlude(content, size)
    assert covered is not None
    assert expected_cover is not None
    assert covered.labels == expected_cover.labels
    assert covered.change == pytest.approx(expected_cover.change, abs=BATCH_TOLERANCE)
    assert server.occlude(b"not an image", size) is None

    plan = server.read("plan.dcm", b"not an image")
    assert plan.rows == ()
    assert plan.refusal == "the file is neither DICOM, JPG nor PNG"
    stranger = ServerReader(address, Credentials("another"), seconds=patience)
    with pytest.raises(EngineUnavailableError, match="does not take the viewer's key"):
        stranger.read("a.dcm", content)

    embedded.close()
    engine.kill()
    engine.wait(patience)
    with pytest.raises(EngineUnavailableError):
        server.read("a.dcm", content)


@pytest.mark.parametrize("url", ["engine", "ftp://x", "http://engine.example", "https://u@x"])
def test_an_address_that_would_leak_or_is_none_is_refused(url: str):
    with pytest.raises(ConfigError, match=re.escape("--server")):
        ServerReader(url)


def test_credentials_come_from_files_or_the_environment_and_never_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    token = tmp_path / "token"
    token.write_text("first\n")
    chosen = Credentials.choose(None, token)
    assert chosen.headers() == {"Authorization": "Bearer first"}
    token.write_text("second")
    assert chosen.headers() == {"Authorization": "Bearer second"}
    monkeypatch.setenv("MEDQUA_SERVER_KEY", "k")
    assert Credentials.choose(None, None).headers() == {"X-API-Key": "k"}
    with pytest.raises(ConfigError, match="not both"):
        Credentials.choose(token, token)
    with pytest.raises(ConfigError, match="cannot be read"):
        Credentials.choose(tmp_path / "absent", None)


def test_what_is_no_engine_is_not_believed():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        reader = ServerReader(f"http://127.0.0.1:{port}", seconds=0.2)
        with pytest.raises(EngineUnavailableError):
            reader.read("a.dcm", b"x")
