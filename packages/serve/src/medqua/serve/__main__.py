"""`medqua-serve`: from image files to calibrated findings.

hatch run serve:predict runs/mimic/bundle chest.dcm
medqua-serve predict runs/mimic/bundle studies/ --json > findings.json
medqua-serve export runs/mimic/bundle runs/mimic/export
"""

import json
import sys
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medqua.core.console import run
from medqua.core.errors import ConfigError
from medqua.serve.cluster.commands import app as cluster

if TYPE_CHECKING:
    from medqua.core.model.bundle import Bundle
    from medqua.serve.inference.pipeline import Result
    from medqua.serve.inference.session import ServingSession, SessionOptions

app = typer.Typer(
    help="Read radiographs with a trained bundle. Research use only, not for diagnosis.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.add_typer(cluster, name="cluster")


@app.command()
def predict(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="[BUNDLE] FILE...",
            help="A folder written by training or by serve:export (the demo bundle if none leads); "
            "DICOM, JPG or PNG files, or folders of them.",
        ),
    ],
    batch_size: Annotated[int, typer.Option(help="Images in one forward pass.", min=1)] = 8,
    device: Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, cuda:1.")] = "cpu",
    single: Annotated[
        bool, typer.Option("--single", help="Of an export: run its single-file graph.")
    ] = False,
    target: Annotated[
        str | None,  # CUDA-Q itself reads --target from the command line
        typer.Option("--quantum-target", help="Of an export: CUDA-Q target of its circuits."),
    ] = None,
    shots: Annotated[
        int | None, typer.Option(help="Of an export: measurements of each circuit.", min=1)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of an export: seed of those.")] = None,
    on_loss: Annotated[
        str,
        typer.Option(help="Of an export: when the target is lost, exact, classical or fail."),
    ] = "exact",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback on an error.")] = False,
) -> int:
    """Name the findings of radiographs, with calibrated probabilities.

    Exit status: 0 all files were read; 1 some were refused; 2 wrong use, or a bad bundle.

    Examples:
        medqua-serve predict chest.dcm

        medqua-serve predict runs/mimic/bundle chest.dcm

        medqua-serve predict runs/mimic/bundle studies/ --json > findings.json

        medqua-serve predict runs/mimic/export chest.dcm --quantum-target ionq-emulated --shots 1000
    """
    from medqua.core.vision.image import Decoder
    from medqua.serve.demo import model_and_files

    model, files = model_and_files(paths)
    with Decoder() as decoder:
        decoder.start()  # it loads the codecs while this process loads the model
        from medqua.serve.inference.manifest import is_export
        from medqua.serve.inference.pipeline import Provenance, predict_files
        from medqua.serve.sources import expand

        told: Mapping[str, Any]
        if is_export(model):
            options = _session_options(device, batch_size, single, target, shots, seed, on_loss)
            session = _open_export(model, options)
            opened: Bundle | ServingSession = session
            provenance, told = Provenance.of_export(session), session.provenance()
        else:
            if single or target or shots or seed is not None or on_loss != "exact":
                raise ConfigError(
                    "options of an export for a bundle, which says itself how its circuits are "
                    "evaluated: export it with serve:export, and give that folder"
                )
            opened = bundle = _open_bundle(model, device)
            provenance = Provenance.of(bundle, model)
            told = asdict(provenance)
        sources = expand(files)
        results = list(predict_files(opened, sources, batch_size=batch_size, decoder=decoder))
    if as_json:
        document = {
            "schema": 1,
            "provenance": told,
            "results": [result.to_dict() for result in results],
        }
        print(json.dumps(document, indent=2, allow_nan=False))
    else:
        from medqua.serve.display import show

        show(results, provenance)
    return _status(results)


def _open_export(folder: Path, options: "SessionOptions") -> "ServingSession":
    """Open an export, without torch where its circuits are evaluated without."""
    from medqua.serve.inference.session import ServingSession

    return ServingSession.open(folder, options)


def _open_bundle(folder: Path, device: str) -> "Bundle":
    """Open a bundle on a device that torch has."""
    from medqua.serve.inference.engine import spare_bitsandbytes

    spare_bitsandbytes(folder)
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # read by PEFT
    import torch
    from transformers.utils import logging

    from medqua.core.model.bundle import Bundle

    try:
        where = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device is {device!r}; give cpu, cuda, or cuda:N") from None
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, and torch finds no CUDA device; use cpu")
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return Bundle.open(folder, device=where)


def _session_options(
    device: str,
    batch_size: int,
    single: bool,
    target: str | None,
    shots: int | None,
    seed: int | None,
    on_loss: str,
) -> "SessionOptions":
    """Return the options of an export that the command line names."""
    from medqua.serve.inference.quantum import QuantumOptions
    from medqua.serve.inference.results import on_loss_of
    from medqua.serve.inference.session import SessionOptions

    quantum = QuantumOptions(target, shots, seed, on_loss=on_loss_of(on_loss))
    return SessionOptions(device, batch_size=batch_size, single=single, quantum=quantum)


@app.command()
def export(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder written by training.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    precision: Annotated[
        str, typer.Option(help="Numbers of the backbone: fp32, fp16 or int8.")
    ] = "fp32",
    triton: Annotated[
        bool, typer.Option("--triton", help="Lay the single-file graph out for Triton.")
    ] = False,
    validation: Annotated[
        Path | None,
        typer.Option(help="Parquet or CSV of images, with labels: what parity is measured on."),
    ] = None,
    image_root: Annotated[
        Path | None, typer.Option(help="Folder that the table's paths start from.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Most images to measure on.", min=1)] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an export that is there.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the parity report as JSON on stdout.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback on an error.")] = False,
) -> int:
    """Write a bundle as ONNX graphs, held against the torch model before they may be used.

    Examples:
        medqua-serve export runs/mimic/bundle runs/mimic/export

        medqua-serve export runs/mimic/bundle OUT --validation runs/mimic/manifest.parquet
    """
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # read by PEFT
    from medqua.core.console import console
    from medqua.serve.inference.engine import spare_bitsandbytes

    spare_bitsandbytes(bundle)
    from medqua.serve.export import ExportOptions, export_bundle

    options = ExportOptions(precision, triton, validation, image_root, limit, overwrite)
    tell = (lambda _: None) if as_json else console.print
    manifest = export_bundle(bundle, output, options, tell)
    if as_json:
        print(json.dumps(manifest.parity, indent=2, allow_nan=False))
    else:
        from medqua.serve.display import show_parity

        show_parity(manifest)
    return 0


@app.command("app")
def serve_app(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[BUNDLE] [KEY=VALUE]...",
            help="A folder written by training or by serve:export (the demo bundle if none is "
            "named); settings, such as listen.port=8080.",
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Settings as TOML.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback on an error.")] = False,
) -> int:
    """Serve a model over HTTP; without settings on this machine alone.

    Examples:
        medqua-serve app

        medqua-serve app runs/mimic/export --config serve.toml listen.port=9000
    """
    from medqua.serve.demo import model_and_settings
    from medqua.serve.processes.workers import Workers
    from medqua.serve.settings import Settings

    model, _, overrides = model_and_settings(words or (), 0)
    settings = Settings.load(config, overrides)
    workers = Workers(model, settings.batching)
    workers.launch()  # they open the model while this process imports what it needs itself
    from medqua.serve.http.app import create_app
    from medqua.serve.http.metrics import log_to_stderr
    from medqua.serve.http.server import serve

    log_to_stderr()
    serve(create_app(model, settings, workers=workers), settings)
    return 0


@app.command()
def key() -> int:
    """Make an API key: print it, and the SHA-256 by which settings know it."""
    from medqua.serve.http.security import new_key

    secret, digest = new_key()
    print(f"key     {secret}\nsha256  {digest}")
    return 0


@app.command()
def batch(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[BUNDLE] IN OUT.parquet [KEY=VALUE]...",
            help="A folder written by training or by serve:export (the demo bundle if none is "
            "named); a folder, ZIP, image, or CSV or Parquet of paths; the table to write; "
            "settings, such as batching.max_batch_size=16.",
        ),
    ],
    sr: Annotated[
        Path | None,
        typer.Option(help="Folder for a DICOM structured report of each DICOM file."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Settings as TOML.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback on an error.")] = False,
) -> int:
    """Read many files into one table; ended in any way, the same command goes on.

    Exit status: 0 all files were read; 1 some were refused; 2 wrong use, or a bad bundle.

    Examples:
        medqua-serve batch archive/ findings.parquet

        medqua-serve batch runs/mimic/bundle archive.zip findings.parquet --sr reports/
    """
    import asyncio

    from medqua.serve.demo import model_and_settings
    from medqua.serve.offline.progress import batch_progress
    from medqua.serve.offline.run import run_batch
    from medqua.serve.settings import Settings

    model, (source, output), overrides = model_and_settings(words, 2)
    settings = Settings.load(config, overrides)
    with batch_progress() as progress:
        done = asyncio.run(run_batch(model, source, output, settings, sr=sr, progress=progress))
    print(done.told(sr))
    return int(done.read < done.files)


def _status(results: "list[Result]") -> int:
    """Return 0 if every file has findings, else 1."""
    return int(any(result.findings is None for result in results))


def main() -> int:
    """Run the command line and return its exit status."""
    return run(app)


if __name__ == "__main__":
    sys.exit(main())
