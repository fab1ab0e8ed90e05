"""The parts of a bundle on disk: backbone and adapter."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from medqua.core.errors import BackboneError, BundleError, ConfigError
from medqua.core.findings.calibration import Calibration
from medqua.core.model.backbone import Backbone, load_backbone, load_model, quiet_bars
from medqua.core.model.manifest import MANIFEST, Manifest
from medqua.core.vision.image import ImageSpec
from medqua.core.vision.processor import load_processor


def save_backbone(vlm: PreTrainedModel, folder: Path) -> None:
    """Save the backbone alone, under its own names, whatever adapter is injected."""
    state = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in vlm.state_dict().items()
        if "quasar_" not in name and ".lora_" not in name
    }
    folder.mkdir()
    saved: Any = vlm
    quantizer, saved.hf_quantizer = getattr(vlm, "hf_quantizer", None), None
    try:  # with a quantizer, transformers would save everything that hangs on the model instead
        with quiet_bars():
            # nor can it turn the names of 4-bit matrices back into those of the original
            saved.save_pretrained(folder, state_dict=state, save_original_format=quantizer is None)
    finally:
        saved.hf_quantizer = quantizer


def save_adapter(
    model: PeftModel, folder: Path, source: str, revision: str | None
) -> dict[str, Any]:
    """Save the active adapter at the top of `folder` and return its configuration."""
    name = model.active_adapter
    model.save_pretrained(str(folder), selected_adapters=[name], save_embedding_layers=False)
    if name != "default":
        for path in (folder / name).iterdir():
            path.rename(folder / path.name)
        (folder / name).rmdir()
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config: dict[str, Any] = json.loads(path.read_bytes())
    config |= {"base_model_name_or_path": source, "revision": revision}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return config


def read_parts(manifest: Manifest) -> tuple[Calibration, ImageSpec]:
    """Return the calibration and the image specification that a manifest tells.

    Raises:
        BundleError: They, the backbone or the labels are not what a bundle has.
    """
    try:
        calibration = Calibration.from_dict(manifest.calibration)
        image = ImageSpec.from_dict(manifest.image)
    except (ConfigError, TypeError) as error:
        raise BundleError(f"{MANIFEST}: {error}") from error
    extra = set(manifest.backbone) - {"source", "dtype", "folder", "revision", "quantize"}
    where = [key for key in ("folder", "revision") if key in manifest.backbone]
    dtype = getattr(torch, str(manifest.backbone.get("dtype")), None)
    folder = manifest.backbone.get("folder", "backbone")
    if extra or len(where) != 1 or not isinstance(dtype, torch.dtype) or folder != "backbone":
        raise BundleError(
            f"'backbone' in {MANIFEST} is {manifest.backbone}: needed source, dtype, and either "
            "the folder 'backbone' or a revision"
        )
    if not all(isinstance(label, str) for label in manifest.labels):
        raise BundleError(f"'labels' in {MANIFEST} are not all names: export again")
    return calibration, image


def open_backbone(
    root: Path, manifest: Manifest, cache_dir: Path | None, local_files_only: bool
) -> Backbone:
    """Load the backbone that lies in the bundle, or fetch the one it names.

    Raises:
        BundleError: The bundle's own backbone does not load.
        BackboneError: The backbone is on the hub and cannot be fetched.
    """
    source, dtype = manifest.backbone["source"], getattr(torch, manifest.backbone["dtype"])
    try:
        processor = load_processor(root / "processor")
        if "folder" in manifest.backbone:
            model = load_model(root / "backbone", source, dtype)
            return Backbone(model, processor, source, None)
    except BackboneError as error:
        raise BundleError(f"the bundle's own backbone does not load: {error}") from error
    fetched = load_backbone(
        source,
        revision=manifest.backbone["revision"],
        dtype=dtype,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        quantize=manifest.backbone.get("quantize", "none"),
    )
    return replace(fetched, processor=processor)
