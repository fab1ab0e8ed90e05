"""The cells of an experiment: which runs it is made of, and which of them are done."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medqua.train.experiment.arms import ARMS, Arm, find_arm
from medqua.train.experiment.section import ExperimentSection
from medqua.train.recipe import Recipe, load_recipe
from medqua.train.record import check_same_recipe, read_json

QUIET = (
    "run.trackers=[]",
    "evaluation.plots=false",
    "evaluation.bootstrap=0",
    "evaluation.untrained=false",
)
"""Of each cell: what the report does for all of them together."""


@dataclass(frozen=True)
class Cell:
    """One arm with one seed on one share of the training patients."""

    arm: Arm
    """Which arm."""
    seed: int
    """Value of `run.seed`."""
    share: float
    """Share of the training patients, (0, 1]."""
    recipe: Recipe
    """The run."""
    folder: Path
    """Its run folder."""

    @property
    def title(self) -> str:
        """What to call it while it runs."""
        part = "" if self.share == 1 else f", {self.share:.3g} of the patients"
        return f"{self.arm.name}, seed {self.seed}{part}"


def plan(source: str | Path, overrides: Sequence[str], output: Path) -> list[Cell]:
    """All cells of an experiment, a seed after the other, so that half a grid is balanced.

    An arm that trains nothing has one cell: its first seed on the largest share.

    Args:
        source: Name of a shipped recipe, or a TOML file.
        overrides: `key=value`; the keys that make an arm win over them.
        output: Folder of the experiment.

    Raises:
        ConfigError: The recipe, an override or the name of an arm is wrong.
    """
    experiment = load_recipe(source, overrides).experiment
    arms = chosen_arms(experiment)
    keep = () if any(key.startswith("run.threads=") for key in overrides) else ("run.threads=1",)
    states = (
        ()
        if any(key.startswith("run.prefix=") for key in overrides)
        else (f"run.prefix={output / 'states'}",)
    )
    cells = []
    for share in experiment.shares:
        for seed in experiment.seeds:
            for arm in arms:
                first = seed == experiment.seeds[0] and share == max(experiment.shares)
                if arm.trains == "nothing" and not first:
                    continue
                own = (*overrides, *arm.overrides, *QUIET, *keep, *states)
                recipe = load_recipe(source, [*own, f"run.seed={seed}", f"data.patients={share}"])
                recipe = replace(recipe, experiment=ExperimentSection())
                folder = output / "cells" / f"{share:g}" / arm.name / f"seed-{seed}"
                cells.append(Cell(arm, seed, share, recipe, folder))
    return cells


def chosen_arms(experiment: ExperimentSection) -> list[Arm]:
    """The arms of an experiment, in the order of reports.

    Raises:
        ConfigError: An arm is unknown.
    """
    names = {find_arm(name).name for name in (experiment.arm, experiment.against)}
    names |= {find_arm(name).name for name in experiment.arms or [arm.name for arm in ARMS]}
    return [arm for arm in ARMS if arm.name in names]


def is_done(cell: Cell) -> bool:
    """Whether a cell is complete; it is another experiment's if its recipe differs.

    Raises:
        ConfigError: The folder holds a complete run of another recipe.
    """
    record_path = cell.folder / "run.json"
    whole = all((cell.folder / name).is_file() for name in ("metrics.json", "predictions.parquet"))
    if not (whole and record_path.is_file()):
        return False
    record = read_json(record_path)
    if record.get("state") != "complete":
        return False
    before, now = record["recipe"], json.loads(json.dumps(cell.recipe.to_dict()))
    for recipe in (before, now):
        recipe.get("run", {}).pop("prefix", None)  # where states are kept decides no figure
    if before != now:
        check_same_recipe(cell.folder, cell.recipe)
    return True
