"""What reads images, whichever way the model is kept: an opened bundle, or an export of one."""

import json
import sys
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
    explains: bool = False
    """Whether it tells how its answers came about."""


@runtime_checkable
class Explains(Protocol):
    """An engine that tells how its answers came about."""

    def explain(self, image: np.ndarray) -> dict[str, Any]:
        """Explain the findings of one image `[H, W]` float32 in [0, 1]; plain JSON values."""
        ...

    def occlude(self, image: np.ndarray, inside: tuple[int, int, int, int]) -> dict[str, Any]:
        """Tell what covering each region does; `inside` is left, top, width and height."""
        ...


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

    def explain(self, image: np.ndarray) -> dict[str, Any]:
        """Name the findings of one image as `read` does, and tell how they came about.

        Returns:
            `findings`; `classical`, the same without the quantum path, or None without one;
            `routes` as of `medqua.serve.inference.maps`, or None where they are not known;
            `validation`, what the bundle knows of its findings, or None; `image`, how a file
            becomes the model's.

        Raises:
            BundleError: The model gives a score that is not a finite number.
        """
        from medqua.serve.inference.explain import explain_image
        from medqua.serve.inference.maps import routes_to_dict

        findings, routes, classical = explain_image(self._bundle, image)
        validation = self._bundle.validation
        return {
            "findings": findings.to_dict()["findings"],
            "classical": classical and classical.to_dict()["findings"],
            "routes": routes and routes_to_dict(routes),
            "validation": validation and validation.to_dict(),
            "image": self._bundle.image.to_dict(),
        }

    def occlude(self, image: np.ndarray, inside: tuple[int, int, int, int]) -> dict[str, Any]:
        """Tell what covering each region of an image with grey does to each finding.

        Returns:
            As of `medqua.serve.inference.maps.occlusion_to_dict`.
        """
        from medqua.serve.inference.explain import occlusion
        from medqua.serve.inference.maps import occlusion_to_dict

        return occlusion_to_dict(occlusion(self._bundle, image, inside=inside))


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
        spare_bitsandbytes(directory)
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


def spare_bitsandbytes(directory: Path) -> None:
    """Keep PEFT from importing bitsandbytes, which takes seconds, for a bundle without use for it.

    Only in a process that has not loaded torch yet: such a one was started for this bundle. To
    Python bitsandbytes is not installed there from then on.
    """
    if "torch" not in sys.modules and needs_no_bitsandbytes(directory):
        sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]  # not installed


def needs_no_bitsandbytes(directory: Path) -> bool:
    """Tell whether a bundle brings a backbone of its own that is not in 4 bits."""
    try:
        config = json.loads((directory / "backbone" / "config.json").read_bytes())
    except (OSError, ValueError):  # a backbone from elsewhere, an export, or a damaged bundle
        return False
    return isinstance(config, dict) and not config.get("quantization_config")
