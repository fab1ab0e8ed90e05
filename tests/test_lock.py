"""The lock holds what every environment asks for, and this environment is what it says."""

import importlib.util
import re
import tomllib
from importlib.metadata import distributions
from pathlib import Path
from types import ModuleType

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]


def _tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lock", ROOT / "tools" / "lock.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LINES = [
    Requirement(line)
    for line in (ROOT / "requirements.lock").read_text().splitlines()
    if not line.startswith("#")
]


def _locked(environment: dict[str, str]) -> dict[str, Version]:
    """Name -> release for one interpreter on one machine; a name that has two fails."""
    found: dict[str, Version] = {}
    for line in LINES:
        if line.marker is None or line.marker.evaluate(environment):
            assert line.name not in found, f"{line.name} is locked twice"
            (version,) = line.specifier
            assert version.operator == "=="
            found[canonicalize_name(line.name)] = Version(version.version)
    return found


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("python", ["3.11.7", "3.12.0", "3.13.0", "3.14.0"])
def test_every_requirement_has_its_release(python: str, machine: str) -> None:
    short = python.rpartition(".")[0]
    here = {"python_version": short, "python_full_version": python, "platform_machine": machine}
    locked = _locked({**default_environment(), **here})
    for line in _tool().requirements():
        asked = Requirement(line)
        if asked.marker is None or asked.marker.evaluate(here):
            assert locked[canonicalize_name(asked.name)] in asked.specifier, line


def test_this_environment_is_the_locks() -> None:
    locked = _locked(dict(default_environment()))
    other = {}
    for installed in distributions():
        name, version = canonicalize_name(installed.name), Version(installed.version)
        if name in locked and Version(version.public) != locked[name]:
            other[name] = f"{version} here, {locked[name]} in the lock"
        elif name not in locked and not name.startswith("medqua-") and name != "pip":
            other[name] = f"{version} here, not in the lock"
    assert not other, f"make the environment anew, by hatch env remove default: {other}"


def test_every_environment_takes_the_lock() -> None:
    environments = tomllib.loads((ROOT / "hatch.toml").read_text())["envs"]
    for name, environment in environments.items():
        if name in _tool().UNLOCKED:
            continue
        own = environment.get("env-vars")
        inherits = own is None and environment.get("template", "default") == "default"
        takes = own is not None and own["UV_CONSTRAINT"] == "{root}/requirements.lock"
        assert inherits or takes, name


def test_the_lock_names_releases_alone() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"https?:|file:|@ ", text)
