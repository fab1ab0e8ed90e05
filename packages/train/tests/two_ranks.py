"""Runs of `test_distributed_training` in processes of their own.

`two_ranks.py PLAN.json` does the runs of a plan as one rank, as torchrun starts it.
`two_ranks.py` alone imports everything once, then reads plans from standard input, one JSON a line,
and forks the ranks of each: starting a process costs more than a run. It answers with the exit
codes, negative where a signal ended a rank.

A run may say `signal: [rank, step, number]`, sent by that rank to itself before a step; a rank that
routes no token (`empty: rank`); and what is kept of it goes beside its folder.
"""

import json
import os
import signal
import socket
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from medqua.core.adapter import EntropyRouter, QuasarBlock
from medqua.core.errors import MedQuaError
from medqua.train.processes import distributed
from medqua.train.recipe import load_recipe
from medqua.train.run import train
from medqua.train.trainer.checkpoint import trained_state
from medqua.train.trainer.trainer import MedQuaTrainer

TIMEOUT = 3600
"""Seconds that a rank waits for the others: longer than it may live, so it notices or is stuck."""

STUCK = 900.0
"""Seconds until ranks that have not ended are killed."""


class Watched:
    """The trainer of the run that goes on, and what is to happen to it."""

    def __init__(self) -> None:
        self.trainer: MedQuaTrainer | None = None
        self.signal: tuple[int, int, int] | None = None
        self.empty: int | None = None

    def install(self) -> None:
        init, step = MedQuaTrainer.__init__, MedQuaTrainer.training_step
        route = EntropyRouter._route

        def keep(trainer: MedQuaTrainer, *args: Any, **kwargs: Any) -> None:
            init(trainer, *args, **kwargs)
            self.trainer = trainer

        def interrupt(trainer: MedQuaTrainer, *args: Any, **kwargs: Any) -> Any:
            here = (distributed.rank(), trainer.state.global_step)
            if self.signal is not None and here == self.signal[:2]:
                os.kill(os.getpid(), self.signal[2])
            return step(trainer, *args, **kwargs)

        def nothing(router: EntropyRouter, *args: Any, **kwargs: Any) -> Any:
            mask = route(router, *args, **kwargs)
            return torch.zeros_like(mask) if self.empty == distributed.rank() else mask

        MedQuaTrainer.__init__ = keep  # type: ignore[method-assign]
        MedQuaTrainer.training_step = interrupt  # type: ignore[method-assign]
        EntropyRouter._route = nothing  # type: ignore[method-assign]

    def tell(self, folder: Path, name: str) -> None:
        """Write what this rank holds beside the run."""
        if self.trainer is None:
            raise RuntimeError("no trainer was made")
        model = self.trainer.classifier
        blocks = [module for module in model.modules() if isinstance(module, QuasarBlock)]
        told = {
            "thresholds": [float(block.router.threshold_logit) for block in blocks],
            "blocks": sorted({type(block).__name__ for block in blocks}),
            "parameters": sorted(
                {type(p).__name__ for p in model.parameters() if p.dim() and p.numel()}
            ),
            "adapter": sorted({str(p.dtype) for block in blocks for p in block.parameters()}),
            "wrapped": type(self.trainer.model_wrapped).__name__,
        }
        state = trained_state(model)
        rank = distributed.rank()
        (folder / f"{name}-{rank}.json").write_text(json.dumps(told))
        torch.save(state, folder / f"{name}-{rank}.pt")


def do(plan: dict[str, Any]) -> None:
    """Do the runs of a plan, one after the other."""
    folder = Path(plan["folder"])
    watched = Watched()
    watched.install()
    for name, run in plan["runs"].items():
        watched.signal, watched.empty = None, run.get("empty")
        if "signal" in run and not distributed.restarted():
            watched.signal = tuple(run["signal"])
        recipe = load_recipe("folder", run["keys"])
        train(recipe, folder / name, Console(quiet=True), resume=run.get("resume", False))
        watched.tell(folder, name)


def main(plan: dict[str, Any]) -> int:
    """Be a rank, and say how it ended: 0, 2 for a refusal, 130 for a stop, 1 for a defect."""
    try:
        distributed.start(1, plan.get("timeout", TIMEOUT))
        do(plan)
    except MedQuaError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def fork(plan: dict[str, Any], rank: int, port: int) -> int:
    """Make a rank of this process's copy; its number."""
    child = os.fork()
    if child:
        return child
    size = str(plan["ranks"])
    here = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size}
    os.environ |= {"LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", **here}
    os.environ["MASTER_PORT"] = str(port)
    with (Path(plan["folder"]) / f"rank-{rank}.err").open("w") as errors:
        os.dup2(errors.fileno(), 2)
    code = main(plan)
    sys.stderr.flush()
    os._exit(code)


def launch(plan: dict[str, Any]) -> list[int]:
    """Fork the ranks of a plan and wait for them; exit codes by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [fork(plan, rank, port) for rank in range(plan["ranks"])]
    codes: dict[int, int] = {}
    until = time.monotonic() + STUCK
    while len(codes) < len(ranks):
        for child in set(ranks) - codes.keys():
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                codes[child] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > until:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    return [codes[child] for child in ranks]


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    if len(sys.argv) > 1:
        os._exit(main(json.loads(Path(sys.argv[1]).read_text())))
    for line in sys.stdin:
        print(json.dumps(launch(json.loads(line))), flush=True)
