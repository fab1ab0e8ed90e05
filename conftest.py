"""Fixtures shared by every package's tests."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of genuine radiographs and hostile files (`MEDQUA_TEST_DATA`)."""
    root = Path(os.environ.get("MEDQUA_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no real files at {root}: set MEDQUA_TEST_DATA")
    return root
