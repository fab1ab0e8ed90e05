"""`medqua-train`: train and evaluate on MIMIC-CXR, ChestMNIST, a folder of one's own, or phantoms.

hatch run train:mimic                                   # synthetic radiographs, no download
hatch run train:mimic data.root=/data/mimic-cxr-jpg data.workers=8 data.keep_in_memory=false
NPROC=2 hatch run train:folder data.root=../images optim.epochs=20
hatch run train:mimic --arm lora                        # an arm of the experiment
torchrun --nproc-per-node=4 -m medqua.train chestmnist data.root=. data.download=true
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from medqua.core.console import run as run_app

app = typer.Typer(
    help="Train and evaluate MedQua.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Values of the recipe, for instance `optim.epochs=5`."
    ),
]
Output = Annotated[
    str | None, typer.Option(help="Run folder; `runs/NAME-TIME` by default.", metavar="DIR")
]
RecipeFile = Annotated[
    Path | None, typer.Option("--recipe", help="A TOML recipe of your own.", metavar="FILE")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print metrics.json; talk on stderr.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the last checkpoint in --output.")
]
ArmName = Annotated[
    str | None,
    typer.Option("--arm", help="An arm of the experiment; `arms` lists them.", metavar="NAME"),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback on an error.")]


@app.command()
def mimic(
    overrides: Overrides = None,
    output: Output = None,
    recipe: RecipeFile = None,
    arm: ArmName = None,
    as_json: AsJson = False,
    resume: Resume = False,
    debug: Debug = False,
) -> None:
    """Train on MIMIC-CXR-JPG, or on phantoms in its layout when no root is given.

    Examples:
        medqua-train mimic

        medqua-train mimic data.root=/data/mimic-cxr-jpg data.keep_in_memory=false data.workers=8

        medqua-train mimic data.root=/data data.source=dicom data.uncertain=ones --output runs/a

        medqua-train mimic --arm lora data.root=/data/mimic-cxr-jpg
    """
    _train("mimic", recipe, arm, overrides, output, as_json=as_json, resume=resume)


@app.command()
def chestmnist(
    overrides: Overrides = None,
    output: Output = None,
    recipe: RecipeFile = None,
    arm: ArmName = None,
    as_json: AsJson = False,
    resume: Resume = False,
    debug: Debug = False,
) -> None:
    """Train on ChestMNIST of 28, 64, 128 or 224 pixels.

    Examples:
        medqua-train chestmnist data.root=data data.download=true

        medqua-train chestmnist data.root=data/chestmnist_224.npz data.pixels=224
    """
    _train("chestmnist", recipe, arm, overrides, output, as_json=as_json, resume=resume)


@app.command()
def folder(
    overrides: Overrides = None,
    output: Output = None,
    recipe: RecipeFile = None,
    arm: ArmName = None,
    as_json: AsJson = False,
    resume: Resume = False,
    debug: Debug = False,
) -> None:
    """Train on a folder of images with a table of labels, split by patient.

    Examples:
        medqua-train folder data.root=images

        medqua-train folder data.root=images data.table=truth.csv data.columns.patient=person
    """
    _train("folder", recipe, arm, overrides, output, as_json=as_json, resume=resume)


@app.command()
def nih(
    overrides: Overrides = None,
    output: Output = None,
    recipe: RecipeFile = None,
    arm: ArmName = None,
    as_json: AsJson = False,
    resume: Resume = False,
    debug: Debug = False,
) -> None:
    """Train on NIH ChestX-ray14, in its official split.

    Examples:
        medqua-train nih data.root=/data/nih

        medqua-train nih data.root=/data/nih data.train_on=view=PA data.test_on=view=AP
    """
    _train("nih", recipe, arm, overrides, output, as_json=as_json, resume=resume)


@app.command()
def chexpert(
    overrides: Overrides = None,
    output: Output = None,
    recipe: RecipeFile = None,
    arm: ArmName = None,
    as_json: AsJson = False,
    resume: Resume = False,
    debug: Debug = False,
) -> None:
    """Train on CheXpert, tested by the labels of radiologists.

    Examples:
        medqua-train chexpert data.root=/data/CheXpert-v1.0-small

        medqua-train chexpert data.root=/data/CheXpert-v1.0-small data.test=test
    """
    _train("chexpert", recipe, arm, overrides, output, as_json=as_json, resume=resume)


@app.command()
def vindr(
    overrides: Overrides = None,
    output: Output = None,
    recipe: RecipeFile = None,
    arm: ArmName = None,
    as_json: AsJson = False,
    resume: Resume = False,
    debug: Debug = False,
) -> None:
    """Train on VinDr-CXR, tested by the consensus of radiologists.

    Examples:
        medqua-train vindr data.root=/data/vindr-cxr/1.0.0

        medqua-train vindr data.root=/data/vindr data.source=png
    """
    _train("vindr", recipe, arm, overrides, output, as_json=as_json, resume=resume)


@app.command()
def phantoms(
    overrides: Overrides = None,
    output: Output = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write synthetic chest radiographs in the layout of MIMIC-CXR-JPG; they are no patients.

    Examples:
        medqua-train phantoms --output data/phantoms patients=200 seed=1
    """
    from medqua.core.errors import ConfigError
    from medqua.train.data.sections import MimicData
    from medqua.train.phantoms import NOTICE, generate
    from medqua.train.recipe import load_recipe

    keys = ["data.phantoms.dicom=true"]  # a whole tree, unless asked otherwise
    keys += [f"data.phantoms.{override}" for override in overrides or ()]
    data = load_recipe("mimic", keys).data
    if not isinstance(data, MimicData):
        raise ConfigError("the recipe mimic is not one of MIMIC data")
    root = Path(output or "phantoms")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ConfigError(f"{root} exists: give another --output")
    console = Console(stderr=as_json)
    console.print(f"{NOTICE}. Writing {data.phantoms.patients:,} of them to {root}")
    if root.exists():
        root.rmdir()
    generate(data.phantoms, root)
    if as_json:
        print(json.dumps({"root": str(root), "patients": data.phantoms.patients}))


@app.command()
def arms(
    overrides: Overrides = None,
    recipe: Annotated[
        str, typer.Option(help="A shipped recipe, or a TOML file.", metavar="RECIPE")
    ] = "mimic",
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
    debug: Debug = False,
) -> None:
    """List the arms of the experiment, with what each trains at the recipe's backbone.

    Of a published backbone only its configuration is read.

    Examples:
        medqua-train arms

        medqua-train arms --recipe chestmnist adapter.n_qubits=8

        medqua-train arms backbone.source=Qwen/Qwen2.5-VL-3B-Instruct adapter.every=6
    """
    from medqua.train.arms import ARMS, label_count
    from medqua.train.display import arm_table
    from medqua.train.model import count_trainable
    from medqua.train.recipe import load_recipe

    counts = {}
    for arm in ARMS:
        built = load_recipe(recipe, [*arm.overrides, *(overrides or ())])
        counts[arm.name] = count_trainable(built, label_count(built))
    if as_json:
        rows = [
            {"name": arm.name, "title": arm.title, "kind": arm.kind, "trains": arm.trains}
            | {"trainable_parameters": counts[arm.name], "overrides": list(arm.overrides)}
            for arm in ARMS
        ]
        print(json.dumps(rows))
    else:
        Console().print(arm_table(counts))


@app.command()
def reproduce(
    overrides: Overrides = None,
    recipe: Annotated[
        str, typer.Option(help="A shipped recipe, or a TOML file.", metavar="RECIPE")
    ] = "reproduce",
    output: Annotated[
        Path, typer.Option(help="Folder of the experiment, new or to go on with.", metavar="DIR")
    ] = Path("runs/reproduce"),
    arms: Annotated[str, typer.Option(help="Arms, by comma; all by default.")] = "",
    seeds: Annotated[str, typer.Option(help="Seeds, by comma; 0 to 4 by default.")] = "",
    jobs: Annotated[
        int, typer.Option(help="Runs at once; one for each GPU, or core, by default.", min=0)
    ] = 0,
    curve: Annotated[
        bool, typer.Option("--curve", help="Each arm on 1, 10 and 100 % of the training patients.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print where the report is.")] = False,
    debug: Debug = False,
) -> None:
    """Run all arms over all seeds on one data set, and write the report.

    What is done stays done: the same command goes on after a stop, with the report at its end.

    Examples:
        medqua-train reproduce

        medqua-train reproduce --recipe reproduce-radiographs data.root=images --jobs 2

        medqua-train reproduce --arms medqua,mlp,lora --seeds 0,1,2 --curve

        medqua-train reproduce data.train_on=view=PA data.test_on=view=AP --output runs/pa-ap
    """
    from medqua.train.recipe import load_recipe
    from medqua.train.report import write_report
    from medqua.train.reproduce import reproduce as run_missing

    keys = list(overrides or ())
    keys += [f"experiment.arms={arms}"] if arms else []
    keys += [f"experiment.seeds={seeds}"] if seeds else []
    keys += ["experiment.shares=0.01,0.1,1.0"] if curve else []
    console = Console(stderr=as_json)
    cells = run_missing(recipe, keys, output, console, jobs=jobs)
    report = write_report(cells, load_recipe(recipe, keys).experiment, output / "report")
    if as_json:
        print(json.dumps({"report": str(report), "cells": len(cells)}))
    else:
        console.print(f"The report is {report}", highlight=False)


def _train(
    name: str,
    own: Path | None,
    arm: str | None,
    overrides: list[str] | None,
    output: str | None,
    *,
    as_json: bool,
    resume: bool,
) -> None:
    """Do a run and show its figures."""
    from medqua.core.errors import ConfigError
    from medqua.train import distributed
    from medqua.train.arms import find_arm
    from medqua.train.display import result_tables
    from medqua.train.recipe import load_recipe
    from medqua.train.record import new_folder
    from medqua.train.run import train

    keys = find_arm(arm).overrides if arm else ()
    recipe = load_recipe(own or name, [*keys, *(overrides or ())])
    kind = getattr(recipe.data, "kind", "")
    if kind != name:
        raise ConfigError(f"{own} is a recipe of data.kind = {kind!r}: use the verb {kind}")
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


def main() -> int:
    """Entry point of the console script."""
    return run_app(app)


if __name__ == "__main__":
    sys.exit(main())
