"""What becomes of one image: findings with what made them, or a refusal."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from medqua.core.errors import ConfigError
from medqua.core.findings.result import Findings

OnLoss = Literal["exact", "classical", "fail"]
"""What is done when a quantum target is lost."""

QuantumPath = Literal["exact", "sampled", "target", "control", "classical", "graph"]
"""What made the expectation values of a layer; `graph` is the table inside a single-file graph, the
others are told by `medqua.serve.inference.quantum`."""


@dataclass(frozen=True)
class QuantumRecord:
    """Which path made a result."""

    paths: tuple[QuantumPath, ...]
    """One for each adapted layer; empty for a model without adapters."""
    target: str | None
    """CUDA-Q target that was asked for."""
    shots: int | None
    """Measurements that were asked for."""
    seed: int | None
    """Their seed."""
    reason: str
    """Why another path was taken than was asked for; empty otherwise."""
    routed: tuple[int, ...]
    """Tokens of this image that each layer sent through the bottleneck."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**vars(self), "paths": list(self.paths), "routed": list(self.routed)}


@dataclass(frozen=True)
class Served(Findings):
    """Findings, and the path that made them."""

    quantum: QuantumRecord
    """What evaluated the circuits."""


@dataclass(frozen=True)
class Refusal:
    """Why a file has no findings."""

    error: str
    """Class of the error, such as `UnreadableImageError` or `OutOfScopeError`."""

    reason: str
    """What was got and what is needed; no patient data."""


def on_loss_of(name: str) -> OnLoss:
    """Return what a name says is done when a quantum target is lost.

    Raises:
        ConfigError: Another name.
    """
    known: tuple[OnLoss, ...] = get_args(OnLoss)
    for choice in known:
        if choice == name:
            return choice
    raise ConfigError(f"on_loss is {name!r}: choose one of {', '.join(known)}")
