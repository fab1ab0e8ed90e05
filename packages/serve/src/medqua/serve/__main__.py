"""`medqua-serve`: from image files to calibrated findings.

hatch run serve:predict runs/mimic/bundle chest.dcm
medqua-serve predict runs/mimic/bundle studies/ --json > findings.json
"""

import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medqua.core.console import run
from medqua.core.errors import ConfigError

if TYPE_CHECKING:
    from medqua.serve.pipeline import Result

app = typer.Typer(
    help="Read radiographs with a trained bundle. Research use only, not for diagnosis.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


@app.callback()
def _verbs() -> None:
    """Keep the verb on the command line while there is one command only."""


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder written by training.")],
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="DICOM, JPG or PNG files, or folders of them."),
    ],
    batch_size: Annotated[int, typer.Option(help="Images in one forward pass.", min=1)] = 8,
    device: Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, cuda:1.")] = "cpu",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback on an error.")] = False,
) -> int:
    """Name the findings of radiographs, with calibrated probabilities.

    Exit status: 0 all files were read; 1 some were refused; 2 wrong use, or a bad bundle.

    Examples:
        medqua-serve predict runs/mimic/bundle chest.dcm

        medqua-serve predict runs/mimic/bundle studies/ --json > findings.json
    """
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # read by PEFT
    import torch
    from transformers.utils import logging

    from medqua.core.model.bundle import Bundle
    from medqua.serve.pipeline import Provenance, predict_files
    from medqua.serve.sources import expand

    try:
        where = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device is {device!r}; give cpu, cuda, or cuda:N") from None
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, and torch finds no CUDA device; use cpu")
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    opened = Bundle.open(bundle, device=where)
    provenance = Provenance.of(opened, bundle)
    results = list(predict_files(opened, expand(files), batch_size=batch_size))
    if as_json:
        document = {
            "schema": 1,
            "provenance": asdict(provenance),
            "results": [result.to_dict() for result in results],
        }
        print(json.dumps(document, indent=2, allow_nan=False))
    else:
        from medqua.serve.display import show

        show(results, provenance)
    return _status(results)


def _status(results: "list[Result]") -> int:
    """Return 0 if every file has findings, else 1."""
    return int(any(result.findings is None for result in results))


def main() -> int:
    """Run the command line and return its exit status."""
    return run(app)


if __name__ == "__main__":
    sys.exit(main())
