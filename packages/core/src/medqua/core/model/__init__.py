"""Model: backbone loading, the classifier, and the bundle that carries it from training to use.

Each name below is loaded from its module when first used: what reads a manifest alone does without
torch, transformers and PEFT.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medqua.core.adapter.placement import find_decoder_layers as find_decoder_layers
    from medqua.core.model.backbone import TINY as TINY
    from medqua.core.model.backbone import Backbone as Backbone
    from medqua.core.model.backbone import load_backbone as load_backbone
    from medqua.core.model.bundle import DEFAULT_PROMPT as DEFAULT_PROMPT
    from medqua.core.model.bundle import INTENDED_USE as INTENDED_USE
    from medqua.core.model.bundle import Bundle as Bundle
    from medqua.core.model.classifier import POOLINGS as POOLINGS
    from medqua.core.model.classifier import TUNES as TUNES
    from medqua.core.model.classifier import MedQuaClassifier as MedQuaClassifier
    from medqua.core.model.classifier import vision_language_model as vision_language_model
    from medqua.core.model.manifest import Manifest as Manifest
    from medqua.core.model.tiny import TinyArchitecture as TinyArchitecture

_HOME: dict[str, str] = {
    "find_decoder_layers": "medqua.core.adapter.placement",
    "TINY": "medqua.core.model.backbone",
    "Backbone": "medqua.core.model.backbone",
    "load_backbone": "medqua.core.model.backbone",
    "DEFAULT_PROMPT": "medqua.core.model.bundle",
    "INTENDED_USE": "medqua.core.model.bundle",
    "Bundle": "medqua.core.model.bundle",
    "POOLINGS": "medqua.core.model.classifier",
    "TUNES": "medqua.core.model.classifier",
    "MedQuaClassifier": "medqua.core.model.classifier",
    "vision_language_model": "medqua.core.model.classifier",
    "Manifest": "medqua.core.model.manifest",
    "TinyArchitecture": "medqua.core.model.tiny",
}
"""Public name -> module that defines it."""

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
