"""Findings of one file, quantum-routed and classical-only side by side, through `medqua.serve`."""

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from medqua.core.errors import MedQuaError
from medqua.core.findings.result import Findings


@dataclass(frozen=True)
class Row:
    """One finding."""

    label: str
    """Name of the observation."""
    probability: float
    """Calibrated probability with the adapter as trained, in [0, 1]."""
    classical: float | None
    """The same with the quantum path taken away; None if the model has none."""


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


class Reader(Protocol):
    """Whatever gives findings: a bundle in this process, later a server."""

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


class BundleReader:
    """A bundle in this process, opened in the background: pictures need not wait for it."""

    def __init__(self, bundle: Path, device: str = "cpu") -> None:
        """Begin to open a bundle.

        Args:
            bundle: Folder written by training.
            device: Where the model runs.
        """
        self._folder, self._device = bundle, device
        self._lock = threading.Lock()
        self._state = "The model is being opened."
        self._opened = threading.Thread(target=self._open, name="bundle", daemon=True)
        self._opened.start()

    @property
    def state(self) -> str:
        """Empty when ready, else a sentence why it is not."""
        return self._state

    def wait(self) -> None:
        """Return once the bundle is open or has failed."""
        self._opened.join()

    def read(self, file: str, content: bytes) -> Reading:
        """Read one file, waiting for the bundle; files are read one after another."""
        self._opened.join()
        if self._state:
            return Reading((), self._state, (), {}, 0.0)
        from medqua.core.adapter import classical_only
        from medqua.serve.pipeline import predict_files

        with self._lock:
            (result,) = predict_files(self._bundle, [(file, content)], decoder=self._decoder)
            if result.findings is None or result.refusal is not None:
                reason = result.refusal.reason if result.refusal else "no findings"
                return Reading((), reason, result.notes, self._provenance, result.seconds)
            other = None
            if self._quantum:
                with classical_only(self._bundle.classifier):
                    (other,) = predict_files(self._bundle, [(file, content)], decoder=self._decoder)
        rows = tuple(
            Row(
                finding.label,
                finding.probability,
                other.findings[finding.label].probability if other and other.findings else None,
            )
            for finding in result.findings
        )
        seconds = result.seconds + (other.seconds if other else 0)
        return Reading(
            rows, "", result.notes, self._provenance, seconds, result.findings, self._record
        )

    def close(self) -> None:
        """End the decoding process."""
        self._opened.join()
        if not self._state:
            self._decoder.close()

    def _open(self) -> None:
        import warnings

        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        try:
            from medqua.core.model.bundle import Bundle
            from medqua.core.vision.image import Decoder
            from medqua.serve.pipeline import Provenance

            self._bundle = Bundle.open(self._folder, device=self._device)
            told = Provenance.of(self._bundle, self._folder)
            self._decoder = Decoder()
        except MedQuaError as error:
            self._state = f"The model could not be opened: {error}"
            return
        self._quantum, self._record = bool(told.engines), asdict(told)
        self._provenance = {
            "Bundle": told.bundle[:12],
            "Backbone": Path(told.backbone).name,
            "Image profile": told.profile,
            "Quantum engine": ", ".join(told.engines) or "none",
            "Calibrated": "yes" if told.calibrated else "no",
            "Intended use": told.intended_use,
        }
        self._state = ""
