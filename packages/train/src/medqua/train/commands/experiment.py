"""The verbs of the experiment: which arms there are, and all of them with a report."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from medqua.train.commands.options import Debug, Overrides


def add_to(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(arms)
    app.command()(reproduce)


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
    from medqua.train.display import arm_table
    from medqua.train.experiment.arms import ARMS, label_count
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
    from medqua.train.experiment.report import write_report
    from medqua.train.experiment.reproduce import reproduce as run_missing
    from medqua.train.recipe import load_recipe

    keys = list(overrides or ())
    keys += [f"experiment.arms={arms}"] if arms else []
    keys += [f"experiment.seeds={seeds}"] if seeds else []
    keys += ["experiment.shares=0.01,0.1,1.0"] if curve else []
    console = Console(stderr=as_json)
    cells = run_missing(recipe, keys, output, console, jobs=jobs)
    declared = load_recipe(recipe, keys).experiment
    report = write_report(cells, declared, output / "report", overrides or ())
    if as_json:
        print(json.dumps({"report": str(report), "cells": len(cells)}))
    else:
        console.print(f"The report is {report}", highlight=False)
