"""The model of a recipe: backbone, adapter, head."""

import warnings
from typing import cast

import torch
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel

from medqua.core.model.backbone import TINY, Backbone, load_backbone
from medqua.core.model.classifier import MedQuaClassifier
from medqua.train.recipe import Recipe

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def build_model(recipe: Recipe, n_labels: int) -> tuple[MedQuaClassifier, Backbone]:
    """Build the classifier that a recipe describes, on the CPU.

    Args:
        recipe: The run; its seed decides every new weight.
        n_labels: Number of logits.

    Returns:
        The classifier and the backbone that it was built on.

    Raises:
        BackboneError: The backbone cannot be loaded or adapted.
        ConfigError: The adapter does not fit it.
    """
    section = recipe.backbone
    backbone = load_backbone(
        section.source,
        revision=section.revision or None,
        dtype=DTYPES[section.dtype],
        seed=recipe.run.seed,
        architecture=section.tiny if section.source == TINY else None,
    )
    torch.manual_seed(recipe.run.seed)
    classifier = MedQuaClassifier(
        _adapted(backbone.model, recipe),
        n_labels,
        pooling=recipe.head.pooling,
        tune=section.tuned,
    )
    if section.gradient_checkpointing:
        classifier.gradient_checkpointing_enable()
    return classifier, backbone


def _adapted(model: PreTrainedModel, recipe: Recipe) -> PeftModel:
    """The backbone with its adapter."""
    with warnings.catch_warnings():  # peft reads an attribute that transformers has renamed
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        return cast(PeftModel, get_peft_model(model, recipe.adapter))


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """Trainable parameters, and all of them."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)
