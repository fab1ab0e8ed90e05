"""How much of the noise mitigation takes out, against exact values.

    python benchmarks/measure_mitigation.py

Noise of about today's machines on `density-matrix-cpu`, 4 qubits, 2 layers. For each way: root mean
square of the deviation from exact over all values, mean standard error that was claimed, and the
share of values within two of them (0.95 where errors are true and nothing is biased).
"""

import json
import platform
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from rich.table import Table

from medqua.core import NoiseModel
from medqua.core.console import console
from medqua.core.quantum.runtime.mitigation import (
    METHODS,
    Readout,
    calibrate,
    extrapolate,
    folded,
    on_simulator,
)
from medqua.core.quantum.runtime.reference import exact_values
from medqua.core.quantum.runtime.report import batch

SHOTS, TOKENS, SCALES = 20_000, 20, (1, 3, 5)
ONE, TWO, READOUT = 0.0005, 0.005, (0.01, 0.02)


def main() -> None:
    circuits = batch(tokens=TOKENS, seed=7)
    exact = np.array([exact_values(circuit) for circuit in circuits])
    noise = NoiseModel.depolarising(ONE, TWO, READOUT)
    measure = on_simulator("density-matrix-cpu", SHOTS, seed=1, noise=noise)
    readout = calibrate(measure, circuits[0].ansatz)
    perfect = Readout(0 * readout.up, 0 * readout.down, 1)
    ways: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {}

    def note(way: str, values: np.ndarray, errors: np.ndarray) -> None:
        rows = ways.setdefault(way, ([], []))
        rows[0].append(values)
        rows[1].append(errors)

    for circuit in circuits:
        for fold in ("gates", "circuit"):
            counts = measure([folded(circuit, scale, fold) for scale in SCALES])
            if fold == "gates":
                note("as measured", *perfect.correct(counts[0]))
                note("readout corrected", *readout.correct(counts[0]))
                columns = zip(*(perfect.correct(c) for c in counts), strict=True)
                values, errors = map(np.array, columns)
                got = extrapolate(SCALES, values, errors, "richardson")
                note("richardson alone, gates folded", got.values, got.errors)
            values, errors = map(np.array, zip(*map(readout.correct, counts), strict=True))
            for method in METHODS:
                if method == "quadratic":  # the same as richardson for three scales
                    continue
                got = extrapolate(SCALES, values, errors, method)
                note(f"readout, {method}, {fold} folded", got.values, got.errors)
    rows = []
    for way, (values, errors) in ways.items():
        off, claimed = np.array(values) - exact, np.array(errors)
        rows.append(
            {
                "way": way,
                "rms_deviation": float(np.sqrt((off**2).mean())),
                "mean_error": float(claimed.mean()),
                "within_two_errors": float((np.abs(off) < 2 * claimed).mean()),
            }
        )
    table = Table("way", "rms deviation", "claimed s.e.", "within 2 s.e.")
    for row in rows:
        figures = (row["rms_deviation"], row["mean_error"], row["within_two_errors"])
        table.add_row(row["way"], *(f"{figure:.4f}" for figure in figures))
    console.print(table)
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "shots": SHOTS,
        "tokens": TOKENS,
        "noise": {"one_qubit": ONE, "two_qubit": TWO, "readout": READOUT},
        "rows": rows,
    }
    path = Path(__file__).parent / "results" / "mitigation.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
