"""The verb `push`: a bundle to a hub, unless the terms of its training data forbid it."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from medqua.train.commands.options import Debug


def add_to(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(push)


def push(
    bundle: Annotated[Path, typer.Argument(help="A run folder, or its bundle.", metavar="DIR")],
    repository: Annotated[str, typer.Argument(help="Where on the hub.", metavar="OWNER/NAME")],
    public: Annotated[bool, typer.Option("--public", help="A new repository is public.")] = False,
    permitted: Annotated[
        bool, typer.Option("--permitted", help="You read the terms of the data: they allow it.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be sent; no network.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print where it is as JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Send a bundle with its model card to the Hugging Face hub, private unless asked otherwise.

    A bundle trained on MIMIC-CXR or VinDr-CXR is refused: the agreement under which the data was
    given forbids it.

    Examples:
        medqua-train push runs/first me/first --dry-run

        medqua-train push runs/first me/first --public
    """
    from medqua.train.publish.push import pack, send

    parcel = pack(bundle, repository, permitted=permitted)
    where = None if dry_run else send(parcel, private=not public)
    if as_json:
        print(json.dumps({"files": list(parcel.files), "bytes": parcel.size, "url": where}))
        return
    console = Console()
    if where is None:
        for path in parcel.files:
            console.print(path, highlight=False)
    did = f"Sent to {where}:" if where else f"Would send to {repository}:"
    size = f"{len(parcel.files)} files, {parcel.size / 2**20:.1f} MiB"
    console.print(f"{did} {size}", highlight=False)
