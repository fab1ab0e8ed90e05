"""`medqua-core`: draw the circuit, and report how trainable it is.

hatch run core:draw --qubits 4 --depth 2
hatch run core:trainability --output runs/trainability
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from medqua.core.console import run as run_app

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

Encoding = Annotated[str, typer.Option(help="Rotation that encodes an angle: ry or rx.")]
Entangler = Annotated[str, typer.Option(help="CNOTs of a layer: ring, line, all or none.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback on an error.")]

FORMATS = ("text", "qasm", "png", "svg", "pdf")
"""What `draw` makes; the last three are files."""

SUFFIXES = {".txt": "text", ".qasm": "qasm", ".png": "png", ".svg": "svg", ".pdf": "pdf"}
"""File suffix -> format, where --format is not given."""


@app.callback()
def verbs() -> None:
    """Draw and study the variational circuit of MedQua."""


@app.command()
def draw(
    qubits: Annotated[int, typer.Option(help="Number of qubits, 2 to 24.")] = 4,
    depth: Annotated[int, typer.Option(help="Number of layers.")] = 2,
    encoding: Encoding = "ry",
    entangler: Entangler = "ring",
    shape: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="text, qasm (OpenQASM 3), png, svg or pdf; by default that of --output, or text.",
            metavar="FORMAT",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="File to write; stdout by default.", metavar="FILE")
    ] = None,
    measure: Annotated[
        bool, typer.Option(help="Whether an OpenQASM program ends by measuring every qubit.")
    ] = True,
    debug: Debug = False,
) -> None:
    """Draw the circuit as text or a picture, or export it to OpenQASM 3.

    Examples:
        medqua-core draw --qubits 4 --depth 2

        medqua-core draw --qubits 8 --depth 4 --output circuit.png

        medqua-core draw --entangler line --format qasm --no-measure > circuit.qasm
    """
    from medqua.core.errors import ConfigError
    from medqua.core.quantum.ansatz import Ansatz
    from medqua.core.quantum.draw import diagram, figure
    from medqua.core.quantum.qasm import to_qasm

    if shape is None:
        shape = SUFFIXES.get(output.suffix.lower(), output.suffix) if output else "text"
    if shape not in FORMATS:
        raise ConfigError(
            f"format is {shape!r}: choose one of {', '.join(FORMATS)}, or an --output that ends "
            f"in {', '.join(SUFFIXES)}"
        )
    ansatz = Ansatz(qubits, max(depth, 1), encoding=encoding, entangler=entangler)
    if output is not None and not output.resolve().parent.is_dir():
        raise ConfigError(f"{output} cannot be written: no such folder {output.parent}")
    if shape in ("text", "qasm"):
        if shape == "qasm":
            text = to_qasm(ansatz, depth, measure=measure)
        elif output is None:
            text = diagram(ansatz, depth, width=terminal_width()) + "\n"
        else:
            text = diagram(ansatz, depth) + "\n"
        if output is None:
            sys.stdout.write(text)
        else:
            output.write_text(text, encoding="utf-8")
        return
    if output is None:
        raise ConfigError(f"a picture ({shape}) goes to a file: give --output FILE")
    figure(ansatz, depth).savefig(output, format=shape)


@app.command()
def trainability(
    output: Annotated[Path, typer.Option(help="Folder of the report.", metavar="DIR")],
    quick: Annotated[
        bool, typer.Option("--quick", help="A small grid, in seconds: 2 to 5 qubits.")
    ] = False,
    encoding: Encoding = "ry",
    entangler: Entangler = "ring",
    initial_std: Annotated[
        float | None,
        typer.Option(
            help="Standard deviation (radian) of normal angles, beside uniform ones; by default "
            "that of a new bottleneck.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Root of all random numbers.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print report.json on stdout; talk on stderr.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Report gradient variance, entanglement, expressibility and Fourier spectrum.

    A run that was stopped goes on where it was. Nothing is trained and no data are read.

    Examples:
        medqua-core trainability --output runs/trainability

        medqua-core trainability --output runs/line --entangler line --quick
    """
    import torch
    from rich.console import Console

    from medqua.core.console import console
    from medqua.core.quantum.bottleneck import INITIAL_STD
    from medqua.core.quantum.study.cells import Study
    from medqua.core.quantum.study.report import run

    torch.set_num_threads(1)  # the matrices are small
    std = INITIAL_STD if initial_std is None else initial_std
    study = Study(encoding=encoding, entangler=entangler, seed=seed, initial_std=std)
    if quick:
        study = replace(study, qubits=(2, 3, 4, 5), depths=(1, 2, 4, 8), most=512, tables=32)
    talk = Console(stderr=True) if as_json else console
    summary = run(study, output, talk)
    for name, fit in summary["rates"].items():
        talk.print(
            f"{name}: variance falls by 2^{fit['value']:.3f} a qubit at {max(study.depths)} layers "
            f"(95 % {fit['low']:.3f} to {fit['high']:.3f}); 2-design {fit['two_design']:.3f}",
            highlight=False,
        )
    talk.print(f"report: {output / 'report.md'}", highlight=False)
    if as_json:
        print(json.dumps(summary))


def terminal_width() -> int:
    """Return how many characters a line of the terminal has."""
    from medqua.core.console import console

    return console.width


def main() -> None:
    """Run the command line and exit with its status."""
    sys.exit(run_app(app))


if __name__ == "__main__":
    main()
