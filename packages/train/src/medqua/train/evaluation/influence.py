"""What the bottleneck's path does to the answers of a trained model: with it and without it."""

from collections.abc import Callable

import numpy as np
from torch import nn

from medqua.core.adapter import QuasarLayer, classical_only
from medqua.core.findings.calibration import Calibration
from medqua.train.evaluation.metrics import Figures
from medqua.train.evaluation.predict import Predictions


def without_path(model: nn.Module, predict: Callable[[], Predictions]) -> Predictions | None:
    """Predict as if no token had been selected; None for a model without Quasar adapters."""
    if not any(isinstance(module, QuasarLayer) for module in model.modules()):
        return None
    with classical_only(model):
        return predict()


def influence(
    whole: Predictions, without: Predictions, figures: Figures, calibration: Calibration
) -> Figures:
    """How much the path moves the calibrated probabilities.

    Args:
        whole: Of the trained model.
        without: Of the same model by `without_path`, on the same images.
        figures: Those of `without`.
        calibration: Of the trained model, used for both.

    Returns:
        `macro_auroc` without the path, and over all images and labels the mean and the largest
        `probability_change` that it makes, absolute.
    """
    readable = np.setdiff1d(np.arange(len(whole.logits)), whole.unreadable)
    both = [calibration(found.logits[readable]) for found in (whole, without)]
    change = np.abs(both[0] - both[1])
    return {
        "macro_auroc": figures["macro_auroc"],
        "mean_probability_change": float(change.mean()) if change.size else None,
        "largest_probability_change": float(change.max()) if change.size else None,
    }
