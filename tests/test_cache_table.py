import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("cache_table", ROOT / "tools" / "cache_table.py")
cache_table = importlib.util.module_from_spec(SPEC)
sys.modules["cache_table"] = cache_table
SPEC.loader.exec_module(cache_table)

REAL = 2 * (sum(cache_table.LENGTHS) + 3 * (cache_table.NEW - 1))
"""Tokens of the prompts and of what was generated and read again, in two adapted layers."""


def name(case: object) -> str:
    return " ".join(vars(case).values())


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[pytest.mark.gpu] * case.cache.startswith("offloaded"))
        for case in cache_table.CASES
    ],
    ids=name,
)
def test_every_cache_gives_what_none_gives(case: object) -> None:
    held = cache_table.hold(case)
    assert held.active
    assert held.active_tokens == REAL
    assert 0 < held.routed_tokens < REAL
    if case.cache == "quantized":  # it rounds keys and values, for the backbone alone too
        assert not held.backbone
    else:
        assert (held.tokens, held.routes, held.backbone) == (True, True, True)


def test_the_page_shows_the_committed_results() -> None:
    command = [sys.executable, str(ROOT / "tools" / "cache_table.py"), "--page", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
