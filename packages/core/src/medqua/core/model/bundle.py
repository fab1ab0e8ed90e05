"""The bundle: one directory that carries a model from training to use.

    bundle.json          what it is: `medqua.core.model.manifest`
    head.safetensors     the classification head
    adapter/             PEFT's files, if there is an adapter
    processor/           tokenizer, image constants, chat template
    backbone/            the backbone, unless it is a hub model at a fixed commit
    validation.json      what validation showed of each finding, if it was measured
    README.md            the model card, if its maker wrote one

Serving opens a bundle with no options of preprocessing: all that decides a prediction is in it.
"""

import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

import medqua.core.adapter  # noqa: F401 registers QUASAR with PEFT, which `open` needs
from medqua.core.errors import BackboneError, BundleError, ConfigError
from medqua.core.findings.calibration import Calibration
from medqua.core.findings.domain import domain_of
from medqua.core.findings.result import Findings, name_findings
from medqua.core.findings.validation import Validation
from medqua.core.model.backbone import Backbone, quantization
from medqua.core.model.classifier import MedQuaClassifier, vision_language_model
from medqua.core.model.manifest import (
    MANIFEST,
    SCHEMA,
    Manifest,
    hash_files,
    read_manifest,
    write_manifest,
)
from medqua.core.model.parts import (
    open_backbone,
    read_parts,
    save_adapter,
    save_backbone,
)
from medqua.core.sealed import move_into_place
from medqua.core.vision.image import ImageSpec, read_image
from medqua.core.vision.processor import build_inputs

DEFAULT_PROMPT = "Name the findings in this frontal chest radiograph."
"""Instruction given with every image unless a recipe says otherwise."""

INTENDED_USE = "Research use only, not for diagnosis."
"""What every bundle is for, unless its maker says otherwise."""

_HEAD = "head.safetensors"
_CARD = "README.md"
_VALIDATION = "validation.json"
_ADAPTER_TYPES = ("QUASAR", "LORA")


@dataclass(frozen=True, eq=False)
class Bundle:
    """A trained model with everything that decides its predictions.

    Raises:
        BundleError: Labels or calibration do not fit the head, or a label stands twice.
    """

    classifier: MedQuaClassifier
    """Backbone, adapter and head."""
    backbone: Backbone
    """Where the classifier's backbone came from, and the processor of its inputs."""
    image: ImageSpec
    """How a file becomes an image."""
    labels: tuple[str, ...]
    """Names of the findings, in the order of the logits."""
    prompt: str = DEFAULT_PROMPT
    """Instruction given with every image."""
    image_first: bool = False
    """Whether the image stands before the prompt."""
    calibration: Calibration | None = None
    """Temperatures fitted on validation data; None leaves probabilities as they are."""
    training_data: Mapping[str, str] = field(default_factory=dict)
    """Name and fingerprint of the data trained on."""
    license: str = "Not stated: treat the weights as bound by the terms of the training data."
    """Terms under which the weights may be used."""
    intended_use: str = INTENDED_USE
    """What the model is for, and what it is not for."""
    card: str = ""
    """Model card, in Markdown; empty leaves it out."""
    validation: Validation | None = None
    """What validation showed of each finding: intervals and operating points rest on it."""

    def __post_init__(self) -> None:
        n_labels = self.classifier.head.out_features
        if len(self.labels) != n_labels or len(set(self.labels)) != n_labels:
            raise BundleError(
                f"{len(self.labels)} labels ({len(set(self.labels))} different) for a head of "
                f"{n_labels} outputs: needed one name for each"
            )
        if self.calibration is not None and len(self.calibration.temperatures) != n_labels:
            raise BundleError(
                f"{len(self.calibration.temperatures)} temperatures for {n_labels} labels: "
                "fit the calibration on this head's logits"
            )

        if self.validation is not None and len(self.validation.labels) != n_labels:
            raise BundleError(
                f"validation figures of {len(self.validation.labels)} labels for {n_labels}: "
                "measure them with this head"
            )

    @property
    def domain(self) -> str:
        """What the model was trained on, as `medqua.core.findings.domain` says it."""
        return domain_of(self.training_data)

    @torch.inference_mode()
    def logits(self, images: Sequence[np.ndarray], *, batch_size: int = 8) -> np.ndarray:
        """Score images that `read_image` made with this bundle's `image`, in eval mode.

        Args:
            images: Grey images `[H, W]` float32 in [0, 1].
            batch_size: Images in one forward pass.

        Returns:
            Logits `[len(images), n_labels]` float32.

        Raises:
            ShapeError: As in `build_inputs`.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size = {batch_size}: needed at least 1")
        device = self.classifier.head.weight.device
        self.classifier.eval()
        rows = []
        for start in range(0, len(images), batch_size):
            inputs = build_inputs(
                self.backbone.processor,
                images[start : start + batch_size],
                self.prompt,
                image_first=self.image_first,
            )
            scores = self.classifier(**{name: x.to(device) for name, x in inputs.items()})
            rows.append(scores.cpu().numpy())
        return np.concatenate(rows) if rows else np.empty((0, len(self.labels)), np.float32)

    def predict(
        self, sources: Sequence[str | Path | bytes], *, batch_size: int = 8
    ) -> list[Findings]:
        """Read image files and name their findings.

        Args:
            sources: Paths or contents of DICOM, JPG or PNG files.
            batch_size: Images in one forward pass, and in memory at a time.

        Returns:
            One `Findings` a file, in order.

        Raises:
            UnreadableImageError: A file cannot be decoded.
            OutOfScopeError: A file is no frontal chest radiograph.
        """
        results: list[Findings] = []
        for start in range(0, len(sources), max(batch_size, 1)):
            chunk = sources[start : start + max(batch_size, 1)]
            images = [read_image(source, self.image) for source in chunk]
            results += self.findings(self.logits(images, batch_size=batch_size))
        return results

    def findings(self, logits: np.ndarray) -> list[Findings]:
        """Turn logits `[N, n_labels]` into calibrated findings, one `Findings` a row."""
        calibration = self.calibration or Calibration.identity(len(self.labels))
        return name_findings(logits, self.labels, calibration, self.validation)

    def save(
        self,
        directory: str | Path,
        *,
        embed_backbone: bool | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write the bundle: all of it, or nothing.

        The files are written beside `directory` and moved there when they are complete.

        Args:
            directory: Folder to make.
            embed_backbone: Put the backbone's weights into the bundle; if None, unless it is a
                hub model at a known commit whose weights were not trained.
            overwrite: Replace a bundle that is there; nothing else is ever replaced.

        Returns:
            `directory`.

        Raises:
            BundleError: `directory` exists, or the backbone must be embedded and was not to be.
        """
        target = Path(directory)
        if target.exists() and not (overwrite and (target / MANIFEST).is_file()):
            if not target.is_dir() or any(target.iterdir()):
                raise BundleError(
                    f"{target} exists: give another folder, or overwrite=True if it is a bundle"
                )
            target.rmdir()
        embed = self._embeds(embed_backbone)
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.parent / f".{target.name}.{uuid.uuid4().hex}"
        scratch.mkdir()
        try:
            self._write(scratch, embed)
            move_into_place(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return target

    @classmethod
    def open(
        cls,
        directory: str | Path,
        *,
        device: str | torch.device = "cpu",
        cache_dir: Path | None = None,
        local_files_only: bool = False,
    ) -> "Bundle":
        """Verify a bundle, then load it.

        Args:
            directory: Folder written by `save`.
            device: Where the model shall run.
            cache_dir: Hub cache for a backbone that is not in the bundle.
            local_files_only: Use that cache alone, never the network.

        Returns:
            The bundle, in eval mode; its logits are those of the saved one, bit for bit.

        Raises:
            BundleError: As in `verify`, or a part does not fit the others.
            BackboneError: The backbone is on the hub and cannot be fetched.
        """
        root = Path(directory)
        manifest = cls.verify(root)
        calibration, image = read_parts(manifest)
        backbone = open_backbone(root, manifest, cache_dir, local_files_only)
        model: Any = backbone.model
        try:
            if manifest.adapter is not None:
                model = PeftModel.from_pretrained(model, str(root / "adapter"))
            classifier = MedQuaClassifier(
                model, len(manifest.labels), pooling=manifest.pooling, tune="head"
            )
            head = load_file(root / _HEAD)
            classifier.head.load_state_dict(head)
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            if isinstance(error, BackboneError):
                raise
            raise BundleError(
                f"the parts of the bundle do not fit each other, export again "
                f"({_first_line(error)})"
            ) from error
        classifier.eval().to(device)
        return cls(
            classifier=classifier,
            backbone=backbone,
            image=image,
            labels=tuple(manifest.labels),
            prompt=manifest.prompt,
            image_first=manifest.image_first,
            calibration=calibration,
            training_data=manifest.training_data,
            license=manifest.license,
            intended_use=manifest.intended_use,
            card=(root / _CARD).read_text("utf-8") if _CARD in manifest.files else "",
            validation=_read_validation(root) if _VALIDATION in manifest.files else None,
        )

    @staticmethod
    def verify(directory: str | Path) -> Manifest:
        """Check a bundle without loading a weight.

        Returns:
            What `bundle.json` says.

        Raises:
            BundleError: A file is missing, altered, unlisted or of a forbidden kind, or
                `bundle.json` is altered, of a newer schema, or has an unknown key or value.
        """
        root = Path(directory)
        manifest = read_manifest(root)
        read_parts(manifest)
        needed = [_HEAD]
        if manifest.adapter is not None:
            needed += ["adapter/adapter_config.json", "adapter/adapter_model.safetensors"]
        if "folder" in manifest.backbone:
            needed += ["backbone/config.json"]
        for path in needed:
            if path not in manifest.files:
                raise BundleError(f"{path} is not among the bundle's files: export again")
        rooms = {path.split("/")[0] for path in (*needed, "processor/", _CARD, _VALIDATION)}
        for path in manifest.files:
            if path.split("/")[0] not in rooms:
                raise BundleError(f"{path} belongs to no part of the bundle: export again")
        if manifest.adapter is not None:
            config = json.loads((root / "adapter" / "adapter_config.json").read_bytes())
            if config != manifest.adapter or config.get("peft_type") not in _ADAPTER_TYPES:
                raise BundleError(
                    f"adapter/adapter_config.json is not the adapter that {MANIFEST} describes, "
                    f"or none of {', '.join(_ADAPTER_TYPES)}: export again"
                )
        return manifest

    def _embeds(self, wish: bool | None) -> bool:
        fixed = self.backbone.revision is not None and self.classifier.tune != "full"
        if wish is False and not fixed:
            raise BundleError(
                "embed_backbone=False needs an untrained hub backbone at a known commit: this one "
                f"is {self.backbone.source!r}, trained with tune={self.classifier.tune!r}; let the "
                "bundle hold it"
            )
        return not fixed if wish is None else wish

    def _write(self, root: Path, embed: bool) -> None:
        model = self.classifier.backbone
        vlm = vision_language_model(model)
        source = self.backbone.source
        if self.backbone.revision is None:
            source = Path(source).name  # a folder's path is nobody else's business
        backbone: dict[str, Any] = {
            "source": source,
            "dtype": str(vlm.dtype).removeprefix("torch."),
        }
        if embed:
            backbone["folder"] = "backbone"
            save_backbone(vlm, root / "backbone")
        else:
            backbone["revision"] = self.backbone.revision
        if quantization(vlm) != "none":
            backbone["quantize"] = quantization(vlm)
        adapter = None
        if isinstance(model, PeftModel):
            adapter = save_adapter(model, root / "adapter", source, self.backbone.revision)
        self.backbone.processor.save_pretrained(root / "processor")
        head = self.classifier.head.state_dict()
        save_file({name: x.cpu().contiguous() for name, x in head.items()}, root / _HEAD)
        if self.card:
            (root / _CARD).write_text(self.card, "utf-8")
        if self.validation is not None:
            told = json.dumps(self.validation.to_dict(), indent=1, allow_nan=False)
            (root / _VALIDATION).write_text(told + "\n", "utf-8")
        for path in root.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        calibration = self.calibration or Calibration.identity(len(self.labels))
        manifest = Manifest(
            schema=SCHEMA,
            image=self.image.to_dict(),
            labels=list(self.labels),
            pooling=self.classifier.pooling,
            prompt=self.prompt,
            image_first=self.image_first,
            calibration=calibration.to_dict(),
            backbone=backbone,
            adapter=adapter,
            training_data=dict(self.training_data),
            license=self.license,
            intended_use=self.intended_use,
            versions={n: version(n) for n in ("medqua-core", "torch", "transformers", "peft")},
            files=hash_files(root),
        )
        write_manifest(root, manifest)
        read_manifest(root)


def _read_validation(root: Path) -> Validation:
    try:
        return Validation.from_dict(json.loads((root / _VALIDATION).read_bytes()))
    except (ConfigError, ValueError, AttributeError) as error:
        raise BundleError(f"{_VALIDATION}: {error}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
