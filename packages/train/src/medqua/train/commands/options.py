"""Arguments and options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

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
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check recipe, data, model and memory; write nothing.")
]
Processes = Annotated[
    int, typer.Option(help="With --dry-run: processes on this machine.", metavar="N", min=1)
]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback on an error.")]
