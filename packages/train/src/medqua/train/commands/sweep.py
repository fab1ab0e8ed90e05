"""The verb `sweep`: a search over recipe keys, judged by the validation split."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from medqua.train.commands.options import Debug, Overrides


def add_to(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(sweep)


def sweep(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe, or a TOML file.")],
    overrides: Overrides = None,
    space: Annotated[
        Path | None, typer.Option(help="TOML file of what to vary.", metavar="FILE")
    ] = None,
    trials: Annotated[int, typer.Option(help="Runs; 0 is the space's own number.", min=0)] = 0,
    output: Annotated[
        Path, typer.Option(help="Folder of the sweep, new or to go on with.", metavar="DIR")
    ] = Path("runs/sweep"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the best trial.")] = False,
    debug: Debug = False,
) -> None:
    """Search learning rates and other keys with Optuna; the test split is never looked at.

    The same command goes on after a stop, or with more trials.

    Examples:
        medqua-train sweep mimic --trials 20

        medqua-train sweep folder data.root=images --space space.toml --output runs/sweep
    """
    from dataclasses import replace

    from medqua.train.search.report import write_sweep_report
    from medqua.train.search.space import load_space, shipped_space
    from medqua.train.search.sweep import sweep as run_missing

    keys = list(overrides or ())
    wanted = load_space(space or shipped_space(), recipe, keys)
    wanted = replace(wanted, trials=trials) if trials else wanted
    console = Console(stderr=as_json)
    study = run_missing(recipe, keys, wanted, output, console)
    report = write_sweep_report(study, wanted, output, recipe)
    if as_json:
        print((output / "best.json").read_text("utf-8"), end="")
    else:
        best = json.loads((output / "best.json").read_text("utf-8"))
        console.print(f"Best: {' '.join(best['overrides'])}", highlight=False)
        console.print(f"The report is {report}", highlight=False)
