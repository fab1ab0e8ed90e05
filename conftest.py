"""Fixtures shared by every package's tests."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

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


@pytest.fixture(scope="session")
def missing_peer() -> Callable[[str], NoReturn]:
    """What to call where a program that tests talk to is not installed (Orthanc, Chromium...).

    The test is skipped, and fails with `MEDQUA_TEST_PEERS=required`, which `.ci/run` sets.
    """

    def missing(reason: str) -> NoReturn:
        if os.environ.get("MEDQUA_TEST_PEERS") == "required":
            pytest.fail(reason)
        pytest.skip(reason)

    return missing
