"""Model: backbone loading, the classifier, and the bundle that carries it from training to use."""

from medqua.core.model.backbone import TINY, Backbone, load_backbone
from medqua.core.model.classifier import (
    POOLINGS,
    TUNES,
    MedQuaClassifier,
    vision_language_model,
)
from medqua.core.model.tiny import TinyArchitecture

__all__ = [
    "POOLINGS",
    "TINY",
    "TUNES",
    "Backbone",
    "MedQuaClassifier",
    "TinyArchitecture",
    "load_backbone",
    "vision_language_model",
]
