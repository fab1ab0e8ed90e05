"""What a run trains: the trainer with its log, checkpoints and wish to stop."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from medqua.core.model.classifier import MedQuaClassifier
from medqua.train.display import log_line
from medqua.train.evaluation.zero_shot import ZeroShotClassifier
from medqua.train.model import build_model
from medqua.train.processes import distributed
from medqua.train.processes.sharding import is_sharded
from medqua.train.record import RunState
from medqua.train.stages.prepare import Run
from medqua.train.trackers.opened import Trackers
from medqua.train.trainer.checkpoint import put_trained_state, trained_state
from medqua.train.trainer.early import describe
from medqua.train.trainer.trainer import MedQuaTrainer


@dataclass(frozen=True)
class Fitted:
    """What training leaves beside the weights."""

    history: Sequence[Mapping[str, Any]] = ()
    """Lines of the training log."""
    seconds: float = 0.0
    """Wall time."""
    skipped: Sequence[str] = ()
    """Training images that could not be read."""

    @property
    def steps(self) -> int:
        """Optimiser steps that were taken."""
        return max((int(line["step"]) for line in self.history), default=0)


def fit(
    run: Run,
    state: RunState,
    trackers: Trackers,
    *,
    resume: bool,
    trainer_of: Callable[..., MedQuaTrainer] = MedQuaTrainer,
) -> Fitted:
    """Train the classifier in place; a zero-shot one is left as it is.

    Raises:
        KeyboardInterrupt: Asked to stop; a checkpoint was written.
        MedQuaError: The loss is not finite, or a checkpoint is damaged.
    """
    recipe, folder = run.recipe, run.folder
    if isinstance(run.classifier, ZeroShotClassifier):
        return Fitted()

    def log(line: dict[str, float]) -> None:
        log_line(run.console, trainer.state.max_steps, line)
        trackers.log(line)

    trainer = trainer_of(
        run.classifier,
        recipe,
        run.splits["train"],
        run.splits["validate"],
        run.collator,
        folder / "trainer_state",
        log,
        run.say,
        lambda: state.failed(TimeoutError("stopped while waiting for another process")),
    )
    checkpoint = trainer.checkpoints.last() if resume else None
    if checkpoint is not None:
        run.say(f"Resuming from {checkpoint.name}")
    started = time.perf_counter()
    with trainer.stop.on_signals():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.stop.wanted:
        run.console.print(f"Stopped. Go on with: --output {folder} --resume")
        raise KeyboardInterrupt
    evaluation = recipe.evaluation
    if evaluation.patience:
        early = describe(trainer.state.log_history, evaluation.patience, evaluation.min_delta)
        state.add(early_stopping=early)
        if early["stopped"]:
            run.say(f"Stopped early: best validation macro AUROC at step {early['best_step']}")
    if distributed.is_main():
        trainer.state.save_to_json(str(folder / "trainer_state" / "trainer_state.json"))
    skipped = set(run.splits["train"].unreadable())
    for part in distributed.gather(sorted(trainer.unreadable)):
        skipped |= {run.splits["train"].images[index] for index in part}
    seconds = time.perf_counter() - started
    return Fitted(trainer.state.log_history, seconds, sorted(skipped))


def gathered(run: Run) -> Run:
    """The run with its model whole on rank 0, where it was sharded."""
    if not isinstance(run.classifier, MedQuaClassifier) or not is_sharded(run.classifier):
        return run
    state = trained_state(run.classifier)
    if not distributed.is_main():
        return run
    classifier, backbone = build_model(run.recipe, len(run.labels))
    put_trained_state(classifier, state, "the sharded model")
    return replace(run, classifier=classifier, backbone=backbone)
