"""What of a run may leave the machine: figures and settings; no images, identifiers or paths."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medqua.train.recipe import Recipe

PATHS = frozenset(
    {
        "data.root",
        "data.image_root",
        "data.table",
        "data.cache",
        "data.train_on",
        "data.test_on",
        "run.prefix",
        "report.root",
    }
)
"""Settings that tell where files are, or may name images: kept back unless asked for."""


def settings(recipe: Recipe, *, paths: bool) -> dict[str, Any]:
    """The recipe's keys, dotted, without those that tell paths unless `paths` is true.

    The backbone's source is its folder's name alone where it is a folder.
    """
    found = dict(_flat(recipe.to_dict()))
    if paths:
        return found
    source = str(found["backbone.source"])
    if source.startswith(("~", ".")) or Path(source).is_absolute() or Path(source).is_dir():
        found["backbone.source"] = Path(source).name
    return {key: value for key, value in found.items() if key not in PATHS}


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a line of the log, without its step and epoch."""
    return {
        name: float(value)
        for name, value in line.items()
        if name not in ("step", "epoch") and isinstance(value, int | float) and math.isfinite(value)
    }


def summary(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The figures of `metrics.json` as numbers by name: `test/macro_auroc`, `test/Edema/auroc`."""
    found: dict[str, float] = {}
    for split in ("test", "validate", "untrained"):
        figures = metrics.get(split) or {}
        found |= {f"{split}/{name}": value for name, value in scalars(figures).items()}
        for label, row in (figures.get("per_label") or {}).items():
            found |= {f"{split}/{label}/{name}": value for name, value in scalars(row).items()}
    return found | scalars({k: v for k, v in metrics.items() if not isinstance(v, Mapping)})


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
