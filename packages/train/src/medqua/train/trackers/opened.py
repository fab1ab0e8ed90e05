"""The trackers of one run: looked for before it starts, opened, told, and closed with its state."""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from medqua.core.errors import ConfigError
from medqua.train.processes import distributed
from medqua.train.recipe import Recipe
from medqua.train.record import RunState
from medqua.train.trackers.shared import settings

MODULES: Mapping[str, str] = {"wandb": "wandb", "mlflow": "mlflow"}
"""Tracker -> module that it needs beside those of this package."""


@runtime_checkable
class Tracker(Protocol):
    """One place that is told."""

    def log(self, line: Mapping[str, Any]) -> None:
        """A line of the training log."""

    def figures(self, metrics: Mapping[str, Any]) -> None:
        """What `metrics.json` holds."""

    def pictures(self, folder: Path) -> None:
        """The pictures of a folder."""

    def close(self, state: str) -> None:
        """End as `complete`, `interrupted` or `failed`."""


class Trackers:
    """All of a run. One that fails is told of once and left out; the run goes on.

    Args:
        members: By name.
        say: Called with what a person should know.
    """

    def __init__(self, members: Mapping[str, Tracker], say: Callable[[str], None]) -> None:
        self.members = dict(members)
        self.say = say

    def each(self, do: Callable[[Tracker], None]) -> None:
        """Do something with each that still works."""
        for name, tracker in list(self.members.items()):
            try:
                do(tracker)
            except Exception as error:  # a server that is gone is no reason to lose a training
                del self.members[name]
                self.say(f"{name} is told nothing more: {type(error).__name__}: {error}")

    def log(self, line: Mapping[str, Any]) -> None:
        """A line of the training log."""
        self.each(lambda tracker: tracker.log(line))

    def finish(self, metrics: Mapping[str, Any], pictures: Path | None) -> None:
        """The figures, and the pictures of a folder if they may leave."""
        self.each(lambda tracker: tracker.figures(metrics))
        if pictures is not None and pictures.is_dir():
            self.each(lambda tracker: tracker.pictures(pictures))


def check_installed(trackers: Sequence[str]) -> None:
    """Refuse trackers whose package is not there.

    Raises:
        ConfigError: With the line that installs it.
    """
    for name in trackers:
        if name in MODULES and find_spec(MODULES[name]) is None:
            raise ConfigError(
                f"run.trackers has {name!r}, which is not installed: "
                f"pip install 'medqua-train[{name}]'"
            )


@contextmanager
def open_trackers(
    recipe: Recipe, folder: Path, state: RunState, say: Callable[[str], None]
) -> Iterator[Trackers]:
    """Open a run's trackers on rank 0, and close them with how it ended.

    Raises:
        ConfigError: One refuses the run.
    """
    if not distributed.is_main():
        yield Trackers({}, say)
        return
    identity = state.record.setdefault("tracking_id", uuid.uuid4().hex[:16])
    if not recipe.run.trackers:
        del state.record["tracking_id"]
    trackers = Trackers(
        {name: _open(name, recipe, folder, identity) for name in recipe.run.trackers}, say
    )
    ended = "failed"
    try:
        yield trackers
        ended = "complete"
    except KeyboardInterrupt:
        ended = "interrupted"
        raise
    finally:
        trackers.each(lambda tracker: tracker.close(ended))


def _open(name: str, recipe: Recipe, folder: Path, identity: str) -> Tracker:
    config = settings(recipe, paths="paths" in recipe.run.share)
    title = f"{recipe.name}-{recipe.run.seed}"
    if name == "wandb":
        from medqua.train.trackers.wandb import WandB

        return WandB(folder, recipe.run.project, title, identity, config)
    if name == "mlflow":
        from medqua.train.trackers.mlflow import MLflow

        return MLflow(folder, recipe.run.project, title, identity, config)
    from medqua.train.trackers.tensorboard import TensorBoard

    return TensorBoard(folder)
