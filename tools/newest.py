"""Try the newest release of every library, beside the lock: `hatch run newest:test`.

It brings its environment up to date, names what is newer than `requirements.lock`, runs the tests
that touch other libraries, and says which library's tests fail. Options go to pytest.
"""

import os
import subprocess
import sys
import tempfile
from importlib.metadata import distributions, version
from pathlib import Path
from xml.etree import ElementTree

from lock import LOCK, ROOT, default_requirements
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

WATCHED = {
    "transformers, PEFT, torch": [
        "packages/core/tests/adapter",
        "packages/core/tests/model",
        "packages/train/tests/test_run.py",
        "packages/train/tests/test_checkpoint.py",
        "packages/train/tests/test_distributed_training.py",
        "packages/train/tests/test_prefix.py",
    ],
    "CUDA-Q, PennyLane, Qiskit, mitiq, Triton": ["packages/core/tests/quantum"],
    "pydicom and its decoders": ["packages/core/tests/vision"],
    "ONNX, ONNX Runtime": ["packages/serve/tests/export", "packages/serve/tests/inference"],
    "highdicom, pynetdicom, dicomweb-client": [
        "packages/serve/tests/report",
        "packages/serve/tests/pacs",
    ],
    "FastAPI, Starlette, pydantic": ["packages/serve/tests/http"],
    "Gradio": ["packages/ui/tests/test_app.py", "packages/ui/tests/test_hospital.py"],
    "scikit-learn, SciPy, torchmetrics": ["packages/train/tests/statistics"],
    "trackers, Optuna": [
        "packages/train/tests/test_trackers.py",
        "packages/train/tests/test_sweep.py",
    ],
}
"""Libraries -> the tests that hold what we take from them."""

NAMED = (
    "transformers", "peft", "torch", "cuda-quantum-cu13", "pennylane", "pydicom", "highdicom",
    "onnx", "onnxruntime", "fastapi", "gradio", "scikit-learn",
)  # fmt: skip
"""Of these the installed release is told, newer or not."""


def newer() -> dict[str, tuple[str, str]]:
    """Return what is installed in a newer release than the lock's: name -> (locked, installed)."""
    locked: dict[str, Version] = {}
    for line in LOCK.read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate():
                (pin,) = requirement.specifier
                locked[canonicalize_name(requirement.name)] = Version(pin.version)
    found = {}
    for distribution in distributions():
        name = canonicalize_name(distribution.name)
        here = Version(Version(distribution.version).public)  # a CPU wheel is no newer release
        if name in locked and here > locked[name]:
            found[name] = (str(locked[name]), str(here))
    return dict(sorted(found.items()))


def failed(report: Path) -> dict[str, list[str]]:
    """Return the failed tests of a JUnit report, by the libraries that they watch."""
    by_library: dict[str, list[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("failure") is None and case.find("error") is None:
            continue
        file = case.get("classname", "").replace(".", "/")
        library = next(
            (name for name, paths in WATCHED.items() if file.startswith(tuple(map(_stem, paths)))),
            "other",
        )
        by_library.setdefault(library, []).append(f"{file}::{case.get('name')}")
    return by_library


def _stem(path: str) -> str:
    return path.removesuffix(".py")


def main() -> int:
    upgrade = ["uv", "pip", "install", "--quiet", "--upgrade", "--python", sys.executable]
    subprocess.run([*upgrade, *default_requirements()], check=True, cwd=ROOT)
    print("tried:", ", ".join(f"{name} {version(name)}" for name in NAMED))
    found = newer()
    for name, (lock, now) in found.items():
        print(f"{name}: the lock has {lock}, here is {now}")
    print(f"{len(found)} newer than the lock" if found else "nothing is newer than the lock")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-n", "auto", f"--junit-xml={report}"]
        command += ["-m", "not slow and not gpu", *sys.argv[1:]]
        paths = [path for group in WATCHED.values() for path in group]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        status = subprocess.run([*command, *paths], check=False, cwd=ROOT, env=environment)
        failures = failed(report) if report.is_file() else {}
    for library, tests in failures.items():
        print(f"{library}: {len(tests)} failed")
        print("\n".join(f"  {test}" for test in tests))
    if not status.returncode:
        print("green with the newest releases")
    return status.returncode


if __name__ == "__main__":
    sys.exit(main())
