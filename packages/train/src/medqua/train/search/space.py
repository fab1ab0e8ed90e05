"""The search space of a sweep: a TOML file of recipe keys, each with a range or choices.

trials = 20
seed = 0

[space."optim.head"]
low = 1e-4
high = 1e-1
log = true

[space."adapter.n_qubits"]
choices = [2, 4, 6]
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from medqua.core.errors import ConfigError
from medqua.train.recipe import load_recipe
from medqua.train.typed import at_least, build


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """Values of one recipe key: a range, or choices."""

    low: float | None = None
    """Least value."""

    high: float | None = None
    """Greatest value."""

    log: bool = False
    """Draw the logarithm evenly."""

    whole: bool = False
    """Whole numbers alone."""

    choices: tuple[Any, ...] = ()
    """Values, instead of a range."""

    def __post_init__(self) -> None:
        ranged = self.low is not None or self.high is not None
        if ranged == bool(self.choices):
            raise ConfigError("needed either choices, or low and high")
        if self.choices and (self.log or self.whole):
            raise ConfigError("log and whole belong to a range, not to choices")
        if not ranged:
            return
        if self.low is None or self.high is None or not self.low < self.high < math.inf:
            raise ConfigError(f"low = {self.low}, high = {self.high}: needed low below high")
        if self.log and self.low <= 0:
            raise ConfigError(f"low = {self.low} with log = true: needed more than 0")
        if self.whole and not (self.low.is_integer() and self.high.is_integer()):
            raise ConfigError(f"low = {self.low}, high = {self.high}: needed whole numbers")

    def ends(self) -> tuple[Any, ...]:
        """Values to try a recipe with: all choices, or both ends."""
        return self.choices or tuple(_number(end, self.whole) for end in (self.low, self.high))


@dataclass(frozen=True, kw_only=True)
class Space:
    """What a sweep tries."""

    trials: int = 20
    """Runs, those that fail among them."""

    seed: int = 0
    """Seed of the sampler; the runs keep `run.seed` of the recipe."""

    space: dict[str, Any]
    """Recipe key -> its `Dimension`."""

    def __post_init__(self) -> None:
        at_least("trials", self.trials, 1)
        at_least("seed", self.seed, 0)
        if not self.space:
            raise ConfigError("[space] is empty: name at least one recipe key")

    @property
    def dimensions(self) -> dict[str, Dimension]:
        """The dimensions, built and checked."""
        found = {}
        for key, table in self.space.items():
            if not isinstance(table, Mapping):
                raise ConfigError(f"space.{key} = {table!r}: needed a table of low and high")
            try:
                found[key] = build(Dimension, table, prefix=f"space.{key}.")
            except ConfigError as error:
                message = str(error)
                raise ConfigError(
                    message if key in message else f"space.{key}: {message}"
                ) from error
        return found


def shipped_space() -> Path:
    """The space that is installed with the package."""
    return Path(str(files("medqua.train.search") / "space.toml"))


def load_space(path: Path, recipe: str, overrides: list[str]) -> Space:
    """Read a space and try the recipe with the ends of each dimension.

    Args:
        path: The TOML file.
        recipe: The recipe that it is for.
        overrides: `key=value` on top of the recipe.

    Raises:
        ConfigError: No TOML, an unknown key, or a value that the recipe does not take.
    """
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"no search space in {path}: {error}") from error
    space = build(Space, table)
    for key, dimension in space.dimensions.items():
        if key.startswith("data.") and not key.startswith("data.patients"):
            raise ConfigError(f"space.{key}: a sweep keeps to one data set; name another key")
        if key in ("run.seed", "evaluation.choose_best"):
            raise ConfigError(f"space.{key}: choosing it by the figure would flatter the figure")
        for value in dimension.ends():
            load_recipe(recipe, [*overrides, override(key, value)])
    return space


def override(key: str, value: Any) -> str:
    """A value as `key=value`."""
    shown = str(value).lower() if isinstance(value, bool) else value
    return f"{key}={shown}"


def _number(value: float | None, whole: bool) -> Any:
    return int(value or 0) if whole else value
