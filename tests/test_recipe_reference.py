import runpy
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[1] / "tools" / "recipe_reference.py"


def test_the_committed_page_is_what_the_dataclasses_say(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", [str(TOOL), "--check"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TOOL), run_name="__main__")
    assert ended.value.code == 0
