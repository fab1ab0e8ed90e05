"""One batch on every target, and how far each one's answer is from the exact one.

hatch run core:targets
"""

import asyncio
import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.table import Table

from medqua.core.console import console
from medqua.core.errors import QuantumError
from medqua.core.quantum.ansatz import Ansatz
from medqua.core.quantum.runtime.reference import chi_square, exact_values, probabilities
from medqua.core.quantum.runtime.sampling import Circuit, expectations
from medqua.core.quantum.runtime.targets import TARGETS, Target, find, obstacle
from medqua.core.quantum.runtime.worker import Worker

CHANCE = 1e-6
"""An answer less likely than this is called wrong."""

ROUNDING = {"fp32": 1e-5, "fp64": 1e-9}
"""Largest deviation of an exact target from the exact value."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Row:
    """What one target answered."""

    target: str
    """Its name."""

    kind: str
    """`exact`: expectation values; `shots`: averages of measurements."""

    usable: bool
    """Whether it can run here."""

    reason: str = ""
    """Why it cannot run here, or what went wrong."""

    shots: int | None = None
    """Measurements of each circuit."""

    deviation: float | None = None
    """Largest |<Z_i> - exact|."""

    standard_errors: float | None = None
    """The same in standard errors of the exact distribution; None for exact values."""

    chi_square: float | None = None
    """Of the counts of all bit strings against their exact probabilities."""

    p_value: float | None = None
    """Chance of a `chi_square` at least so large."""

    seconds: float | None = None
    """Seconds for the batch, compilation included, in a process of its own."""

    @property
    def wrong(self) -> bool:
        """Whether it failed, or answered beyond what chance or rounding allows."""
        return self.usable and bool(self.reason)


def batch(tokens: int = 3, n_qubits: int = 4, depth: int = 2, seed: int = 0) -> list[Circuit]:
    """Return circuits of one ansatz with uniform angles, the same for the same seed."""
    ansatz, random = Ansatz(n_qubits, depth), np.random.default_rng(seed)
    theta = tuple(random.uniform(-math.pi, math.pi, math.prod(ansatz.theta_shape)).tolist())
    angles = random.uniform(-math.pi, math.pi, (tokens, n_qubits)).tolist()
    return [Circuit(ansatz, tuple(phi), theta, depth) for phi in angles]


def judge(target: Target, circuits: list[Circuit], answer: dict[str, Any], shots: int) -> Row:
    """Return how far an answer is from exact."""
    exact = np.array([exact_values(circuit) for circuit in circuits])
    seconds = sum(answer["seconds"])
    if target.exact:
        deviation = float(np.abs(np.array(answer["values"]) - exact).max())
        precision = "fp32" if target.gpu and "fp64" not in str(target.options) else "fp64"
        wrong = "" if deviation <= ROUNDING[precision] else f"beyond {precision} rounding"
        return Row(target.label, "exact", True, wrong, None, deviation, seconds=seconds)
    values = np.array([expectations(c, exact.shape[1])[0] for c in answer["counts"]])
    errors = np.sqrt(np.maximum(1 - exact**2, 1 / shots) / shots)
    tests = [
        chi_square(c, probabilities(x)) for c, x in zip(answer["counts"], circuits, strict=True)
    ]
    statistic, freedom = (sum(column) for column in zip(*tests, strict=True))
    p = float(
        torch.special.gammaincc(
            torch.tensor(freedom / 2, dtype=torch.float64),
            torch.tensor(statistic / 2, dtype=torch.float64),
        )
    )
    return Row(
        target.label,
        "shots",
        True,
        "" if p >= CHANCE else f"beyond chance: p < {CHANCE:g}",
        shots,
        float(np.abs(values - exact).max()),
        float((np.abs(values - exact) / errors).max()),
        statistic,
        p,
        seconds,
    )


async def examine(target: Target, circuits: list[Circuit], shots: int, seed: int) -> Row:
    """Return a target's row; each runs in a process of its own."""
    kind = "exact" if target.exact else "shots"
    reason = obstacle(target)
    if not reason and target.remote:
        reason = "a machine bills every circuit: not run by this report"
    if reason:
        return Row(target.name, kind, False, reason)
    worker = Worker()
    try:
        answer = await worker.ask(
            "probe",
            300.0,
            target=target.label,
            circuits=[dataclasses.asdict(circuit) for circuit in circuits],
            shots=None if target.exact else shots,
            seed=seed,
        )
    except (QuantumError, TimeoutError) as error:
        return Row(target.label, kind, True, str(error) or "no answer within 300 s")
    finally:
        await worker.close()
    return judge(target, circuits, answer, shots)


@app.command()
def targets(
    shots: Annotated[int, typer.Option(min=100, help="Measurements of each circuit.")] = 4000,
    seed: Annotated[int, typer.Option(help="Seed of angles and measurements.")] = 0,
    only: Annotated[list[str] | None, typer.Option(help="A target; may be given again.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print rows as JSON.")] = False,
) -> None:
    """Run one batch on every target usable here and tell each one's deviation from exact."""
    chosen = [find(name) for name in only] if only else list(TARGETS.values())
    circuits = batch(seed=seed)

    async def every() -> list[Row]:
        return [await examine(t, circuits, shots, seed + k) for k, t in enumerate(chosen)]

    rows = asyncio.run(every())
    if as_json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    else:
        console.print(table([row for row in rows if row.usable], circuits))
        for row in rows:
            if not row.usable:
                console.print(f"[dim]{row.target}[/]: {row.reason}", highlight=False)
    if any(row.wrong for row in rows):
        raise typer.Exit(1)


def table(rows: list[Row], circuits: list[Circuit]) -> Table:
    """Return the rows of what can run here."""
    ansatz, values = circuits[0].ansatz, len(circuits) * circuits[0].ansatz.n_qubits
    view = Table(
        title=f"{len(circuits)} tokens, {ansatz.n_qubits} qubits, depth {circuits[0].depth}",
        caption=f"deviation: largest of the {values} values of <Z_i>; s.e.: in standard errors; "
        "p: chi-square of the counts of all bit strings",
    )
    for name in ("target", "shots", "deviation", "s.e.", "p", "seconds"):
        view.add_column(name, justify="left" if name == "target" else "right", no_wrap=True)
    if any(row.reason for row in rows):
        view.add_column("wrong")
    for row in rows:
        view.add_row(
            row.target,
            "" if row.shots is None else str(row.shots),
            "" if row.deviation is None else f"{row.deviation:.2g}",
            "" if row.standard_errors is None else f"{row.standard_errors:.1f}",
            "" if row.p_value is None else f"{row.p_value:.2g}",
            "" if row.seconds is None else f"{row.seconds:.1f}",
            *([row.reason] if len(view.columns) > 6 else []),
            style="red" if row.wrong else None,
        )
    return view
