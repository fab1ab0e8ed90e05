"""The verb `phantoms`: synthetic radiographs on disk."""

import json
from pathlib import Path

import typer
from rich.console import Console

from medqua.train.commands.options import AsJson, Debug, Output, Overrides


def add_to(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(phantoms)


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
