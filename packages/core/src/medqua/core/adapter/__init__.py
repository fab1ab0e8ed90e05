"""The Quasar adapter (section 3): router, shadow, dual path, and its life as a PEFT tuner.

Importing this package teaches PEFT the method `QUASAR`: `peft.get_peft_model(vlm,
QuasarConfig(...))` and `PeftModel.from_pretrained` work from then on.
"""

from medqua.core.adapter.classical import classical_only
from medqua.core.adapter.config import QuasarConfig
from medqua.core.adapter.layer import QuasarBlock, QuasarLayer
from medqua.core.adapter.model import QuasarModel
from medqua.core.adapter.objective import (
    RouterDiagnostics,
    diagnostics,
    gate_entropy,
    proportion,
    regularisation,
    reset_diagnostics,
    share_batch,
    update_thresholds,
)
from medqua.core.adapter.placement import choose_blocks, find_decoder_layers
from medqua.core.adapter.router import EntropyRouter, Routed
from medqua.core.adapter.shadow import ClassicalShadow

__all__ = [
    "ClassicalShadow",
    "EntropyRouter",
    "QuasarBlock",
    "QuasarConfig",
    "QuasarLayer",
    "QuasarModel",
    "Routed",
    "RouterDiagnostics",
    "choose_blocks",
    "classical_only",
    "diagnostics",
    "find_decoder_layers",
    "gate_entropy",
    "proportion",
    "regularisation",
    "reset_diagnostics",
    "share_batch",
    "update_thresholds",
]
