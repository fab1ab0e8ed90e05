"""Write `requirements.lock`: one release of everything that `hatch.toml` can install.

hatch run lock                                   after a change of requirements; keeps what it can
hatch run lock --upgrade                         take the newest releases
hatch run lock --upgrade-package transformers    one of them
hatch run lock --check                           fail if it is not what would be written

uv resolves all environments at once, for Python 3.11 to 3.14, x86_64 and aarch64, with CUDA's
libraries and without, so that a release is the same wherever it is installed. The file is read as
constraints (`UV_CONSTRAINT`): an environment takes from it what it asks for.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
HELD = ROOT / "constraints.txt"
OVERRIDES = (ROOT / "overrides-bounds.txt", ROOT / "benchmarks" / "overrides.txt")
UNLOCKED = ("newest", "lowest")
"""Environments that look for other releases on purpose."""


def requirements() -> list[str]:
    """Return what locked environments and wheels ask for, hatch and the builders included."""
    hatch = _read(ROOT / "hatch.toml")
    lines = {f"hatch{hatch['requires-hatch']}", *_of_wheels()}
    for name, environment in hatch["envs"].items():
        if name not in UNLOCKED:
            lines.update(environment.get("dependencies", ()))
    return sorted(lines)


def default_requirements() -> list[str]:
    """Return what the default environment asks for."""
    return sorted({*_read(ROOT / "hatch.toml")["envs"]["default"]["dependencies"], *_of_wheels()})


def _of_wheels() -> Iterator[str]:
    for file in ROOT.glob("packages/*/pyproject.toml"):
        table = _read(file)
        groups = [table["build-system"]["requires"], table["project"]["dependencies"]]
        groups += table["project"].get("optional-dependencies", {}).values()
        yield from (line for group in groups for line in group if not line.startswith("medqua-"))


def _read(file: Path) -> dict[str, Any]:
    return tomllib.loads(file.read_text())


def compile_lock(output: Path, *options: str) -> None:
    """Resolve all requirements into a file; what it holds already is kept where it fits."""
    command = ["uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "-"]
    command += ["--constraints", str(HELD), "--build-constraints", str(HELD)]
    for file in OVERRIDES:
        command += ["--overrides", str(file)]
    command += ["--no-annotate", "--custom-compile-command", "hatch run lock"]
    command += ["--output-file", str(output), *options]
    # neither the lock itself nor wheels that lie on one machine may decide
    own = {"UV_CONSTRAINT", "UV_BUILD_CONSTRAINT", "UV_OVERRIDE", "UV_FIND_LINKS"}
    environment = {name: value for name, value in os.environ.items() if name not in own}
    asked = "\n".join(requirements())
    subprocess.run(command, input=asked, text=True, check=True, cwd=ROOT, env=environment)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--upgrade", action="store_true", help="take the newest releases")
    parser.add_argument("--upgrade-package", action="append", default=[], metavar="NAME")
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    asked = parser.parse_args()
    options = ["--upgrade"] if asked.upgrade else []
    options += [f"--upgrade-package={name}" for name in asked.upgrade_package]
    before = LOCK.read_text() if LOCK.is_file() else ""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, LOCK.name)
        written.write_text(before)
        try:
            compile_lock(written, *options)
        except subprocess.CalledProcessError as error:
            return error.returncode  # uv has said why
        after = written.read_text()
    if asked.check:
        print("the lock is what would be written" if after == before else "run hatch run lock")
        return int(after != before)
    LOCK.write_text(after)
    changed = sorted({*after.splitlines()} ^ {*before.splitlines()}, key=lambda line: line.lower())
    print("\n".join(f"{'+' if line in after else '-'} {line}" for line in changed) or "no change")
    return 0


if __name__ == "__main__":
    sys.exit(main())
