"""Model: backbone loading, the classifier, and the bundle that carries it from training to use."""

from medqua.core.adapter.placement import find_decoder_layers
from medqua.core.model.backbone import TINY, Backbone, load_backbone
from medqua.core.model.bundle import DEFAULT_PROMPT, INTENDED_USE, Bundle
from medqua.core.model.classifier import (
    POOLINGS,
    TUNES,
    MedQuaClassifier,
    vision_language_model,
)
from medqua.core.model.manifest import Manifest
from medqua.core.model.tiny import TinyArchitecture

__all__ = [
    "DEFAULT_PROMPT",
    "INTENDED_USE",
    "POOLINGS",
    "TINY",
    "TUNES",
    "Backbone",
    "Bundle",
    "Manifest",
    "MedQuaClassifier",
    "TinyArchitecture",
    "find_decoder_layers",
    "load_backbone",
    "vision_language_model",
]
