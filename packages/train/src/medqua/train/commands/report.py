"""The verb that learns to write reports and judges what is written."""

import json
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from medqua.train.commands.options import (
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
    from medqua.train.recipe import ReportRecipe


def add_to(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(report)


def report(
    overrides: Overrides = None,
    output: Output = None,
    recipe: RecipeFile = None,
    as_json: AsJson = False,
    resume: Resume = False,
    dry_run: DryRun = False,
    processes: Processes = 1,
    debug: Debug = False,
) -> None:
    """Learn to write reports, and judge them by their labels beside writers that never look.

    On phantoms when no root is given; on MIMIC-CXR with its reports at `report.root`.

    Examples:
        medqua-train report

        medqua-train report data.root=/data/mimic-cxr-jpg report.root=/data/mimic-cxr-reports.zip

        medqua-train report backbone.tune=full optim.epochs=20 --output runs/writer
    """
    from medqua.train.commands.runs import look
    from medqua.train.recipe import load_recipe
    from medqua.train.reports.outlook import report_table
    from medqua.train.reports.prepare import report_recipe

    built = report_recipe(load_recipe(recipe or "report", overrides or ()))
    if dry_run:
        look(built, processes, as_json=as_json, more=lambda: report_table(built))
        return
    _train(built, output, as_json=as_json, resume=resume)


def _train(recipe: "ReportRecipe", output: str | None, *, as_json: bool, resume: bool) -> None:
    """Do a run and show its figures."""
    from medqua.core.errors import ConfigError
    from medqua.train.processes import distributed
    from medqua.train.record import new_folder
    from medqua.train.reports.outlook import result_table
    from medqua.train.reports.run import report_stages
    from medqua.train.run import train

    if resume and output is None:
        raise ConfigError("--resume needs --output: the run folder to go on with")
    distributed.start(recipe.run.threads, recipe.run.timeout)
    console = Console(stderr=as_json)
    try:
        folder = new_folder(output, recipe.name)
        metrics: dict[str, Any] = train(
            recipe, folder, console, resume=resume, stages=report_stages
        )
        if distributed.is_main() and as_json:
            print(json.dumps(metrics))
        elif distributed.is_main():
            console.print(result_table(metrics))
    finally:
        distributed.stop()
