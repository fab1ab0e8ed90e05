"""Run deptry over each package: imports and declared dependencies must agree."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    status = 0
    for package in sorted((ROOT / "packages").iterdir()):
        command = [sys.executable, "-m", "deptry", "src", "--config", "pyproject.toml"]
        print(package.name, flush=True)
        status |= subprocess.run(command, cwd=package, check=False).returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
