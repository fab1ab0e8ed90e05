"""The grid of the study: one cell for each number of qubits, depth and initialisation."""

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medqua.core.errors import ConfigError
from medqua.core.quantum.ansatz import Ansatz
from medqua.core.quantum.study import measures

INITIALISATIONS = ("uniform", "initial")
"""theta uniform in [-pi, pi], or normal as a new bottleneck draws it; phi is uniform in both."""

Cell = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """What to measure.

    Raises:
        ConfigError: A size that cannot be measured.
    """

    qubits: tuple[int, ...] = tuple(range(2, 11))
    """Numbers of qubits, 2 to 12."""

    depths: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 16, 32)
    """Numbers of layers, at least 1."""

    encoding: str = "ry"
    """Encoding of the ansatz."""

    entangler: str = "ring"
    """Entangler of the ansatz."""

    initial_std: float = 0.4
    """Standard deviation (radian) of theta in the initialisation `initial`."""

    least: int = 256
    """Fewest random circuits in a cell."""

    most: int = 2048
    """Most random circuits in a cell: small circuits get more, about the same work each."""

    tables: int = 128
    """Circuits of which the Fourier spectrum is taken, divided by the depth, but at least 8."""

    spectrum_qubits: int = 8
    """Most qubits of which the Fourier spectrum is taken."""

    seed: int = 0
    """Root of all random numbers; each cell has its own, whatever was run before it."""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        for values in (self.qubits, self.depths):
            if not values or list(values) != sorted(set(values)):
                raise ConfigError(
                    f"{values} in a study: numbers of qubits and of layers must rise, and there "
                    "must be one of each"
                )
        if min(self.qubits) < 2 or max(self.qubits) > 12 or min(self.depths) < 1:
            raise ConfigError(
                f"the study is of 2 to 12 qubits and at least 1 layer, not of {self.qubits} "
                f"qubits and {self.depths} layers"
            )
        if self.least < 2 or self.most < self.least or self.tables < 1 or self.seed < 0:
            raise ConfigError(
                f"circuits {self.least}..{self.most}, tables {self.tables}, seed {self.seed}: "
                "at least 2 circuits, one table, and a seed that is not negative"
            )
        if not (math.isfinite(self.initial_std) and self.initial_std > 0):
            raise ConfigError(
                f"initial_std is {self.initial_std}: it must be a positive number of radian"
            )
        self.ansatz(min(self.qubits), 1)

    def ansatz(self, n_qubits: int, depth: int) -> Ansatz:
        """Return the circuit of a cell."""
        return Ansatz(n_qubits, depth, encoding=self.encoding, entangler=self.entangler)

    def grid(self) -> Iterator[tuple[int, int, str]]:
        """Yield (number of qubits, depth, initialisation) of every cell."""
        for n in self.qubits:
            for depth in self.depths:
                for init in INITIALISATIONS:
                    yield n, depth, init

    def circuits(self, n_qubits: int, depth: int) -> int:
        """Return how many random circuits a cell has."""
        return int(min(self.most, max(self.least, 2**21 // (2**n_qubits * depth))))


def measure(study: Study, n_qubits: int, depth: int, init: str) -> Cell:
    """Measure one cell.

    Returns:
        Plain numbers, as they go to the cell's file. `squares` holds, for each circuit, the mean
        square of the derivatives of `measures.derivatives`; `expressibility` has bins that Haar
        states fill equally and those of Sim et al., each with the value of as many Haar states.
    """
    begun = time.process_time()
    entropy = (study.seed, n_qubits, depth, INITIALISATIONS.index(init))
    state = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)
    generator = torch.Generator().manual_seed(state)
    ansatz = study.ansatz(n_qubits, depth)
    circuits = study.circuits(n_qubits, depth)

    def draw(count: int) -> torch.Tensor:
        shape = (count, *ansatz.theta_shape)
        if init == "initial":
            return study.initial_std * torch.randn(shape, generator=generator)
        return torch.pi * (2 * torch.rand(shape, generator=generator) - 1)

    step = max(1, 2**16 // 2**n_qubits)
    squares: dict[str, list[torch.Tensor]] = {"local": [], "global": []}
    entanglement: list[torch.Tensor] = []
    kept: list[torch.Tensor] = []
    for begin in range(0, circuits, step):
        count = min(step, circuits - begin)
        theta = draw(count)
        angles = torch.pi * (2 * torch.rand(count, n_qubits, generator=generator) - 1)
        each, psi = measures.derivatives(ansatz, theta, angles, depth, generator)
        for name, values in each.items():
            squares[name].append(values)
        entanglement.append(measures.meyer_wallach(psi))
        if sum(len(part) for part in kept) < study.least:
            kept.append(psi)
    pairs = {
        "circuit": measures.fidelities(torch.cat(kept)[: study.least]),
        "haar": measures.fidelities(
            measures.haar_states(study.least, n_qubits, generator, torch.float32)
        ),
    }
    edges = {"equal": measures.haar_edges(n_qubits), "sim": measures.uniform_edges()}
    power = None
    if n_qubits <= study.spectrum_qubits:
        tables = max(8, study.tables // depth)
        spectra = [measures.spectrum(ansatz, theta.double(), depth) for theta in draw(tables)]
        power = torch.stack(spectra).mean(0).tolist()
    q = torch.cat(entanglement)
    return {
        "qubits": n_qubits,
        "depth": depth,
        "init": init,
        "circuits": circuits,
        "seed": state,
        "squares": {name: torch.cat(values).tolist() for name, values in squares.items()},
        "entanglement": {"mean": q.mean().item(), "std": q.std().item()},
        "expressibility": {
            kind: {
                "divergence": measures.expressibility(pairs["circuit"], n_qubits, bins),
                "floor": measures.expressibility(pairs["haar"], n_qubits, bins),
            }
            for kind, bins in edges.items()
        },
        "spectrum": power,
        "seconds": time.process_time() - begun,
    }


def load_or_measure(study: Study, folder: Path, cell: tuple[int, int, str]) -> Cell:
    """Return a cell from its file in `folder`, measured and written first if it is not there."""
    n_qubits, depth, init = cell
    path = folder / f"n{n_qubits:02}-l{depth:03}-{init}.json"
    if path.is_file():
        with suppress(ValueError):  # a damaged file is measured again
            found: Cell = json.loads(path.read_text(encoding="utf-8"))
            return found
    result = measure(study, *cell)
    for name, values in result["squares"].items():
        result["squares"][name] = [float(f"{value:.6g}") for value in values]
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result), encoding="utf-8")
    partial.replace(path)
    return result


def open_folder(study: Study, output: Path) -> Path:
    """Return the folder of the cells in `output`, made if need be.

    Raises:
        ConfigError: `output` holds cells of another study, or cannot be written.
    """
    folder, settings = output / "cells", output / "study.json"
    mine = json.loads(json.dumps(asdict(study)))
    if settings.is_file() and json.loads(settings.read_text(encoding="utf-8")) != mine:
        raise ConfigError(
            f"{output} holds a study with other settings (study.json): choose another --output, "
            "or delete it"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{output} cannot be written: {os.strerror(error.errno or 0)}") from error
    settings.write_text(json.dumps(mine, indent=1) + "\n", encoding="utf-8")
    return folder
