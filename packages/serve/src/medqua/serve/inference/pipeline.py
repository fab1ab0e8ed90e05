"""The one inference path: files to findings, whichever door they came in by.

Each file stands for itself: it ends in findings or in a refusal, and none can spoil another's
result. Files are decoded in a process that can be killed, whatever their kind.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medqua.core.errors import BundleError, ConfigError, ImageError
from medqua.core.findings.domain import UNJUDGED, is_foreign
from medqua.core.findings.result import Findings
from medqua.core.model.manifest import MANIFEST
from medqua.core.sealed import sha256
from medqua.core.vision.image import Decoded, Decoder, ImageSpec
from medqua.core.vision.limits import read_bytes
from medqua.core.vision.scope import unstated
from medqua.serve.inference.results import Refusal, Served
from medqua.serve.inference.session import ServingSession
from medqua.serve.objects.heads import refuse_own

if TYPE_CHECKING:  # torch, transformers and PEFT, which an export does without
    from medqua.core.model.bundle import Bundle

    Model = Bundle | ServingSession
    """What names findings: a bundle run by torch, or an export of one."""

__all__ = ["Provenance", "Refusal", "Result", "Source", "predict_files"]

Source = str | Path | tuple[str, bytes]
"""A path, or the name and the content of a file that came over a wire."""


@dataclass(frozen=True)
class Provenance:
    """What produced a result."""

    bundle: str
    """SHA-256 of `bundle.json`, which holds that of every other file; hexadecimal."""

    backbone: str
    """Name of the backbone, with its revision if it has one."""

    profile: str
    """Profile of the image specification."""

    engines: tuple[str, ...]
    """Engines of the adapter's quantum bottlenecks as configured (`auto`: the cheapest for each
    batch), of an export the paths of `medqua.serve.inference.quantum`; empty without an adapter."""

    calibrated: bool
    """Whether any temperature differs from 1."""

    version: str
    """Version of medqua-core."""

    intended_use: str
    """The bundle's statement."""

    domain: str
    """What the model was trained on: `drawn phantoms`, `radiographs`, or `not stated`."""

    @classmethod
    def of(cls, bundle: "Bundle", directory: Path) -> "Provenance":
        """Describe an opened bundle and the folder it was opened from."""
        from medqua.core.quantum.bottleneck import VariationalBottleneck

        modules = bundle.classifier.modules()
        engines = {m.engine for m in modules if isinstance(m, VariationalBottleneck)}
        revision = bundle.backbone.revision
        temperatures = bundle.calibration.temperatures if bundle.calibration else ()
        return cls(
            bundle=sha256(directory / MANIFEST),
            backbone=bundle.backbone.source + (f"@{revision}" if revision else ""),
            profile=bundle.image.profile,
            engines=tuple(sorted(engines)),
            calibrated=any(t != 1 for t in temperatures),
            version=version("medqua-core"),
            intended_use=bundle.intended_use,
            domain=bundle.domain,
        )

    @classmethod
    def of_export(cls, session: ServingSession) -> "Provenance":
        """Describe an opened export; `session.provenance()` tells more."""
        told = session.provenance()
        return cls(**{field.name: told[field.name] for field in fields(cls)})


@dataclass(frozen=True)
class Result:
    """What became of one file: exactly one of `findings` and `refusal` is there."""

    source: str
    """The file as the caller named it."""

    findings: Findings | None
    """Calibrated findings."""

    refusal: Refusal | None
    """Why there are none."""

    notes: tuple[str, ...]
    """What the header left open and was taken for granted."""

    seconds: float
    """Reading and decoding, and this file's share of its batch's forward pass."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "source": self.source,
            "findings": None if self.findings is None else self.findings.to_dict()["findings"],
            "refusal": None if self.refusal is None else vars(self.refusal),
            "quantum": self.findings.quantum.to_dict()
            if isinstance(self.findings, Served)
            else None,
            "notes": list(self.notes),
            "seconds": round(self.seconds, 4),
        }


def predict_files(
    model: "Model",
    sources: Iterable[Source],
    *,
    batch_size: int = 8,
    decoder: Decoder | None = None,
) -> Iterator[Result]:
    """Name the findings of files, one result a file, in order, as soon as their batch is done.

    Args:
        model: An opened bundle or export; all preprocessing is written in it.
        sources: Paths, or names with contents. Read lazily: a batch is in memory, not all.
        batch_size: Readable files in one forward pass.
        decoder: A decoder to share; by default one of its own, ended with the iteration.

    Yields:
        Findings, or the refusal of a file that cannot be read or is out of scope.

    Raises:
        ConfigError: If `batch_size` is less than 1.
        BundleError: If the model gives a score that is not a finite number.
    """
    if batch_size < 1:
        raise ConfigError(f"batch size is {batch_size}; give at least 1")
    decoder, own = (Decoder(), True) if decoder is None else (decoder, False)
    try:
        pending: list[_Read] = []
        for source in sources:
            pending.append(_read(source, model.image, decoder))
            if sum(read.decoded is not None for read in pending) == batch_size:
                yield from _infer(model, pending)
                pending = []
        yield from _infer(model, pending)
    finally:
        if own:
            decoder.close()


@dataclass(frozen=True)
class _Read:
    """A file before inference."""

    name: str
    decoded: Decoded | None
    refusal: Refusal | None
    seconds: float


def _read(source: Source, image: ImageSpec, decoder: Decoder) -> _Read:
    """Read one file; its refusal is a result, not an exception."""
    start = time.perf_counter()
    name, content = source if isinstance(source, tuple) else (str(source), source)
    decoded, refusal = None, None
    try:
        data = read_bytes(content, decoder.limits)
        refuse_own(data)
        decoded = decoder.read(data, image)
    except ImageError as error:
        refusal = Refusal(type(error).__name__, str(error))
    return _Read(name, decoded, refusal, time.perf_counter() - start)


def _infer(model: "Model", reads: list[_Read]) -> Iterator[Result]:
    """Run one forward pass for the readable ones of `reads`."""
    start = time.perf_counter()
    images = [read.decoded.image for read in reads if read.decoded is not None]
    answers = iter(_answers(model, images))
    share = (time.perf_counter() - start) / max(1, len(images))
    for read in reads:
        if read.decoded is None:
            yield Result(read.name, None, read.refusal, (), read.seconds)
            continue
        answer, notes = next(answers), unstated(read.decoded.header)
        if isinstance(answer, Refusal):
            yield Result(read.name, None, answer, (), read.seconds + share)
        else:
            header = read.decoded.header
            if is_foreign(model.domain, phantom=header is not None and header.phantom):
                answer, notes = answer.unjudged(), (*notes, UNJUDGED)
            yield Result(read.name, answer, None, notes, read.seconds + share)


def _answers(model: "Model", images: list[np.ndarray]) -> Sequence[Findings | Refusal]:
    """Return one answer an image."""
    if isinstance(model, ServingSession):
        return model.findings(images)
    logits = model.logits(images, batch_size=max(1, len(images)))
    if not np.isfinite(logits).all():
        raise BundleError("the model's scores are not all finite numbers; train or export it again")
    return model.findings(logits)
