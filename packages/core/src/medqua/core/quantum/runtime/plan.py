"""What is asked of a queue and what it gives: price, patience, estimate, values."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from medqua.core.errors import ConfigError, QuantumError


@dataclass(frozen=True)
class Price:
    """What a provider charges, in the currency that the user thinks in."""

    shot: float
    """For each measurement."""

    job: float = 0.0
    """For each circuit submitted."""

    budget: float = float("inf")
    """What one run may cost at most."""


@dataclass(frozen=True)
class Policy:
    """How patient a queue is.

    Raises:
        ConfigError: A number out of range.
    """

    batch: int = 8
    """Circuits that are submitted together."""

    in_flight: int = 2
    """Batches that wait for answers at the same time, at most."""

    retries: int = 4
    """How often a job is tried again after an error that may pass."""

    first_wait: float = 1.0
    """Seconds before the first of them; each later wait is twice as long, times 0.5 to 1.5."""

    longest_wait: float = 60.0
    """Seconds at most between two tries."""

    submit_timeout: float = 120.0
    """Seconds until a submission that is not acknowledged is given up; it is then in doubt."""

    deadline: float | None = None
    """Seconds until the run ends with what it has."""

    lock_patience: float = 30.0
    """Seconds to wait for another run that uses the same folder."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no queue."""
        for name, least in (("batch", 1), ("in_flight", 1), ("retries", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}: at least {least}")
        for name in ("first_wait", "longest_wait", "submit_timeout", "lock_patience", "deadline"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigError(f"{name} is {value} seconds: it must not be negative")


@dataclass(frozen=True)
class Estimate:
    """What a run would ask and cost, before anything is sent."""

    circuits: int
    """Circuits in all."""

    answered: int
    """Of these, answered by earlier runs."""

    waiting: int
    """Of these, submitted by earlier runs and to be fetched."""

    submissions: int
    """Circuits to submit."""

    shots: int
    """Measurements to submit."""

    cost: float | None
    """Price of the submissions; None where no price was given."""

    def __str__(self) -> str:
        """Say it in one line."""
        cost = "no price was given" if self.cost is None else f"cost {self.cost:.2f}"
        return (
            f"{self.circuits} circuits: {self.answered} answered, {self.waiting} submitted before, "
            f"{self.submissions} to submit with {self.shots} shots in all; {cost}"
        )


@dataclass(frozen=True)
class Value:
    """What one circuit gave."""

    expectation: np.ndarray
    """<Z_i>, float64 `[n]`."""

    error: np.ndarray
    """Standard error of each, float64 `[n]`; 0 where exact."""

    path: str
    """What made it: the target, or `exact simulation`."""

    counts: Mapping[str, int]
    """Bit strings that were read; empty where exact."""

    resumed: bool = False
    """Whether an earlier run had submitted it."""

    reason: str = ""
    """Why it is not the target's, where it is not."""

    @property
    def shots(self) -> int:
        """Measurements that were answered; 0 where exact."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class QueueResult:
    """What a run gave."""

    values: tuple[Value | None, ...]
    """One for each circuit, in order; None where there is no answer."""

    submissions: int
    """Circuits that this run submitted."""

    @property
    def expectations(self) -> np.ndarray:
        """<Z_i>, float64 `[circuits, n]`; NaN where there is no answer."""
        width = next((len(v.expectation) for v in self.values if v is not None), 0)
        none = np.full(width, np.nan)
        rows = [none if v is None else v.expectation for v in self.values]
        return np.array(rows).reshape(len(rows), width)

    @property
    def paths(self) -> dict[str, int]:
        """How many values each path made."""
        names = ["no answer" if v is None else v.path for v in self.values]
        return {name: names.count(name) for name in dict.fromkeys(names)}


class UnfinishedError(QuantumError):
    """A run that ended before every circuit was answered; what it has is kept and in `result`."""

    def __init__(self, message: str, result: QueueResult) -> None:
        super().__init__(message)
        self.result = result
