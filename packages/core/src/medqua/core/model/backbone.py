"""Load the vision-language model under the adapter: from the hub, a folder, or built offline.

A backbone is always whole: if a single weight of the model had to be filled with random numbers
because the checkpoint did not hold it, loading fails. (transformers itself only logs a table.)
Weights are read from safetensors alone, and no code that comes with a checkpoint is run.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import CachedRepoTreeNotFoundError, RevisionResolutionError
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.utils import logging as transformers_logging

from medqua.core.errors import BackboneError
from medqua.core.model.tiny import TinyArchitecture, build_tiny
from medqua.core.vision.processor import load_processor

TINY = "tiny"
"""The source that names the offline random model of `medqua.core.model.tiny`."""

SHIPPED = "tiny-cxr"
"""The source that names the small model, pretrained on phantoms, that lies in this package."""

_SHIPPED_FOLDER = Path(__file__).with_name("tiny_cxr")


@dataclass(frozen=True, eq=False)
class Backbone:
    """A vision-language model and what turns images into its inputs."""

    model: PreTrainedModel
    """The model with its language head, in eval mode, on the CPU (on the GPU if quantised)."""
    processor: ProcessorMixin
    """Argument of `medqua.core.vision.processor.build_inputs`."""
    source: str
    """Hub id, folder, `"tiny-cxr"` or `"tiny"`."""
    revision: str | None
    """Commit of the hub repository; None for a folder and for the tiny models."""


def load_backbone(
    source: str | Path = TINY,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    architecture: TinyArchitecture | None = None,
    cache_dir: Path | None = None,
    local_files_only: bool = False,
    quantize: str = "none",
) -> Backbone:
    """Load a backbone, complete or not at all.

    Args:
        source: A hub id such as `"Qwen/Qwen2.5-VL-3B-Instruct"`, a folder written by
            `save_pretrained` (a relative one as `"./folder"` if its name could be a hub id),
            `"tiny-cxr"` (small, pretrained on phantoms, in this package), or `"tiny"` (random).
        revision: Branch, tag or commit on the hub; the commit it resolves to is recorded.
        dtype: Floating type of the weights in memory.
        seed: Seed of the tiny model's weights.
        architecture: Sizes of the tiny model; its defaults if None.
        cache_dir: Hub cache; the one of `HF_HUB_CACHE` if None.
        local_files_only: Use the hub cache alone, never the network.
        quantize: `"nf4"` keeps the matrices of a frozen backbone in 4 bits (QLoRA); `"none"`.

    Returns:
        The backbone, in eval mode, on the CPU.

    Raises:
        BackboneError: The source is unreachable, of an unsupported architecture, lacks weights in
            safetensors or some of them, or lacks a processor for images.
    """
    name = str(source)
    if name == TINY:
        if quantize != "none":
            raise BackboneError(
                f"quantize = {quantize!r} with the source 'tiny': it is random and trained whole; "
                "quantise a pretrained backbone"
            )
        tiny, processor = build_tiny(architecture or TinyArchitecture(), seed, dtype)
        return Backbone(tiny, processor, TINY, None)
    if architecture is not None:
        raise BackboneError(f"architecture given for {name!r}: only the source 'tiny' takes sizes")
    folder = _SHIPPED_FOLDER if name == SHIPPED else Path(name).expanduser()
    commit = None
    if not folder.is_dir():
        folder = _fetch(name, revision, cache_dir, local_files_only)
        commit = folder.name
    model = load_model(folder, name, dtype, quantize)
    return Backbone(model, load_processor(folder), name, commit)


def _fetch(name: str, revision: str | None, cache_dir: Path | None, local_files_only: bool) -> Path:
    """Bring one snapshot of a hub repository into the cache; the folder's name is its commit."""
    if name.startswith((".", "~", "/")) or name.count("/") != 1:
        raise BackboneError(
            f"no folder at {name}: needed a folder written by save_pretrained, a hub id "
            "(owner/name), 'tiny-cxr', or 'tiny'"
        )
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"],
            )
        )
    except (OSError, ValueError, CachedRepoTreeNotFoundError, RevisionResolutionError) as error:
        raise BackboneError(
            f"cannot fetch {name!r} at revision {revision or 'main'} from the hub: check the "
            "name, your access to it and the network, give a folder that holds the model, or use "
            f"'tiny-cxr' to work offline ({_first_line(error)})"
        ) from error


def load_model(
    folder: Path, name: str, dtype: torch.dtype = torch.float32, quantize: str = "none"
) -> PreTrainedModel:
    """Load the model in a folder, complete or not at all; `load_backbone` adds the processor.

    Args:
        folder: Folder with `config.json` and `model.safetensors`, whole or in shards.
        name: What the model calls itself from then on, in messages and saved configurations.
        dtype: Floating type of the weights in memory.
        quantize: As in `load_backbone`.

    Raises:
        BackboneError: As in `load_backbone`.
    """
    extra = _quantization(quantize, dtype)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            raise BackboneError(
                f"{name!r} is a {config.model_type!r} model, which does not read images and text; "
                "choose a vision-language model such as Qwen/Qwen2.5-VL-3B-Instruct"
            )
        if getattr(config, "quantization_config", None):
            _need_bitsandbytes(f"{name!r} in 4 bits")
        with quiet_bars():
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # _check_whole names them, and refuses
                dtype=dtype,
                output_loading_info=True,
                **extra,
            )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise BackboneError(
            f"cannot load a backbone from {name!r}: needed config.json and model.safetensors of a "
            f"vision-language model that transformers knows ({_first_line(error)})"
        ) from error
    model: PreTrainedModel
    model, report = loaded
    _check_whole(name, report)
    _keep_layout(model)
    model.name_or_path = model.config.name_or_path = name
    model.train(False)
    return model


@contextmanager
def quiet_bars() -> Iterator[None]:
    """Keep transformers from drawing bars over the output of a command that has its own."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def quantization(model: PreTrainedModel) -> str:
    """How a model keeps its matrices: `"nf4"` or `"none"`, as `load_backbone` takes it."""
    return "none" if getattr(model, "hf_quantizer", None) is None else "nf4"


def _quantization(quantize: str, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of `from_pretrained` that load matrices in 4 bits."""
    if quantize == "none":
        return {}
    if quantize != "nf4":
        raise BackboneError(f"quantize = {quantize!r}: needed 'none' or 'nf4'")
    _need_bitsandbytes("quantize = 'nf4'")
    config = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    return {"quantization_config": config, "device_map": {"": device}}


def _need_bitsandbytes(what: str) -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BackboneError(
            f"{what} needs bitsandbytes, which is not installed: pip install 'medqua-core[nf4]'"
        )


def _keep_layout(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from packing matrices anew on some CPUs: gradients do not pass that form.

    It does so in eval mode where no gradient is asked for first, which is what a frozen backbone
    below an adapter looks like, and it needs widths that are multiples of 64.
    """
    modules: Iterator[Any] = model.modules()
    for module in modules:
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _check_whole(name: str, report: dict[str, Any]) -> None:
    """Refuse a model in which loading left a weight at its random initialisation."""
    missing = sorted(str(key) for key in report["missing_keys"])
    mismatched = sorted(str(key[0]) for key in report["mismatched_keys"])
    errors = [str(message) for message in report["error_msgs"]]
    if not (missing or mismatched or errors):
        return
    examples = ", ".join((missing + mismatched + errors)[:3])
    raise BackboneError(
        f"{name!r} leaves weights uninitialised: {len(missing)} missing, {len(mismatched)} of "
        f"another shape ({examples}); the weights do not belong to its config.json: fetch the "
        "checkpoint again, whole"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
