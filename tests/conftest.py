"""A run of the whole system on a few phantoms, once for all tests that look at what it leaves."""

import subprocess
import sys
from pathlib import Path

import pytest

SMALL = (
    "data.phantoms.patients=30",
    "data.phantoms.size=96",
    "data.phantoms.dicom=true",
    "image.size=112",
    "backbone.source=tiny",
    "backbone.tune=full",
    "backbone.tiny.patch_size=14",
    "backbone.tiny.merge_size=2",
    "backbone.tiny.vision_depth=1",
    "backbone.tiny.vision_hidden=16",
    "backbone.tiny.vision_heads=2",
    "backbone.tiny.vision_mlp=16",
    "backbone.tiny.decoder_layers=2",
    "backbone.tiny.hidden=32",
    "backbone.tiny.heads=2",
    "backbone.tiny.mlp=32",
    "adapter.n_qubits=2",
    "adapter.max_depth=2",
    "adapter.every=1",
    "adapter.rank=4",
    "optim.max_steps=3",
    "optim.batch_size=4",
    "evaluation.bootstrap=20",
)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `medqua-train mimic` leaves on phantoms."""
    root = tmp_path_factory.mktemp("flow")
    command = [sys.executable, "-m", "medqua.train", "mimic", "--output", str(root / "run"), *SMALL]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(root), "MEDQUA_CACHE": str(root / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PHANTOMS" in done.stdout
    return root / "run"


@pytest.fixture(scope="session")
def phantom_tree(run_folder: Path) -> Path:
    """The phantoms of that run."""
    (tree,) = (run_folder.parent / "cache").glob("phantoms-*")
    return tree
