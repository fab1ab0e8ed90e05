"""A verb for each kind of data: one run on it."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console, RenderableType

from medqua.train.commands.options import (
    ArmName,
    AsJson,
    Debug,
    DryRun,
    Output,
    Overrides,
    Processes,
    RecipeFile,
    Resume,
)

if TYPE_CHECKING:
    from medqua.train.recipe import Recipe

VERBS: Mapping[str, str] = {
    "mimic": """Train on MIMIC-CXR-JPG, or on phantoms in its layout when no root is given.

    Examples:
        medqua-train mimic

        medqua-train mimic data.root=/data/mimic-cxr-jpg data.keep_in_memory=false data.workers=8

        medqua-train mimic data.root=/data data.source=dicom data.uncertain=ones --output runs/a

        medqua-train mimic --arm lora data.root=/data/mimic-cxr-jpg
    """,
    "chestmnist": """Train on ChestMNIST of 28, 64, 128 or 224 pixels.

    Examples:
        medqua-train chestmnist data.root=data data.download=true

        medqua-train chestmnist data.root=data/chestmnist_224.npz data.pixels=224
    """,
    "folder": """Train on a folder of images with a table of labels, split by patient.

    Examples:
        medqua-train folder data.root=images

        medqua-train folder data.root=images data.table=truth.csv data.columns.patient=person
    """,
    "nih": """Train on NIH ChestX-ray14, in its official split.

    Examples:
        medqua-train nih data.root=/data/nih

        medqua-train nih data.root=/data/nih data.train_on=view=PA data.test_on=view=AP
    """,
    "chexpert": """Train on CheXpert, tested by the labels of radiologists.

    Examples:
        medqua-train chexpert data.root=/data/CheXpert-v1.0-small

        medqua-train chexpert data.root=/data/CheXpert-v1.0-small data.test=test
    """,
    "vindr": """Train on VinDr-CXR, tested by the consensus of radiologists.

    Examples:
        medqua-train vindr data.root=/data/vindr-cxr/1.0.0

        medqua-train vindr data.root=/data/vindr data.source=png
    """,
}
"""Verb, which is a kind of data and the name of a shipped recipe -> its help."""


def add_to(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    for name, text in VERBS.items():
        app.command(name, help=text)(_verb(name))


def _verb(name: str) -> Callable[..., None]:
    """The command of one kind of data."""

    def command(
        overrides: Overrides = None,
        output: Output = None,
        recipe: RecipeFile = None,
        arm: ArmName = None,
        as_json: AsJson = False,
        resume: Resume = False,
        dry_run: DryRun = False,
        processes: Processes = 1,
        debug: Debug = False,
    ) -> None:
        if dry_run:
            look(_recipe(name, recipe, arm, overrides or ()), processes, as_json=as_json)
            return
        _train(name, recipe, arm, overrides or (), output, as_json=as_json, resume=resume)

    return command


def _recipe(name: str, own: Path | None, arm: str | None, overrides: Sequence[str]) -> "Recipe":
    """The recipe of a command line."""
    from medqua.core.errors import ConfigError
    from medqua.train.experiment.arms import find_arm
    from medqua.train.recipe import load_recipe

    keys = find_arm(arm).overrides if arm else ()
    recipe = load_recipe(own or name, [*keys, *overrides])
    if hasattr(recipe, "report"):
        raise ConfigError(f"{own or name} has a [report] section: use the verb report")
    kind = getattr(recipe.data, "kind", "")
    if kind != name:
        raise ConfigError(f"{own} is a recipe of data.kind = {kind!r}: use the verb {kind}")
    return recipe


def look(
    recipe: "Recipe",
    processes: int,
    *,
    as_json: bool,
    more: Callable[[], RenderableType] | None = None,
) -> None:
    """Show what a run would be, and what more is told of it; status 2 if it would not do."""
    from medqua.core.errors import ConfigError
    from medqua.train.dry_run import check_processes, look_ahead, tables
    from medqua.train.processes import distributed

    check_processes(processes)
    distributed.start(recipe.run.threads, recipe.run.timeout)
    try:
        outlook = look_ahead(recipe)
        if distributed.is_main() and as_json:
            print(json.dumps(outlook.to_dict()))
        elif distributed.is_main():
            for table in tables(outlook):
                Console().print(table)
        if more is not None:
            shown = more()
            if distributed.is_main() and not as_json:
                Console().print(shown)
    finally:
        distributed.stop()
    if outlook.problems:
        raise ConfigError("; ".join(outlook.problems))


def _train(
    name: str,
    own: Path | None,
    arm: str | None,
    overrides: Sequence[str],
    output: str | None,
    *,
    as_json: bool,
    resume: bool,
) -> None:
    """Do a run and show its figures."""
    from medqua.core.errors import ConfigError
    from medqua.train.display import result_tables
    from medqua.train.processes import distributed
    from medqua.train.record import new_folder
    from medqua.train.run import train

    recipe = _recipe(name, own, arm, overrides)
    if resume and output is None:
        raise ConfigError("--resume needs --output: the run folder to go on with")
    distributed.start(recipe.run.threads, recipe.run.timeout)
    console = Console(stderr=as_json)
    try:
        folder = new_folder(output, f"{recipe.name}-{arm}" if arm else recipe.name)
        metrics: dict[str, Any] = train(recipe, folder, console, resume=resume)
        if distributed.is_main():
            if as_json:
                print(json.dumps(metrics))
            else:
                for table in result_tables(metrics):
                    console.print(table)
    finally:
        distributed.stop()
