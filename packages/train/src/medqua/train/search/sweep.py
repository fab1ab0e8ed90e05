"""A search over recipe keys with Optuna, judged by the validation split alone.

Every trial is a run. What it says of the test split is thrown away with its folder before anybody
can see it, so that the test split stays what it is for: one look at the recipe that was chosen.

study.db         Optuna's study: trials, values, states; by it a sweep goes on after a stop
trials/N.json    the keys of a trial, its validation figures, or why it failed
best.json        the best trial
report.md        written by `medqua.train.search.report`
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from medqua.core.errors import ConfigError, MedQuaError
from medqua.train.display import progress
from medqua.train.recipe import load_recipe
from medqua.train.record import read_json, write_json
from medqua.train.run import train
from medqua.train.search.space import Dimension, Space, override

if TYPE_CHECKING:
    import optuna

QUIET = (
    "run.trackers=[]",
    "evaluation.plots=false",
    "evaluation.bootstrap=0",
    "evaluation.untrained=false",
)
"""Of each trial."""

ASKED = "asked"
"""Attribute of the study: what was asked for when it began."""


def sweep(
    recipe: str, overrides: Sequence[str], space: Space, output: Path, console: Console
) -> "optuna.Study":
    """Run the trials that are missing.

    Args:
        recipe: Name of a shipped recipe, or a TOML file.
        overrides: `key=value` of every trial.
        space: What to vary.
        output: Folder of the sweep, new or to go on with.
        console: Where to speak.

    Returns:
        The study.

    Raises:
        ConfigError: Optuna is not installed, or the folder holds another sweep.
        MedQuaError: No trial has a validation macro AUROC.
        KeyboardInterrupt: Stopped; the same command goes on.
    """
    study = _open(recipe, overrides, space, output)
    done = sum(_told(output, trial.number).is_file() for trial in study.trials)
    quiet = Console(quiet=True)
    with progress(console, "Trials", space.trials) as advance:
        advance(done)
        for _ in range(space.trials - done):
            _trial(study, recipe, overrides, space, output, quiet)
            last = study.trials[-1]
            found = "failed" if last.value is None else f"{last.value:.4f}"
            console.print(f"trial {last.number}: validation macro AUROC {found}", highlight=False)
            advance(1)
    if all(trial.value is None for trial in study.trials):
        raise MedQuaError(f"all {len(study.trials)} trials failed; why is in {output / 'trials'}")
    best = study.best_trial
    keys = [override(key, value) for key, value in best.params.items()]
    write_json(
        output / "best.json",
        {"trial": best.number, "validation_macro_auroc": best.value, "overrides": keys},
    )
    return study


def _open(recipe: str, overrides: Sequence[str], space: Space, output: Path) -> "optuna.Study":
    """The study in the folder, with trials that were killed told as failed."""
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("a sweep needs Optuna: pip install 'medqua-train[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    asked = json.dumps(
        {"recipe": load_recipe(recipe, overrides).to_dict(), "space": space.space},
        sort_keys=True,
    )
    (output / "trials").mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{(output / 'study.db').resolve()}",
        study_name="sweep",
        direction="maximize",
        load_if_exists=True,
    )
    if study.user_attrs.setdefault(ASKED, asked) != asked:
        raise ConfigError(
            f"{output} holds a sweep of another recipe or space: give another --output, or the "
            "same recipe, overrides and space to go on with it"
        )
    study.set_user_attr(ASKED, asked)
    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        told = _told(output, trial.number)
        value = read_json(told).get("validate", {}).get("macro_auroc") if told.is_file() else None
        state = optuna.trial.TrialState.FAIL if value is None else None
        study.tell(trial.number, value, state=state)  # killed before or after it was written
    # a resumed sweep draws on from where it stands, not the first draws again
    study.sampler = optuna.samplers.TPESampler(seed=space.seed + len(study.trials))
    return study


def _trial(
    study: "optuna.Study",
    recipe: str,
    overrides: Sequence[str],
    space: Space,
    output: Path,
    console: Console,
) -> None:
    """One run, its validation figure told to the study, its folder removed."""
    from optuna.trial import TrialState

    trial = study.ask()
    keys = [override(key, _draw(trial, key, d)) for key, d in space.dimensions.items()]
    folder = output / "trials" / f".{trial.number}"
    shutil.rmtree(folder, ignore_errors=True)
    told: dict[str, Any] = {"trial": trial.number, "overrides": keys}
    value = None
    try:
        metrics = train(load_recipe(recipe, [*overrides, *keys, *QUIET]), folder, console)
        value = metrics["validate"]["macro_auroc"]
        told |= {"validate": metrics["validate"], "seconds": metrics["training_seconds"]}
        told |= {"trainable_parameters": metrics["trainable_parameters"]}
    except MedQuaError as error:
        told["error"] = f"{type(error).__name__}: {error}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    write_json(_told(output, trial.number), told)
    if value is None:
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, value)


def _told(output: Path, number: int) -> Path:
    """Where a trial says how it went; one that was stopped says nothing and is run again."""
    return output / "trials" / f"{number}.json"


def _draw(trial: "optuna.Trial", key: str, dimension: Dimension) -> Any:
    """The value of one key."""
    if dimension.choices:
        return trial.suggest_categorical(key, list(dimension.choices))
    low, high = float(dimension.low or 0), float(dimension.high or 0)
    if dimension.whole:
        return trial.suggest_int(key, int(low), int(high), log=dimension.log)
    return trial.suggest_float(key, low, high, log=dimension.log)
