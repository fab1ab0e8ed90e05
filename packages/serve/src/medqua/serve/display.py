"""Results as tables for people."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from medqua.core.console import console
from medqua.serve.inference.manifest import ExportManifest
from medqua.serve.inference.pipeline import Provenance, Result

LABEL_WIDTH, FILE_WIDTH = 30, 14


def show(results: Sequence[Result], provenance: Provenance) -> None:
    """Print findings, a column a file; then refusals with their reasons; then what to make of it.

    Args:
        results: Of one bundle, so that all have the same labels.
        provenance: What produced them.
    """
    read = [result for result in results if result.findings is not None]
    columns = iter(read)
    width = max(1, (console.width - LABEL_WIDTH) // (FILE_WIDTH + 3))
    while chunk := list(islice(columns, width)):
        console.print(_findings(chunk, provenance))
        for result in chunk:
            for note in result.notes:
                console.print(f"  {escape(result.source)}: {note}", style="dim", highlight=False)
    refused = [result for result in results if result.refusal is not None]
    if refused:
        console.print(_refusals(refused))
    if not results:
        console.print("No image files found.")
    console.print(
        f"{len(read)} read, {len(refused)} refused. Model {escape(provenance.backbone)}, bundle "
        f"{provenance.bundle[:12]}.",
        highlight=False,
    )
    console.print(escape(provenance.intended_use), style="bold", highlight=False)


def show_parity(manifest: ExportManifest) -> None:
    """Print how near an export is to the torch model."""
    parity = manifest.parity
    table = Table(title=f"Parity on {parity['count']} images", title_justify="left")
    for column in ("", "logit", "probability", "routes", "AUROC"):
        table.add_column(column, justify="left" if not column else "right")
    names = {
        "torch": "the torch model as it stands",
        "stages": "stages",
        "single": "single file",
        "single_against_stages": "single file against stages",
    }
    for key, name in names.items():
        if (figures := parity[key]) is not None:
            auroc = figures["auroc"]
            table.add_row(
                name,
                f"{figures['max_logit_error']:.1e}",
                f"{figures['max_probability_error']:.1e}",
                f"{figures['route_agreement']:.2%}",
                "no labels" if auroc is None else f"{auroc['max_difference']:.1e}",
            )
    console.print(table)
    console.print(
        f"Largest absolute errors against {parity['reference']}. {manifest.precision}, "
        f"opset {manifest.opset}, {len(manifest.files)} files.",
        highlight=False,
    )
    if manifest.single is None:
        console.print(f"No single-file graph: {manifest.single_absent}.", highlight=False)


def _findings(results: Sequence[Result], provenance: Provenance) -> Table:
    """Build the table of labels by files; probabilities from 0.5 stand out."""
    kind = "calibrated" if provenance.calibrated else "uncalibrated"
    table = Table(title=f"Findings ({kind} probabilities)", title_justify="left")
    table.add_column("Finding", width=LABEL_WIDTH - 4)
    short = {result.source: Path(result.source).name for result in results}
    names = short if len(set(short.values())) == len(short) else {name: name for name in short}
    for result in results:
        table.add_column(
            escape(names[result.source]), justify="right", width=FILE_WIDTH, overflow="fold"
        )
    rows = [list(result.findings) for result in results if result.findings is not None]
    for findings in zip(*rows, strict=True):
        cells = [
            f"[bold]{finding.probability:.3f}[/]"
            if finding.probability >= 0.5
            else f"{finding.probability:.3f}"
            for finding in findings
        ]
        table.add_row(escape(findings[0].label), *cells)
    return table


def _refusals(results: Sequence[Result]) -> Table:
    """Build the table of files without findings."""
    table = Table(title="Refused", title_justify="left")
    table.add_column("File", overflow="fold")
    table.add_column("Reason")
    for result in results:
        if result.refusal is not None:
            table.add_row(escape(result.source), escape(result.refusal.reason))
    return table
