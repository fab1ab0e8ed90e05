"""`medqua-serve cluster`: an archive or the service on many machines.

medqua-serve cluster batch archive/ findings.parquet --address 10.0.0.5:6379
medqua-serve cluster app runs/mimic/export --address auto
"""

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="On many machines, by Ray (`medqua-serve[ray]`).",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Address = Annotated[
    str | None,
    typer.Option(help="Ray cluster, as HOST:PORT of its head or auto; none starts one here."),
]
Config = Annotated[Path | None, typer.Option(help="Settings as TOML.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback on an error.")]


@app.command()
def batch(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[BUNDLE] IN OUT.parquet [KEY=VALUE]...",
            help="As of `medqua-serve batch`; model and files at the same path on every node.",
        ),
    ],
    address: Address = None,
    readers: Annotated[int, typer.Option(help="Most readers at a time.", min=1)] = 1,
    sr: Annotated[
        Path | None,
        typer.Option(help="Folder for a DICOM structured report of each DICOM file."),
    ] = None,
    config: Config = None,
    debug: Debug = False,
) -> int:
    """Read an archive's files on all nodes into one table; the same command goes on where it was.

    Exit status: 0 all files were read; 1 some were refused; 2 wrong use, or a bad bundle.

    Examples:
        medqua-serve cluster batch archive/ findings.parquet --readers 2

        medqua-serve cluster batch BUNDLE archive/ out.parquet --address 10.0.0.5:6379 --readers 32
    """
    from medqua.serve.cluster.joining import joined
    from medqua.serve.demo import model_and_settings
    from medqua.serve.offline.progress import batch_progress
    from medqua.serve.settings import Settings

    model, (source, output), overrides = model_and_settings(words, 2)
    settings = Settings.load(config, overrides)
    with joined(address), batch_progress() as progress:
        from medqua.serve.cluster.archive import run_archive

        done = run_archive(
            model, source, output, settings, readers=readers, sr=sr, progress=progress
        )
    print(done.told(sr))
    return int(done.read < done.files)


@app.command("app")
def cluster_app(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[BUNDLE] [KEY=VALUE]...", help="As of `medqua-serve app`."),
    ] = None,
    address: Address = None,
    least: Annotated[int, typer.Option(help="Replicas without load.", min=1)] = 1,
    most: Annotated[int, typer.Option(help="Replicas under load.", min=1)] = 4,
    config: Config = None,
    debug: Debug = False,
) -> int:
    """Serve a model in replicas on all nodes, until SIGTERM or Ctrl-C takes them down.

    Examples:
        medqua-serve cluster app

        medqua-serve cluster app runs/mimic/export --address auto --most 16 --config serve.toml
    """
    from medqua.serve.cluster.joining import joined
    from medqua.serve.demo import model_and_settings
    from medqua.serve.settings import Settings

    model, _, overrides = model_and_settings(words or (), 0)
    settings = Settings.load(config, overrides)
    end = threading.Event()
    with joined(address):
        from ray import serve

        from medqua.serve.cluster.replicas import Replicas, deploy

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: end.set())
        try:
            print(f"serving at {deploy(model, settings, Replicas(least, most))}", flush=True)
            end.wait()
        finally:
            serve.shutdown()
    return 0
