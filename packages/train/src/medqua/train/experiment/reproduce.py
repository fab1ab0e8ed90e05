"""All arms over all seeds on one data set: a grid of runs that can be stopped and gone on with.

A cell is one run, in a folder of its own under `cells/`. It is done when its record says complete
and its predictions are there; a cell that was killed is thrown away and run again. Cells run in
worker processes that live on from cell to cell, one for each job, each pinned to its device; a
worker that dies costs its cell alone. Cells do not know of each other: any one of them, run again
with its seed, gives the same numbers. They share nothing but the hidden states of the frozen
layers (`medqua.train.prefix`).

reproduce.json               what was asked for, the declared endpoint, versions
states/                      hidden states of the frozen layers
cells/SHARE/ARM/seed-N/      a run folder, with `cell.json` (seconds) and `log.txt`
report/                      written by `medqua.train.experiment.report`
"""

import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from medqua.core.errors import ConfigError, MedQuaError
from medqua.train.experiment.grid import Cell, is_done, plan
from medqua.train.experiment.section import ExperimentSection
from medqua.train.recipe import build_recipe, load_recipe
from medqua.train.record import git_commit, read_json, write_json
from medqua.train.run import train


def reproduce(
    source: str | Path,
    overrides: Sequence[str],
    output: Path,
    console: Console,
    *,
    jobs: int = 0,
) -> list[Cell]:
    """Run what is missing of an experiment.

    Args:
        source: Name of a shipped recipe, or a TOML file.
        overrides: `key=value`.
        output: Folder of the experiment, new or to go on with.
        console: Where to speak.
        jobs: Cells at once; 0 is one for each GPU, or for each core without one.

    Returns:
        All cells, every one of them done.

    Raises:
        ConfigError: The recipe is wrong, or the folder holds another experiment.
        MedQuaError: Cells failed; the others are done and stay so.
        KeyboardInterrupt: Stopped; go on by the same command.
    """
    experiment = load_recipe(source, overrides).experiment
    cells = plan(source, overrides, output)
    missing = [cell for cell in cells if not is_done(cell)]
    _declare(experiment, output, source, overrides)
    gpus = torch.cuda.device_count()
    jobs = jobs or gpus or len(_cores())
    console.print(f"Declared endpoint: {experiment.endpoint}", highlight=False)
    console.print(
        f"{len(cells)} cells, {len(cells) - len(missing)} of them done; {jobs} at once",
        highlight=False,
    )
    failed = run_cells(missing, min(jobs, max(len(missing), 1)), gpus, console)
    if failed:
        named = "; ".join(f"{cell.title}: {why}" for cell, why in failed[:3])
        raise MedQuaError(
            f"{len(failed)} of {len(cells)} cells failed ({named}); each has a log.txt in its "
            f"folder under {output / 'cells'}. The same command goes on with what is missing"
        )
    return cells


def run_cells(
    cells: Sequence[Cell], jobs: int, gpus: int, console: Console
) -> list[tuple[Cell, str]]:
    """Run cells, `jobs` at once; those that failed, with why."""
    queue, failed = deque(cells), list[tuple[Cell, str]]()
    lock, stop = threading.Lock(), threading.Event()
    started, done = time.monotonic(), 0

    def finished(cell: Cell, result: dict[str, Any] | str) -> None:
        nonlocal done
        with lock:
            done += 1
            if isinstance(result, str):
                failed.append((cell, result))
                console.print(f"FAILED {cell.title}: {result}", highlight=False)
                return
            left = (time.monotonic() - started) / done * (len(cells) - done)
            console.print(
                f"{done}/{len(cells)}  {cell.title}: macro AUROC {_shown(result['macro_auroc'])}, "
                f"{result['seconds']:.0f} s; {left / 60:.0f} min left",
                highlight=False,
            )

    slots = [
        threading.Thread(target=_serve, args=(queue, slot % gpus if gpus else None, stop, finished))
        for slot in range(jobs if cells else 0)
    ]
    for thread in slots:
        thread.start()
    try:
        for thread in slots:
            thread.join()
    except KeyboardInterrupt:
        stop.set()
        console.print("Stopping. Cells that are done stay done; the same command goes on.")
        for thread in slots:
            thread.join()
        raise
    return failed


def run_cell(table: dict[str, Any], folder: str) -> dict[str, Any]:
    """Run one cell from its beginning, in this process.

    Args:
        table: The recipe, as `Recipe.to_dict` gives it.
        folder: The run folder; what is there of an earlier try is removed.

    Returns:
        `macro_auroc` of the test split, and `seconds` of wall time.
    """
    path = Path(folder)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    started = time.perf_counter()
    with (path / "log.txt").open("w", encoding="utf-8") as log:
        metrics = train(build_recipe(table), path, Console(file=log, width=120))
    for checkpoint in (path / "trainer_state").glob("checkpoint-*"):
        shutil.rmtree(checkpoint, ignore_errors=True)  # the bundle holds the model
    seconds = time.perf_counter() - started
    write_json(path / "cell.json", {"seconds": seconds})
    return {"macro_auroc": metrics["test"]["macro_auroc"], "seconds": seconds}


def _serve(
    queue: "deque[Cell]",
    gpu: int | None,
    stop: threading.Event,
    finished: Callable[[Cell, dict[str, Any] | str], None],
) -> None:
    """One job: a worker process that is given cell after cell, and replaced if it dies."""
    workers: ProcessPoolExecutor | None = None
    try:
        while not stop.is_set():
            try:
                cell = queue.popleft()
            except IndexError:
                return
            if workers is None:
                workers = ProcessPoolExecutor(
                    1, multiprocessing.get_context("spawn"), initializer=_pin, initargs=(gpu,)
                )
            try:
                result = workers.submit(run_cell, cell.recipe.to_dict(), str(cell.folder)).result()
            except BrokenProcessPool:
                workers = None
                finished(cell, "its process died (out of memory?)")
            except KeyboardInterrupt:
                return
            except Exception as error:
                finished(cell, str(error) or type(error).__name__)
            else:
                finished(cell, result)
    finally:
        if workers is not None:
            workers.shutdown(cancel_futures=True)


def _pin(gpu: int | None) -> None:
    """Show this worker its device alone, and end it with the process that started it."""
    if gpu is not None:
        shown = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        every = shown.split(",") if shown else []
        os.environ["CUDA_VISIBLE_DEVICES"] = every[gpu] if gpu < len(every) else str(gpu)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def leave() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=leave, daemon=True).start()


def _declare(
    experiment: ExperimentSection, output: Path, source: str | Path, overrides: Sequence[str]
) -> None:
    """Write down what is asked for, before anything is run; refuse another endpoint later."""
    path = output / "reproduce.json"
    told = {"arm": experiment.arm, "against": experiment.against}
    if path.is_file():
        before = read_json(path)["endpoint"]
        if before != told:
            raise ConfigError(
                f"{output} declares the endpoint {before['arm']} minus {before['against']}: an "
                "endpoint is not changed once it is declared; give another --output"
            )
    output.mkdir(parents=True, exist_ok=True)
    record = {
        "endpoint": told,
        "declared": experiment.endpoint,
        "experiment": {name: getattr(experiment, name) for name in vars(experiment)},
        "source": str(source),
        "overrides": list(overrides),
        "git_commit": git_commit(),
        "python": sys.version.split()[0],
        "cores": len(_cores()),
        "gpus": torch.cuda.device_count(),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if path.is_file():
        record["written"] = read_json(path).get("written", record["written"])
    write_json(path, record)


def _cores() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
