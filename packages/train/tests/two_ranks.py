"""Runs of `test_distributed_training` in the processes of torchrun: `two_ranks.py PLAN.json`.

Several runs in one start of the processes, which costs more than the runs. A run may be told that
a rank dies, with SIGKILL, before an optimiser step.
"""

import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from medqua.core.adapter import QuasarBlock
from medqua.core.errors import MedQuaError
from medqua.train import distributed
from medqua.train.checkpoint import trained_state
from medqua.train.recipe import load_recipe
from medqua.train.run import train
from medqua.train.trainer import MedQuaTrainer


class Watched:
    """The trainer of the run that goes on, and the death that waits for it."""

    def __init__(self) -> None:
        self.trainer: MedQuaTrainer | None = None
        self.dies: tuple[int, int] | None = None

    def install(self) -> None:
        init, step = MedQuaTrainer.__init__, MedQuaTrainer.training_step

        def keep(trainer: MedQuaTrainer, *args: Any, **kwargs: Any) -> None:
            init(trainer, *args, **kwargs)
            self.trainer = trainer

        def die(trainer: MedQuaTrainer, *args: Any, **kwargs: Any) -> Any:
            if self.dies == (distributed.rank(), trainer.state.global_step):
                os.kill(os.getpid(), signal.SIGKILL)
            return step(trainer, *args, **kwargs)

        MedQuaTrainer.__init__ = keep  # type: ignore[method-assign]
        MedQuaTrainer.training_step = die  # type: ignore[method-assign]

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
            "wrapped": type(self.trainer.model_wrapped).__name__,
        }
        state = trained_state(model)
        rank = distributed.rank()
        (folder / f"{name}-{rank}.json").write_text(json.dumps(told))
        torch.save(state, folder / f"{name}-{rank}.pt")


def main(plan: dict[str, Any]) -> None:
    """Do the runs of a plan, one after the other."""
    folder = Path(plan["folder"])
    watched = Watched()
    watched.install()
    for name, run in plan["runs"].items():
        watched.dies = None
        if "dies" in run and not distributed.restarted():
            watched.dies = tuple(run["dies"])
        recipe = load_recipe("folder", run["keys"])
        train(recipe, folder / name, Console(quiet=True), resume=run.get("resume", False))
        watched.tell(folder, name)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    try:
        distributed.start(1, 60)
        main(json.loads(Path(sys.argv[1]).read_text()))
    except MedQuaError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(2)
    distributed.stop()
