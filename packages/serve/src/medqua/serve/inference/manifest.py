"""`export.json`: what an exported model is, file by file, and how near it is to the torch model.

    export.json               everything below, bound by SHA-256 to every file and to itself
    vision.onnx               patches to visual tokens
    stage_0.onnx ...          the decoder, cut at its adapters; weights above 2 GB in `*.onnx.data`
    bottlenecks.safetensors   parameters of the circuits between the stages
    validation.json           what validation showed of each finding, if the bundle has it
    single.onnx               image to probabilities in one graph, or with `--triton`
    triton/medqua/            the same graph as a Triton model repository

How it is checked tells `medqua.core.sealed`.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from medqua.core.errors import BundleError, ConfigError
from medqua.core.findings.calibration import Calibration
from medqua.core.findings.validation import Validation
from medqua.core.sealed import Seal
from medqua.core.vision.image import ImageSpec
from medqua.core.vision.patches import PatchSpec
from medqua.serve.inference.geometry import Geometry

MANIFEST = "export.json"
"""Name of the file at the top of an export."""

WEIGHTS = "bottlenecks.safetensors"
"""Name of the file with the circuits' parameters."""

VALIDATION = "validation.json"
"""Name of the file with the bundle's validation figures, by which findings are called."""

SCHEMA = 1
"""Version of the layout that this release writes, and the newest that it reads."""

SUFFIXES = frozenset({".onnx", ".data", ".safetensors", ".pbtxt", ".txt", ".json"})
"""Kinds of file that an export may hold; no code."""

SEAL = Seal(MANIFEST, "export", "serve:export", SUFFIXES, SCHEMA)

KINDS = ("circuit", "mlp", "fourier_features")
"""What maps angles to values: the circuit, or a classical control in its place."""


@dataclass(frozen=True)
class AdapterSpec:
    """The bottleneck between two stages."""

    layer: str
    """Qualified name of the decoder layer before it."""
    kind: str
    """One of `KINDS`."""
    n_qubits: int
    """Angles, and expectation values, of a token."""
    max_depth: int
    """Circuit layers at most."""
    entangler: str
    """Which CNOTs close a circuit layer."""
    noise: dict[str, float] | None
    """Noise that it was trained with, by the names of `NoiseModel.from_dict`."""

    def __post_init__(self) -> None:
        sound = self.kind in KINDS and type(self.n_qubits) is int and type(self.max_depth) is int
        if not sound or self.n_qubits < 2 or self.max_depth < 1:
            raise ConfigError(f"an adapter of {MANIFEST} is {asdict(self)}: export again")
        if self.noise is not None:
            from medqua.core.quantum.noise import NoiseModel  # torch

            NoiseModel.from_dict(self.noise)


@dataclass(frozen=True)
class ExportManifest:
    """The content of `export.json`, less its own digest."""

    schema: int
    """Version of the layout."""
    bundle: str
    """SHA-256 of the `bundle.json` that it was made from."""
    backbone: str
    """Name of the backbone, with its revision if it has one."""
    image: dict[str, Any]
    """`ImageSpec.to_dict()`: how a file becomes an image."""
    patches: dict[str, Any]
    """`PatchSpec.to_dict()`: how an image is cut."""
    geometry: dict[str, Any]
    """`Geometry.to_dict()`: what the index inputs follow from, beside the image's size."""
    labels: list[str]
    """Names of the findings, in the order of the logits."""
    calibration: dict[str, Any]
    """`Calibration.to_dict()`."""
    prompt: str
    """Instruction given with every image; its tokens' embeddings are in the first stage."""
    precision: str
    """`fp32`, `fp16` or `int8`: numbers of the backbone. Adapters and head are float32."""
    opset: int
    """Version of the ONNX operators."""
    stages: list[str]
    """Paths of the decoder's graphs, in order."""
    single: str | None
    """Path of the single-file graph, if there is one."""
    single_absent: str
    """Why there is none; empty where there is one."""
    adapters: list[dict[str, Any]]
    """An `AdapterSpec` for each place between two stages."""
    parity: dict[str, Any]
    """How near it is to the torch model: see `medqua.serve.export.parity`."""
    training_data: dict[str, str]
    """Name and fingerprint of the data that the weights were trained on."""
    license: str
    """Terms under which the weights may be used."""
    intended_use: str
    """What the model is for, and what it is not for."""
    versions: dict[str, str]
    """Versions of the packages that wrote the export."""
    files: dict[str, str]
    """Relative POSIX path -> SHA-256, of every file but `export.json`."""


@dataclass(frozen=True)
class Parts:
    """What a manifest tells, in the types that use it."""

    image: ImageSpec
    """How a file becomes an image."""
    patches: PatchSpec
    """How an image is cut."""
    geometry: Geometry
    """What the index inputs follow from."""
    calibration: Calibration
    """Temperatures of the labels."""
    adapters: tuple[AdapterSpec, ...]
    """The bottlenecks, in order."""


def is_export(directory: str | os.PathLike[str]) -> bool:
    """Tell whether a folder is an export rather than a bundle."""
    return Path(directory, MANIFEST).is_file()


def write_export(directory: Path, manifest: ExportManifest) -> None:
    """Write `export.json`, with the digest of its content in it."""
    SEAL.write(directory, asdict(manifest))


def read_export(directory: Path) -> tuple[ExportManifest, Parts]:
    """Read `export.json` and check it against itself and against the files beside it.

    Raises:
        BundleError: It or a file is absent, altered, unlisted, of a newer schema or a forbidden
            kind; or what it says does not fit together.
    """
    kinds: dict[str, type | None] = dict.fromkeys(field.name for field in fields(ExportManifest))
    kinds |= dict.fromkeys(("image", "patches", "geometry", "calibration", "parity"), dict)
    kinds |= dict.fromkeys(("labels", "stages", "adapters"), list) | {"opset": int, "prompt": str}
    manifest = ExportManifest(**SEAL.read(directory, kinds))
    SEAL.check_files(directory, manifest.files)
    needed = ["vision.onnx", WEIGHTS, *manifest.stages]
    needed += [] if manifest.single is None else [manifest.single]
    for path in needed:
        if path not in manifest.files:
            raise BundleError(f"{path} is not among the export's files: export again")
    parts = _parts(manifest)
    if len(manifest.stages) != len(parts.adapters) + 1:
        raise BundleError(
            f"{len(manifest.stages)} stages and {len(parts.adapters)} adapters in {MANIFEST}: one "
            "adapter stands between two stages; export again"
        )
    if len(parts.calibration.temperatures) != len(manifest.labels):
        raise BundleError(
            f"{len(parts.calibration.temperatures)} temperatures for {len(manifest.labels)} labels "
            f"in {MANIFEST}: export again"
        )
    return manifest, parts


def read_validation(directory: Path, manifest: ExportManifest) -> Validation | None:
    """Read the validation figures of an export whose files were checked; None if it has none.

    Raises:
        BundleError: They are none, or of other labels.
    """
    if VALIDATION not in manifest.files:
        return None
    try:
        validation = Validation.from_dict(json.loads((directory / VALIDATION).read_bytes()))
    except (ConfigError, ValueError, AttributeError, OSError) as error:
        raise BundleError(f"{VALIDATION} cannot be read: export again") from error
    if len(validation.labels) != len(manifest.labels):
        raise BundleError(
            f"{VALIDATION} has {len(validation.labels)} labels for {len(manifest.labels)}: export "
            "again"
        )
    return validation


def _parts(manifest: ExportManifest) -> Parts:
    try:
        patches: Mapping[str, Any] = manifest.patches
        return Parts(
            ImageSpec.from_dict(manifest.image),
            PatchSpec(**{**patches, "mean": tuple(patches["mean"]), "std": tuple(patches["std"])}),
            Geometry.from_dict(manifest.geometry),
            Calibration.from_dict(manifest.calibration),
            tuple(AdapterSpec(**adapter) for adapter in manifest.adapters),
        )
    except (ConfigError, TypeError, KeyError) as error:
        raise BundleError(f"{MANIFEST} does not fit together: {error}") from error
