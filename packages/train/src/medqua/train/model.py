"""The model of a recipe: backbone, what is attached to it, head."""

import warnings
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedModel,
)

from medqua.core.adapter.config import lora_config
from medqua.core.errors import BackboneError
from medqua.core.model.backbone import SHIPPED, TINY, Backbone, load_backbone
from medqua.core.model.classifier import MedQuaClassifier
from medqua.train.recipe import Recipe

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def build_model(
    recipe: Recipe, n_labels: int, kind: type[MedQuaClassifier] = MedQuaClassifier
) -> tuple[MedQuaClassifier, Backbone]:
    """Build the classifier that a recipe describes, on the CPU.

    Args:
        recipe: The run; its seed decides every new weight.
        n_labels: Number of logits.
        kind: The classifier, or what does more than it.

    Returns:
        The classifier and the backbone that it was built on.

    Raises:
        BackboneError: The backbone cannot be loaded or adapted.
        ConfigError: The adapter does not fit it.
    """
    backbone = open_backbone(recipe)
    torch.manual_seed(recipe.run.seed)
    return _classifier(backbone.model, recipe, n_labels, kind), backbone


def open_backbone(recipe: Recipe) -> Backbone:
    """Load the backbone that a recipe names, on the CPU.

    Raises:
        BackboneError: It cannot be loaded.
    """
    section = recipe.backbone
    return load_backbone(
        section.source,
        revision=section.revision or None,
        dtype=DTYPES[section.dtype],
        seed=recipe.run.seed,
        architecture=section.tiny if section.source == TINY else None,
        quantize=section.quantize,
    )


def count_trainable(recipe: Recipe, n_labels: int) -> int:
    """Trainable parameters of a recipe's model, from the sizes of its backbone alone.

    Of a backbone on the hub or in a folder only `config.json` is read: nothing of its weights is
    fetched or held in memory.

    Args:
        recipe: The run.
        n_labels: Number of logits.

    Raises:
        BackboneError: The backbone's configuration is out of reach, or it cannot be adapted.
        ConfigError: The adapter does not fit it.
    """
    if recipe.head.kind == "answers":
        return 0
    section = recipe.backbone
    if section.source in (TINY, SHIPPED):
        config = open_backbone(recipe).model.config
    else:
        config = _published_config(section.source, section.revision or None)
    auto: Any = AutoModelForImageTextToText
    with torch.device("meta"):
        model = auto.from_config(config)
    return count_parameters(_classifier(model, recipe, n_labels))[0]


def _published_config(source: str, revision: str | None) -> Any:
    """The configuration of a backbone in a folder or on the hub."""
    try:
        config = AutoConfig.from_pretrained(
            Path(source).expanduser() if Path(source).expanduser().is_dir() else source,
            revision=revision,
            trust_remote_code=False,
        )
    except (OSError, ValueError) as error:
        raise BackboneError(
            f"no config.json of {source!r} (revision {revision or 'main'}): check its name and the "
            "network, or give a folder that holds the model"
        ) from error
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise BackboneError(f"{source!r} is no model that reads images and text")
    return config


def _classifier(
    model: PreTrainedModel,
    recipe: Recipe,
    n_labels: int,
    kind: type[MedQuaClassifier] = MedQuaClassifier,
) -> MedQuaClassifier:
    """The classifier of a recipe on a backbone."""
    section = recipe.backbone
    classifier = kind(
        _adapted(model, recipe), n_labels, pooling=recipe.head.pooling, tune=section.tuned
    )
    if section.gradient_checkpointing:
        classifier.gradient_checkpointing_enable()
    return classifier


def _adapted(model: PreTrainedModel, recipe: Recipe) -> PreTrainedModel | PeftModel:
    """The backbone with what the recipe attaches to it."""
    config: PeftConfig = recipe.adapter
    if recipe.backbone.adapter == "none":
        return model
    if recipe.backbone.adapter == "lora":
        config = lora_config(model, recipe.adapter.lora or {})
    with warnings.catch_warnings():  # peft reads an attribute that transformers has renamed
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        return cast(PeftModel, get_peft_model(model, config))


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """Trainable parameters, and all of them."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)
