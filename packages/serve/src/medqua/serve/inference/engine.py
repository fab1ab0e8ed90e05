"""What reads images, whichever way the model is kept: an opened bundle, or an export of one."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from medqua.core.errors import BundleError
from medqua.core.findings.result import Findings
from medqua.core.vision.image import ImageSpec


@runtime_checkable
class Engine(Protocol):
    """A model that reads images of one size."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the findings, in order."""
        ...

    @property
    def image(self) -> ImageSpec:
        """How a file becomes an image."""
        ...

    def read(self, images: Sequence[np.ndarray]) -> Sequence[Findings]:
        """Name the findings of images of one size, `[H, W]` float32 in [0, 1], one batch."""
        ...

    def provenance(self) -> Mapping[str, Any]:
        """Return what produces the results, as plain JSON values."""
        ...


@dataclass(frozen=True)
class Model:
    """What the service knows of the engine in its workers."""

    labels: tuple[str, ...]
    """Names of the findings, in order."""
    image: ImageSpec
    """How a file becomes an image."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What produces the results."""


class BundleEngine:
    """A bundle run by torch.

    Args:
        directory: Folder written by training.
        device: Where the model runs.

    Raises:
        BundleError: The bundle is incomplete or altered.
    """

    def __init__(self, directory: Path, device: str = "cpu") -> None:
        from medqua.core.model.bundle import Bundle
        from medqua.serve.inference.pipeline import Provenance

        self._bundle = Bundle.open(directory, device=device)
        self._provenance = asdict(Provenance.of(self._bundle, directory))

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the findings, in order."""
        return tuple(self._bundle.labels)

    @property
    def image(self) -> ImageSpec:
        """How a file becomes an image."""
        return self._bundle.image

    def read(self, images: Sequence[np.ndarray]) -> Sequence[Findings]:
        """Name the findings of images, one forward pass.

        Raises:
            BundleError: The model gives a score that is not a finite number.
        """
        logits = self._bundle.logits(images, batch_size=max(1, len(images)))
        if not np.isfinite(logits).all():
            raise BundleError("the model's scores are not all finite numbers; train it again")
        return self._bundle.findings(logits)

    def provenance(self) -> Mapping[str, Any]:
        """Return what produces the results, as plain JSON values."""
        return self._provenance


def open_engine(directory: Path, device: str = "cpu", threads: int = 1) -> Engine:
    """Open a bundle, or an export of one, by what the folder holds.

    Args:
        directory: Folder with `bundle.json` or `export.json`.
        device: Where the model runs.
        threads: Threads of one operator.

    Raises:
        BundleError: It is neither, or is incomplete or altered.
    """
    if (directory / "bundle.json").is_file():
        import torch

        torch.set_num_threads(threads)
        return BundleEngine(directory, device)
    if (directory / "export.json").is_file():
        from medqua.serve.inference.session import ServingSession, SessionOptions

        return ServingSession.open(directory, SessionOptions(device, threads))
    raise BundleError(
        f"no bundle.json or export.json in {directory}: give a folder written by training or by "
        "serve:export"
    )
