"""An export at work: images to findings by ONNX Runtime, with the circuits outside its graphs.

    with ServingSession.open("runs/mimic/export") as session:
        for answer in session.findings(["chest.dcm", data]):
            print(answer.quantum.paths if isinstance(answer, Served) else answer.reason)

    images -> vision.onnx -> stage_0.onnx -> circuit -> stage_1.onnx -> ... -> logits

No part of the torch model is loaded, and torch itself only for what numpy does not evaluate: see
`medqua.serve.inference.quantum`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from medqua.core.errors import BundleError, ConfigError, ImageError, ShapeError
from medqua.core.findings.domain import domain_of
from medqua.core.findings.result import Findings, name_findings
from medqua.core.sealed import sha256
from medqua.core.vision.image import Decoder, ImageSpec
from medqua.core.vision.patches import check, cut
from medqua.serve.inference.geometry import decoder_tables, vision_tables
from medqua.serve.inference.graph import Graph, Value, device_of, providers_of
from medqua.serve.inference.manifest import (
    MANIFEST,
    WEIGHTS,
    ExportManifest,
    Parts,
    read_export,
    read_validation,
)
from medqua.serve.inference.quantum import QuantumOptions, QuantumRuntime
from medqua.serve.inference.results import QuantumPath, QuantumRecord, Refusal, Served

Image = np.ndarray | bytes | str | Path
"""A grey image `[H, W]` float32 in [0, 1], or the content or path of a DICOM, JPG or PNG file."""

BATCH_TOLERANCE = 1e-5
"""How far a logit of a float32 export may differ between an image alone and in a batch. Matrix
products of other sizes add in another order; nothing else of a batch reaches an image."""


@dataclass(frozen=True)
class SessionOptions:
    """How an export is run.

    Raises:
        ConfigError: A value that does not exist.
    """

    device: str = "auto"
    """`cpu`, `cuda`, `cuda:N`, or `auto`: the GPU where ONNX Runtime really uses one."""
    threads: int = 0
    """Threads of one operator; 0 leaves it to ONNX Runtime."""
    batch_size: int = 8
    """Images in one run of the graphs."""
    single: bool = False
    """Run the single-file graph, whose circuits are tables inside it."""
    quantum: QuantumOptions = field(default_factory=QuantumOptions)
    """How the circuits between the graphs are evaluated."""

    def __post_init__(self) -> None:
        device_of(self.device)
        if self.threads < 0 or self.batch_size < 1:
            raise ConfigError(
                f"threads = {self.threads}, batch_size = {self.batch_size}: needed at least 0, 1"
            )
        if self.single and self.quantum != QuantumOptions():
            raise ConfigError(
                "quantum options for the single-file graph, which holds its circuits as tables: "
                "leave them out, or run the stages"
            )


@dataclass(frozen=True, eq=False)
class Scores:
    """What the graphs say of a batch."""

    logits: np.ndarray
    """`[B, L]` float32."""
    routes: np.ndarray
    """`[B, adapters, T]` bool: the tokens that went through a bottleneck."""
    paths: tuple[QuantumPath, ...]
    """What evaluated each adapter's circuits."""
    reason: str
    """Why another path was taken than was asked for; empty otherwise."""


class ServingSession:
    """An opened export; `open` makes one. Safe to share between threads.

    Attributes:
        manifest: What `export.json` says.
        image: How a file becomes an image.
        labels: Names of the findings, in order.
        providers: What ONNX Runtime runs the graphs on, as it says itself.
        batch_size: Images in one run of the graphs: 1 with 8 bits, where a batch would share one
            scale for its activations and a patient's result depend on another's image.
        digest: SHA-256 of `export.json`, which holds that of every other file.
    """

    def __init__(self, root: Path, manifest: ExportManifest, parts: Parts, options: SessionOptions):
        self.manifest, self.options = manifest, options
        self.image: ImageSpec = parts.image
        self.labels: tuple[str, ...] = tuple(manifest.labels)
        self.digest = sha256(root / MANIFEST)
        self.batch_size = 1 if manifest.precision == "int8" else options.batch_size
        self._parts = parts
        self._validation = read_validation(root, manifest)
        self._decoder = Decoder()
        if options.single and manifest.single is None:
            raise ConfigError(f"no single-file graph in this export: {manifest.single_absent}")
        paths = [manifest.single] if options.single else ["vision.onnx", *manifest.stages]
        self._graphs = [Graph(root / str(p), options.device, options.threads) for p in paths]
        self.providers = providers_of(self._graphs)
        self._quantum = None
        if not options.single:
            try:
                weights = load_file(root / WEIGHTS)
            except (SafetensorError, OSError) as error:
                raise BundleError(f"{WEIGHTS} cannot be read: export again") from error
            self._quantum = QuantumRuntime(parts.adapters, weights, options.quantum)

    @classmethod
    def open(cls, directory: str | Path, options: SessionOptions | None = None) -> "ServingSession":
        """Verify an export, then load its graphs.

        Args:
            directory: Folder written by `serve:export`.
            options: How to run it.

        Raises:
            BundleError: A file is missing, altered or unlisted, or a graph cannot be loaded.
            ConfigError: Options that contradict each other, or a device that is not there.
            QuantumError: The quantum target is absent or lacks a capability.
        """
        root = Path(directory)
        manifest, parts = read_export(root)
        return cls(root, manifest, parts, options or SessionOptions())

    def findings(self, images: Sequence[Image]) -> list[Served | Refusal]:
        """Name the findings of images; one answer each, in order.

        An image that cannot be used is refused and changes no other answer.

        Raises:
            QuantumError: The quantum target was lost and `on_loss` is `fail`.
            BundleError: The model gives a score that is not a finite number.
        """
        answers: list[Served | Refusal | None] = [None] * len(images)
        waiting: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
        for place, image in enumerate(images):
            try:
                grey = self._read(image)
            except (ImageError, ShapeError) as error:
                answers[place] = Refusal(type(error).__name__, str(error))
                continue
            group = waiting.setdefault(grey.shape, [])
            group.append((place, grey))
            if len(group) == self.batch_size:
                self._answer(waiting.pop(grey.shape), answers)
        for group in waiting.values():
            self._answer(group, answers)
        return [answer for answer in answers if answer is not None]

    def read(self, images: Sequence[np.ndarray]) -> list[Findings]:
        """Name the findings of images of one size, `[H, W]` float32 in [0, 1].

        Raises:
            ShapeError: Images that `findings` would refuse.
            QuantumError, BundleError: As in `findings`.
        """
        named: list[Findings] = []
        for start in range(0, len(images), self.batch_size):
            named += self._named(list(images[start : start + self.batch_size]))
        return named

    def scores(self, images: Sequence[np.ndarray]) -> Scores:
        """Run the graphs once.

        Args:
            images: Grey images of one size `[H, W]`, float32 in [0, 1].

        Raises:
            ShapeError: No image, another dtype or range, sizes that differ or do not fit.
            QuantumError: As in `findings`.
        """
        for image in images:
            self._check(image)
        if not images or len({image.shape for image in images}) > 1:
            raise ShapeError(f"{len(images)} images: needed at least one, all of one size")
        batch = np.stack(images)
        return self._by_single(batch) if self.options.single else self._by_stages(batch)

    def provenance(self) -> dict[str, Any]:
        """Return what produced results, as plain JSON values."""
        quantum, paths = self.options.quantum, {"graph"} if self.options.single else set()
        if self._quantum is not None:
            paths = set(self._quantum.paths)
        return {
            "export": self.digest,
            "bundle": self.manifest.bundle,
            "backbone": self.manifest.backbone,
            "profile": self.image.profile,
            "engines": tuple(sorted(paths)) if self.manifest.adapters else (),
            "calibrated": any(t != 1 for t in self._parts.calibration.temperatures),
            "version": version("medqua-core"),
            "precision": self.manifest.precision,
            "providers": list(self.providers),
            "graph": "single" if self.options.single else "stages",
            "quantum_target": quantum.target,
            "shots": quantum.shots,
            "seed": quantum.seed,
            "intended_use": self.manifest.intended_use,
            "domain": self.domain,
        }

    @property
    def domain(self) -> str:
        """What the model was trained on, as `medqua.core.findings.domain` says it."""
        return domain_of(self.manifest.training_data)

    def close(self) -> None:
        """End the decoding process."""
        self._decoder.close()

    def __enter__(self) -> "ServingSession":  # noqa: PYI034  # beartype 0.22 refuses Self here
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _read(self, image: Image) -> np.ndarray:
        grey = image
        if not isinstance(image, np.ndarray):
            grey = self._decoder.read(image, self.image).image
        assert isinstance(grey, np.ndarray)
        self._check(grey)
        return grey

    def _check(self, image: np.ndarray) -> None:
        check(image)
        self._parts.patches.grid(*image.shape)
        size = self.image.size
        if size is not None and image.shape != (size, size):
            raise ShapeError(
                f"an image of {image.shape[0]}x{image.shape[1]} pixels: this model reads {size}x"
                f"{size}; give the file itself, or read it with the export's ImageSpec"
            )

    def _answer(
        self, group: Sequence[tuple[int, np.ndarray]], answers: list[Served | Refusal | None]
    ) -> None:
        for (place, _), served in zip(group, self._named([g for _, g in group]), strict=True):
            answers[place] = served

    def _named(self, images: Sequence[np.ndarray]) -> list[Served]:
        scores = self.scores(images)
        if not np.isfinite(scores.logits).all():
            raise BundleError("the model's scores are not all finite numbers; export it again")
        quantum = self.options.quantum
        served = []
        named = name_findings(scores.logits, self.labels, self._parts.calibration, self._validation)
        for findings, routes in zip(named, scores.routes, strict=True):
            record = QuantumRecord(
                scores.paths,
                quantum.target,
                quantum.shots,
                quantum.seed,
                scores.reason,
                tuple(int(count) for count in routes.sum(-1)),
            )
            served.append(Served(findings.findings, record))
        return served

    def _by_single(self, batch: np.ndarray) -> Scores:
        (graph,) = self._graphs
        out = {name: value.numpy() for name, value in graph.run({"image": batch}).items()}
        none = np.zeros((len(batch), 0, 0), np.bool_)
        routes = out.get("routes", none)
        paths: tuple[QuantumPath, ...] = ("graph",) * routes.shape[1]
        return Scores(out["logits"], routes, paths, "")

    def _by_stages(self, batch: np.ndarray) -> Scores:
        patches, geometry = self._parts.patches, self._parts.geometry
        grid = patches.grid(*batch.shape[1:])
        vision, *stages = self._graphs
        seen = vision_tables(*grid, geometry).feeds()
        out = vision.run({"pixel_values": cut(batch, patches), **seen})
        tables = decoder_tables(len(batch), *grid, geometry)
        feeds: dict[str, Value] = {**tables.feeds(), "visual": out["visual"]}
        routes = np.zeros((len(batch), len(stages) - 1, tables.mask.shape[1]), np.bool_)
        paths: list[QuantumPath] = []
        reason = ""
        for number, stage in enumerate(stages):
            out = stage.run(feeds)
            if number == len(stages) - 1:
                break
            assert self._quantum is not None
            index, angles = out["index"].numpy(), out["angles"].numpy()
            done = self._quantum.evaluate(number, angles, out["depth"].numpy())
            paths.append(done.path)
            reason = reason or done.reason
            if done.z is None:
                index, done_z = index[:0], angles[:0]
            else:
                done_z = done.z
            taken = np.zeros(tables.mask.size, np.bool_)
            taken[index] = True
            routes[:, number] = taken.reshape(tables.mask.shape)
            passed = {f"{name}_in": out[name] for name in ("h", "gate", "shadow")}
            feeds = {**tables.feeds(), **passed, "index_in": index, "z": done_z}
        return Scores(out["logits"].numpy(), routes, tuple(paths), reason)
