"""Export: a bundle to ONNX graphs with the circuits outside, and one with their tables inside.

What is in which graph and why tells `docs/export.md`. An export is written beside its place, held
against the torch model, sealed, and moved there: one that fails leaves nothing behind.
"""

import json
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from medqua.core.errors import BundleError, ConfigError
from medqua.core.findings.calibration import Calibration
from medqua.core.model.bundle import Bundle
from medqua.core.model.manifest import MANIFEST as BUNDLE_MANIFEST
from medqua.core.sealed import move_into_place, sha256
from medqua.serve.export import cut, parity, triton, validation
from medqua.serve.export.files import (
    EXTERNAL_ABOVE,
    OPSET,
    check_precision,
    write_graph,
)
from medqua.serve.inference.manifest import (
    MANIFEST,
    SCHEMA,
    SEAL,
    VALIDATION,
    WEIGHTS,
    ExportManifest,
    write_export,
)
from medqua.serve.inference.session import ServingSession, SessionOptions

SINGLE = "single.onnx"
"""Where the single-file graph lies, unless in a Triton model repository."""


@dataclass(frozen=True)
class ExportOptions:
    """What an export is to be.

    Raises:
        ConfigError: An unknown precision.
    """

    precision: str = "fp32"
    """`fp32`, `fp16` or `int8`: numbers of the backbone; adapters and head are float32."""
    triton: bool = False
    """Lay the single-file graph out as a Triton model repository."""
    validation: Path | None = None
    """Table of images to compare on (`medqua.serve.export.validation`); None makes some up."""
    image_root: Path | None = None
    """Folder that the table's paths start from; that of the table if None."""
    limit: int | None = None
    """Most images to compare on; all if None."""
    overwrite: bool = False
    """Replace an export that is there; nothing else is ever replaced."""
    external_above: int = EXTERNAL_ABOVE
    """Bytes of weights from which they lie in a file beside their graph."""

    def __post_init__(self) -> None:
        check_precision(self.precision)


def export_bundle(
    bundle_folder: str | Path,
    directory: str | Path,
    options: ExportOptions | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> ExportManifest:
    """Export a bundle: all of it, within its tolerance, or nothing.

    Args:
        bundle_folder: Folder written by training.
        directory: Folder to make.
        options: What the export is to be.
        tell: Told what is being done.

    Returns:
        What the export's `export.json` says, the parity report included.

    Raises:
        BundleError: The bundle does not open, `directory` exists, or the export fails parity.
        BackboneError: A backbone that export does not know.
        ConfigError: An adapter that cannot be served, or no single-file graph for Triton.
        DataError: The validation table cannot be used.
    """
    chosen, source, target = options or ExportOptions(), Path(bundle_folder), Path(directory)
    if target.exists() and not (chosen.overwrite and (target / MANIFEST).is_file()):
        if not target.is_dir() or any(target.iterdir()):
            raise BundleError(
                f"{target} exists: give another folder, or --overwrite if it is an export"
            )
        target.rmdir()
    bundle = Bundle.open(source)
    bundle.classifier.float()
    images = _images(bundle, chosen)
    tell(f"asking the torch model about {len(images)} images")
    reference = parity.answers_of_bundle(bundle, images, exact=True)
    itself = parity.answers_of_bundle(bundle, images, exact=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    scratch.mkdir()
    try:
        manifest = _write(bundle, source, scratch, chosen, tell)
        tell("asking the export")
        report = _report(bundle, scratch, manifest, images, reference, itself)
        manifest = replace(manifest, parity=report)
        write_export(scratch, manifest)
        move_into_place(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return manifest


def _images(bundle: Bundle, options: ExportOptions) -> validation.Validation:
    if options.validation is None:
        if options.image_root is not None:
            raise ConfigError("an image root without a table of images: give --validation too")
        side = 448
        return validation.made_up(bundle.image, side, options.limit or validation.SPECIMENS)
    return validation.from_table(
        options.validation, options.image_root, bundle.labels, options.limit
    )


def _write(
    bundle: Bundle,
    source: Path,
    root: Path,
    options: ExportOptions,
    tell: Callable[[str], None],
) -> ExportManifest:
    """Write the graphs and a first `export.json`, without the report."""
    model = cut.cut_model(bundle, options.precision)
    calibration = bundle.calibration or Calibration.identity(len(bundle.labels))
    absent = cut.why_no_single(bundle, model)
    if absent and options.triton:
        raise ConfigError(f"no single-file graph for Triton: {absent}")
    stages = []
    for name, traced in cut.traceables(bundle, model):
        tell(f"tracing {name}")
        write_graph(traced, root / name, options.precision, options.external_above)
        if name != "vision.onnx":
            stages.append(name)
    single = None
    if not absent:
        single = triton.GRAPH if options.triton else SINGLE
        tell(f"tracing {single}")
        (root / single).parent.mkdir(parents=True, exist_ok=True)
        traced = cut.single_traceable(bundle, model, calibration.temperatures)
        write_graph(traced, root / single, options.precision, options.external_above)
    if options.triton and bundle.image.size is not None:
        rows, columns = model.patches.grid(bundle.image.size, bundle.image.size)
        tokens = model.prompt + rows * columns // model.patches.merge**2
        adapters = len(model.adapters)
        most = 1 if options.precision == "int8" else triton.MAX_BATCH
        triton.write_repository(root, bundle.image.size, bundle.labels, adapters, tokens, most)
    save_file(model.weights, root / WEIGHTS)
    if bundle.validation is not None:
        (root / VALIDATION).write_text(json.dumps(bundle.validation.to_dict()))
    for path in root.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    revision = bundle.backbone.revision
    packages = ("medqua-serve", "medqua-core", "torch", "transformers", "onnx", "onnxruntime")
    manifest = ExportManifest(
        schema=SCHEMA,
        bundle=sha256(source / BUNDLE_MANIFEST),
        backbone=bundle.backbone.source + (f"@{revision}" if revision else ""),
        image=bundle.image.to_dict(),
        patches=model.patches.to_dict(),
        geometry=model.geometry.to_dict(),
        labels=list(bundle.labels),
        calibration=calibration.to_dict(),
        prompt=bundle.prompt,
        precision=options.precision,
        opset=OPSET,
        stages=stages,
        single=single,
        single_absent=absent,
        adapters=[vars(adapter) for adapter in model.adapters],
        parity={},
        training_data=dict(bundle.training_data),
        license=bundle.license,
        intended_use=bundle.intended_use,
        versions={name: version(name) for name in packages},
        files=SEAL.hash_files(root),
    )
    write_export(root, manifest)
    return manifest


def _report(
    bundle: Bundle,
    root: Path,
    manifest: ExportManifest,
    images: validation.Validation,
    reference: parity.Answers,
    itself: parity.Answers,
) -> dict[str, Any]:
    """Hold the export against the torch model, and its two layouts against each other.

    Raises:
        BundleError: It fails.
    """
    precision = manifest.precision
    report: dict[str, Any] = {
        "reference": f"torch {version('torch')}, float32, exact circuits and patch embedding",
        "images": images.name,
        "images_sha256": images.digest,
        "count": len(images),
        "tolerance": parity.tolerance_of(precision),
        "torch": parity.compare(itself, reference, bundle, images),
    }
    with ServingSession.open(root, SessionOptions(device="cpu")) as session:
        staged = parity.answers_of_session(session, images)
    report["stages"] = parity.compare(staged, reference, bundle, images)
    parity.judge(report["stages"], precision, f"the export on {images.name}")
    if manifest.single is None:
        return report | {"single": None, "single_against_stages": None}
    with ServingSession.open(root, SessionOptions(device="cpu", single=True)) as session:
        whole = parity.answers_of_session(session, images)
    for name, other in (("single", reference), ("single_against_stages", staged)):
        report[name] = parity.compare(whole, other, bundle, images)
        parity.judge(report[name], precision, f"the single-file graph on {images.name}")
    return report
