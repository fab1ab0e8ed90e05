"""What is installed is whole: the built wheel holds all that the viewer serves."""

import zipfile
from pathlib import Path

from hatchling.builders.wheel import WheelBuilder

PACKAGE = Path(__file__).parents[1]


def test_the_wheel_holds_pages_scripts_styles_and_samples(tmp_path: Path):
    (built,) = WheelBuilder(str(PACKAGE)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(built) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    source = PACKAGE / "src"
    there = {
        str(path.relative_to(source))
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == there
    kinds = {Path(name).suffix for name in held}
    assert {".py", ".js", ".css", ".html", ".dcm"} <= kinds
    assert "medqua/ui/py.typed" in held
