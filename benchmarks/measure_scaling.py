"""What a training step costs on one process and on two, for `tools/scaling_table.py`.

    python benchmarks/measure_scaling.py

Trains by the recipe `mimic` on phantoms, at the same global batch on one process and on two of
this machine, and keeps the medians over steps: seconds by the clock, seconds of CPU of all
processes, and the largest resident memory of a process. CPU seconds are what to compare where
something else ran on the machine; the load average is kept beside them.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console

from medqua.train.processes import distributed
from medqua.train.recipe import load_recipe
from medqua.train.record import peak_memory_mib
from medqua.train.run import train
from medqua.train.trainer.trainer import MedQuaTrainer

RESULTS = Path(__file__).parent / "results" / "scaling.json"
BATCH, SKIPPED = 32, 3
"""Global batch; first steps that are not counted."""


def do(folder: Path, steps: int) -> None:
    """Train as one process of a run, and leave beside it what each step took here."""
    clock: list[tuple[float, float]] = []
    step = MedQuaTrainer.training_step

    def timed(trainer: MedQuaTrainer, *args: Any, **kwargs: Any) -> Any:
        clock.append((time.perf_counter(), time.process_time()))
        return step(trainer, *args, **kwargs)

    MedQuaTrainer.training_step = timed  # type: ignore[method-assign,assignment]
    keys = [
        *(f"optim.batch_size={BATCH}", f"optim.max_steps={steps}", "run.threads=1"),
        *("evaluation.bootstrap=0", "evaluation.plots=false", "evaluation.untrained=false"),
        *("evaluation.every=1000", "run.trackers=[]"),
    ]
    train(load_recipe("mimic", keys), folder / "run", Console(quiet=True))
    told = {"clock": clock, "memory": peak_memory_mib()}
    (folder / f"{distributed.rank()}.json").write_text(json.dumps(told))


def measure(processes: int, steps: int) -> dict[str, float]:
    """Medians over the steps of a run on so many processes."""
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={processes}", __file__, "--steps", str(steps)]
        subprocess.run([*command, "--rank", name], check=True)
        told = [json.loads((Path(name) / f"{i}.json").read_text()) for i in range(processes)]
    wall = [_median([at[0] for at in one["clock"]]) for one in told]
    cpu = [_median([at[1] for at in one["clock"]]) for one in told]
    return {
        "processes": processes,
        "seconds_a_step": max(wall),
        "cpu_seconds_a_step": sum(cpu),
        "cpu_seconds_an_image": sum(cpu) / BATCH,
        "memory_mib_a_process": max(one["memory"] for one in told),
    }


def _median(times: list[float]) -> float:
    return statistics.median(b - a for a, b in pairwise(times[SKIPPED:]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank:
        do(given.rank, given.steps)
    else:
        before = os.getloadavg()[0]
        found = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
            "date": datetime.now(UTC).date().isoformat(),
            "global_batch": BATCH,
            "rows": [measure(processes, given.steps) for processes in (1, 2)],
            "load_average": [before, os.getloadavg()[0]],
        }
        given.output.write_text(json.dumps(found, indent=2) + "\n")
        print(given.output.read_text())
