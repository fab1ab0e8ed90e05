"""Findings of one file, quantum-routed and classical-only side by side, through `medqua.serve`."""

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from medqua.core.errors import MedQuaError
from medqua.core.findings.domain import UNJUDGED
from medqua.core.findings.result import Findings
from medqua.core.findings.validation import Call, LabelValidation
from medqua.core.vision.image import ImageSpec

if TYPE_CHECKING:  # torch and transformers are imported with the model, in the background
    from medqua.serve.inference.explain import Occlusion, Routes

logger = logging.getLogger("medqua.ui")


@dataclass(frozen=True)
class Row:
    """One finding."""

    label: str
    """Name of the observation."""
    probability: float
    """Calibrated probability with the adapter as trained, in [0, 1]."""
    classical: float | None
    """The same with the quantum path taken away; None if the model has none."""
    call: Call = "not judged"
    """What that is worth, as the model's own reading says."""
    validated: LabelValidation | None = None
    """What validation showed of this finding; None where the model's bundle does not tell."""


@dataclass(frozen=True)
class Reading:
    """What a model says of one file."""

    rows: tuple[Row, ...]
    """One a label, in the model's order; empty where refused."""
    refusal: str
    """Why there are none; empty where there are some."""
    notes: tuple[str, ...]
    """What the header left open."""
    provenance: dict[str, str]
    """What produced it, by name, for people."""
    seconds: float
    """Reading, decoding and both forward passes."""
    findings: Findings | None = None
    """The findings with codes and scores, for reports; None where refused."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """What produced it, as plain JSON values, for reports."""
    routes: "Routes | None" = None
    """What the adapters did; None where refused, or where the model does not tell."""
    image: ImageSpec | None = None
    """How the file became the model's image, with `routes`."""
    service: bool = False
    """Whether a service gave it, which tells less than a bundle in this process."""

    @property
    def foreign(self) -> bool:
        """Whether the image is not of what the model was trained on, so that nothing is judged."""
        return UNJUDGED in self.notes


@runtime_checkable
class Reader(Protocol):
    """Whatever gives findings: a bundle in this process, or a service."""

    @property
    def state(self) -> str:
        """Empty when ready, else a sentence why it is not."""
        ...

    def read(self, file: str, content: bytes) -> Reading:
        """Read one file.

        Args:
            file: Its name, for nothing but the result.
            content: The whole file.
        """
        ...


@runtime_checkable
class Occluder(Protocol):
    """A reader that can also cover one region after another: many forward passes."""

    def occlude(self, content: bytes, size: tuple[int, int]) -> "Occlusion | None":
        """Return how covering each region changes the findings; None if the file is refused.

        Args:
            content: The whole file.
            size: Its rows and columns.
        """
        ...


class BundleReader:
    """A bundle in this process, loaded in the background: pictures need not wait for it.

    Args:
        bundle: Folder written by training.
        device: Where the model runs.
    """

    def __init__(self, bundle: Path, device: str = "cpu") -> None:
        self._folder, self._device = bundle, device
        self._lock = threading.Lock()
        self._state = "The model is being loaded."
        self._begun = self._stopped = False
        self._done = threading.Event()

    def start(self) -> None:
        """Begin to load it, with the libraries that it needs."""
        if not self._begun:
            self._begun = True
            threading.Thread(target=self._load, name="bundle", daemon=True).start()

    @property
    def state(self) -> str:
        """Empty when ready, else a sentence why it is not."""
        return self._state

    def wait(self) -> None:
        """Return once the bundle is open or has failed; it must have been started."""
        self._done.wait()

    def read(self, file: str, content: bytes) -> Reading:
        """Read one file, waiting for the bundle; files are read one after another."""
        self._done.wait()
        if self._state:
            return Reading((), self._state, (), {}, 0.0)
        from medqua.serve.inference.explain import explain_file

        with self._lock:
            start = time.perf_counter()
            told = explain_file(self._bundle, (file, content), self._decoder)
        result = told.result
        if result.findings is None or result.refusal is not None:
            reason = result.refusal.reason if result.refusal else "no findings"
            return Reading((), reason, result.notes, self._provenance, result.seconds)
        other = told.classical if self._quantum else None
        measured = self._bundle.validation
        known = None if UNJUDGED in result.notes else measured
        validated = known.labels if known else (None,) * len(result.findings)
        rows = tuple(
            Row(
                finding.label,
                finding.probability,
                None if other is None else other[finding.label].probability,
                finding.call,
                label,
            )
            for finding, label in zip(result.findings, validated, strict=True)
        )
        return Reading(
            rows,
            "",
            result.notes,
            self._provenance,
            time.perf_counter() - start,
            result.findings,
            self._record,
            told.routes,
            self._bundle.image,
        )

    def occlude(self, content: bytes, size: tuple[int, int]) -> "Occlusion | None":
        """Cover one region after another; waits for the bundle, and other files wait for this."""
        self._done.wait()
        if self._state:
            return None
        from medqua.core.errors import ImageError
        from medqua.core.vision.image import placement
        from medqua.serve.inference.explain import occlusion

        try:
            image = self._decoder.read(content, self._bundle.image).image
        except ImageError:
            return None
        with self._lock:
            at = placement(*size, self._bundle.image)
            inside = (at.left, at.top, at.width, at.height)
            return occlusion(self._bundle, image, inside=inside)

    def stop(self) -> None:
        """Let nobody wait for a bundle that is not open yet."""
        self._begun = True
        if not self._done.is_set():
            self._stopped, self._state = True, "The viewer is being ended."
            self._done.set()

    def close(self) -> None:
        """End the decoding process."""
        self._done.wait()
        if not self._state:
            self._decoder.close()

    def _load(self) -> None:
        """Open the bundle; a failure is told on the console and to whoever asks for findings."""
        try:
            self._open()
        except MedQuaError as error:
            self._fail(str(error), error)
        except Exception as error:  # a defect, or a broken installation
            self._fail(f"{type(error).__name__}; the server's console tells more.", error)
        finally:
            self._done.set()

    def _fail(self, why: str, error: Exception) -> None:
        if self._stopped:
            return
        self._state = f"The model could not be loaded: {why}"
        logger.error(self._state, exc_info=None if isinstance(error, MedQuaError) else error)

    def _open(self) -> None:
        import warnings

        from medqua.serve.inference.engine import spare_bitsandbytes

        spare_bitsandbytes(self._folder)
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        from medqua.core.model.bundle import Bundle
        from medqua.core.vision.image import Decoder
        from medqua.serve.inference.pipeline import Provenance

        self._bundle = Bundle.open(self._folder, device=self._device)
        told = Provenance.of(self._bundle, self._folder)
        self._decoder = Decoder()
        self._quantum, self._record = bool(told.engines), asdict(told)
        self._provenance = {
            "Bundle": told.bundle[:12],
            "Backbone": Path(told.backbone).name,
            "Image profile": told.profile,
            "Quantum engine": ", ".join(told.engines) or "none",
            "Calibrated": "yes" if told.calibrated else "no",
            "Trained on": told.domain,
            "Intended use": told.intended_use,
        }
        if not self._stopped:
            self._state = ""
