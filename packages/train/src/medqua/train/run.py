"""One run, from a recipe to its folder: the stages in their order, and the run's state on disk."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from rich.console import Console
from transformers import set_seed

from medqua.train.evaluation.metrics import Figures
from medqua.train.model import count_parameters
from medqua.train.processes import distributed
from medqua.train.publish.card import render_card
from medqua.train.recipe import Recipe
from medqua.train.record import (
    RunState,
    check_same_recipe,
    describe_run,
    peak_memory_mib,
    prepare_folder,
    read_json,
    write_json,
)
from medqua.train.stages.fit import Fitted, fit, gathered
from medqua.train.stages.measure import (
    Measured,
    figures,
    measure,
    path_figures,
    seconds_per_image,
    untrained_figures,
    validation_of,
)
from medqua.train.stages.prepare import Run, describe_data, from_prefix, preload, prepare_run
from medqua.train.stages.write import draw, make_bundle, write_predictions, write_skipped
from medqua.train.trackers.opened import check_installed, open_trackers

Stages = Callable[[Recipe, Path, Console, RunState, bool], Figures]
"""Prepare, fit, measure, write, with whether to resume; returns what `metrics.json` holds."""


def train(
    recipe: Recipe,
    folder: Path,
    console: Console,
    *,
    resume: bool = False,
    stages: Stages | None = None,
) -> Figures:
    """Do a run.

    Every process of a run calls this with the same arguments; rank 0 writes.

    Args:
        recipe: What to do.
        folder: The run folder.
        console: Where to speak.
        resume: Go on from the last checkpoint in the folder; so does a run that a launcher
            started again.
        stages: What is done between the run's first and last word; a classifier's by default.

    Returns:
        What `metrics.json` holds.

    Raises:
        MedQuaError: The data, the recipe or the folder do not do; see the message.
        KeyboardInterrupt: Stopped by Ctrl-C or SIGTERM, after a checkpoint was written.
    """
    distributed.start(recipe.run.threads, recipe.run.timeout)
    if not distributed.is_main():
        console = Console(quiet=True)
    set_seed(recipe.run.seed)
    resume = resume or (distributed.restarted() and (folder / "run.json").is_file())
    check_installed(recipe.run.trackers)
    if resume:
        check_same_recipe(folder, recipe)
    with distributed.main_first() as main:
        if main:
            prepare_folder(folder, resume=resume)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    record = read_json(folder / "run.json") if resume else describe_run(recipe, device)
    if resume:
        record.setdefault("resumed", []).append(describe_run(recipe, device)["started"])
    state = RunState(folder, record)
    state.write("running")
    try:
        metrics = (stages or _stages)(recipe, folder, console, state, resume)
    except KeyboardInterrupt:
        state.write("interrupted")
        raise
    except BaseException as error:
        state.failed(error)
        lost = distributed.lost_peer(error)
        if lost is not None:
            raise lost from error
        raise
    state.write("complete")
    return metrics


def _stages(
    recipe: Recipe, folder: Path, console: Console, state: RunState, resume: bool
) -> Figures:
    """Prepare, fit, measure, write."""
    whole = prepare_run(recipe, folder, console, state, resume=resume)
    with open_trackers(recipe, folder, state, whole.say) as trackers:
        state.write("running")
        with ExitStack() as undo:
            run = from_prefix(whole, undo)
            if recipe.data.keep_in_memory and run is whole:
                preload(run)
            untrained = None
            if recipe.evaluation.untrained and not run.zero_shot:
                untrained = untrained_figures(run)
                run.say(f"untrained: test macro AUROC {_shown(untrained['macro_auroc'])}")
            fitted = fit(run, state, trackers, resume=resume)
            measured = measure(run)
        seconds = measured.tested.seconds_per_image if run is whole else seconds_per_image(whole)
        metrics = _metrics(run, fitted, measured, untrained, seconds)
        served = gathered(run)
        if distributed.is_main():
            _write(served, fitted, measured, metrics, state)
            trackers.finish(metrics, folder / "plots" if "plots" in recipe.run.share else None)
        distributed.gather(None)
    return metrics


def _metrics(
    run: Run, fitted: Fitted, measured: Measured, untrained: Figures | None, seconds: float
) -> Figures:
    """What `metrics.json` holds."""
    trainable, total = count_parameters(run.classifier)
    calibration = measured.calibration
    absent = len(run.data.absent)
    skipped = absent + len(fitted.skipped) + len(measured.unreadable(run))
    return {
        "test": figures(run, "test", measured.tested, calibration, intervals=True),
        "validate": figures(run, "validate", measured.validated, calibration, intervals=False),
        "untrained": untrained,
        "router": measured.routers,
        "classical_only": path_figures(run, measured),
        "seconds_per_image": seconds,
        "trainable_parameters": trainable,
        "parameters": total,
        "training_seconds": fitted.seconds,
        "peak_memory_mib": peak_memory_mib(),
        "steps": fitted.steps,
        "data": {**describe_data(run.data), "skipped": skipped},
    }


def _write(run: Run, fitted: Fitted, measured: Measured, metrics: Figures, state: RunState) -> None:
    """Leave everything in the folder; the bundle last."""
    write_json(run.folder / "metrics.json", metrics)
    write_predictions(run, measured)
    write_skipped(run.folder, [*run.data.absent, *fitted.skipped, *measured.unreadable(run)])
    if run.recipe.evaluation.plots:
        draw(run, measured, fitted.history)
    if run.zero_shot:
        rest = f"everything of the run is in {run.folder}"
        run.say(f"Nothing was trained, so there is no bundle; {rest}")
        return
    card = render_card(state.record, metrics)
    bundle = make_bundle(run, measured.calibration, card, validation_of(run, measured))
    where = bundle.save(run.folder / "bundle", overwrite=True)
    run.say(f"The model is in {where}, everything of the run in {run.folder}")


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
