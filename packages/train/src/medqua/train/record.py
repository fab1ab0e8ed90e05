"""The run folder: what a run leaves behind, each file whole or absent.

metrics.json          figures (schema in `docs/training.md`)
run.json              recipe, seeds, versions, data, device, state of the run
manifest.parquet      every image with its patient, split and labels
predictions.parquet   logits and calibrated probabilities of validate and test
unreadable.txt        images that were skipped, if any
bundle/               the model, for `medqua-serve`
trainer_state/        checkpoints, to resume from
tensorboard/          the training log
plots/                ROC and learning curves
"""

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from medqua.core.errors import ConfigError, DataError
from medqua.train.processes import distributed
from medqua.train.recipe import Recipe

PACKAGES = (
    *("medqua-core", "medqua-train", "torch", "transformers", "peft", "accelerate", "numpy"),
    *("polars", "torchmetrics", "pillow", "safetensors"),
)
"""Whose versions are recorded."""


def new_folder(output: str | None, name: str) -> Path:
    """The run's folder: what the user named, or `runs/NAME-TIME`; the same on every rank."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path(distributed.from_main(output or f"runs/{name}-{stamp}"))


def prepare_folder(folder: Path, *, resume: bool) -> None:
    """Make the folder, or refuse one that holds another run.

    Raises:
        ConfigError: It holds a run and `resume` is false, or none and `resume` is true.
    """
    known = (folder / "run.json").is_file()
    if resume and not known:
        raise ConfigError(f"nothing to resume in {folder}: it holds no run.json")
    if known and not resume:
        raise ConfigError(
            f"{folder} holds a run already: give another --output, or --resume to go on with it"
        )
    folder.mkdir(parents=True, exist_ok=True)


def check_same_recipe(folder: Path, recipe: Recipe) -> None:
    """Refuse to resume a run by another recipe.

    Raises:
        ConfigError: A value differs; the first few are named.
    """
    before = _flat(read_json(folder / "run.json").get("recipe", {}))
    now = _flat(json.loads(json.dumps(recipe.to_dict())))
    differ = [key for key in sorted(before | now) if before.get(key) != now.get(key)]
    if differ:
        shown = ", ".join(f"{k} was {before.get(k)!r}, is {now.get(k)!r}" for k in differ[:3])
        raise ConfigError(
            f"{folder} was made by another recipe ({shown}): resume with the same overrides, or "
            "start a new run with another --output"
        )


def check_same_data(record: Mapping[str, Any], fingerprint: str) -> None:
    """Refuse to resume a run on other data than it began with.

    Args:
        record: What `run.json` holds.
        fingerprint: Of the manifest as it is now.

    Raises:
        DataError: Images, patients, splits or labels have changed since.
    """
    before = record.get("data_hash")
    if before is not None and before != fingerprint:
        raise DataError(
            f"the data has changed since this run began: its manifest was {before[:12]}, is "
            f"{fingerprint[:12]} (images, patients, splits or labels); restore data.root as it "
            "was, or start a new run with another --output"
        )


class RunState:
    """`run.json`, kept true while the run goes on.

    Args:
        folder: The run folder.
        record: What it says so far.
    """

    def __init__(self, folder: Path, record: dict[str, Any]) -> None:
        self.path = folder / "run.json"
        self.record = record

    def add(self, **values: Any) -> None:
        """Say more, from the next `write` on."""
        self.record |= values

    def write(self, state: str) -> None:
        """Say how the run stands; rank 0 alone writes."""
        if distributed.is_main():
            self.record["state"] = state
            self.record.pop("error", None)
            write_json(self.path, self.record)

    def failed(self, error: BaseException) -> None:
        """Say that the run failed and on which rank; any rank may, since rank 0 may be dead."""
        record = self.record
        if not distributed.is_main():
            try:
                record = read_json(self.path)
            except DataError:
                return
            if record.get("state") != "running":
                return
        kind, rank = type(error).__name__, distributed.rank()
        write_json(self.path, {**record, "state": "failed", "error": f"{kind} on rank {rank}"})


def describe_run(recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """What `run.json` says from the start."""
    return {
        "recipe": recipe.to_dict(),
        "seed": recipe.run.seed,
        "command": sys.argv[1:],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **_versions()},
        "git_commit": git_commit(),
        "device": {
            "type": device.type,
            "name": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu(),
            "processes": distributed.world_size(),
            "threads": torch.get_num_threads(),
            "system": platform.platform(),
        },
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON, whole or not at all; NaN and infinities become null."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(_finite(content), indent=2, allow_nan=False) + "\n", "utf-8")
    partial.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DataError: It is absent or no JSON object.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no JSON object")
    return content


def git_commit() -> str | None:
    """Commit of the source that runs, with `+` if it was changed since; None outside git."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--dirty=+"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None


def peak_memory_mib() -> float:
    """Largest resident memory of this process so far, in MiB."""
    try:
        import resource
    except ImportError:  # not on this system
        return math.nan
    unit = 1024 if sys.platform == "darwin" else 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 / unit


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _cpu() -> str:
    cores = os.cpu_count() or 1
    return f"{platform.processor() or platform.machine()}, {cores} cores"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
