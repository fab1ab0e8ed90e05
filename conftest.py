"""Fixtures shared by every package's tests."""

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():  # before Triton is imported: its kernels then run on the CPU
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of genuine radiographs and hostile files (`MEDQUA_TEST_DATA`)."""
    root = Path(os.environ.get("MEDQUA_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no real files at {root}: set MEDQUA_TEST_DATA")
    return root
