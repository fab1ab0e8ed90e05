"""MedQua's core: from image bytes to findings, shared by training and serving.

The names below are the public contract; each is loaded when first used, so that a command line
that only prints its help does not pay for torch.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from medqua.core.silence import silence

if TYPE_CHECKING:
    from medqua.core.adapter.config import QuasarConfig as QuasarConfig
    from medqua.core.adapter.model import QuasarModel as QuasarModel
    from medqua.core.adapter.placement import find_decoder_layers as find_decoder_layers
    from medqua.core.adapter.router import EntropyRouter as EntropyRouter
    from medqua.core.adapter.shadow import ClassicalShadow as ClassicalShadow
    from medqua.core.model.bundle import Bundle as Bundle
    from medqua.core.quantum.ansatz import Ansatz as Ansatz
    from medqua.core.quantum.bottleneck import VariationalBottleneck as VariationalBottleneck
    from medqua.core.quantum.noise import NoiseModel as NoiseModel
    from medqua.core.vision.image import ImageSpec as ImageSpec
    from medqua.core.vision.image import read_image as read_image

silence()
# peft imports bitsandbytes where it is installed, which then misses optional kernels on every start
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

_HOME: dict[str, str] = {
    "ClassicalShadow": "medqua.core.adapter.shadow",
    "EntropyRouter": "medqua.core.adapter.router",
    "QuasarConfig": "medqua.core.adapter.config",
    "QuasarModel": "medqua.core.adapter.model",
    "find_decoder_layers": "medqua.core.adapter.placement",
    "Bundle": "medqua.core.model.bundle",
    "Ansatz": "medqua.core.quantum.ansatz",
    "NoiseModel": "medqua.core.quantum.noise",
    "VariationalBottleneck": "medqua.core.quantum.bottleneck",
    "ImageSpec": "medqua.core.vision.image",
    "read_image": "medqua.core.vision.image",
}
"""Public name -> module that defines it."""

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
