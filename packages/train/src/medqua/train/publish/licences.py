"""Terms that the training data puts on weights, and who may pass them on."""

from collections.abc import Mapping

LICENCES: Mapping[str, str] = {
    "mimic": "PhysioNet Credentialed Health Data License 1.5.0: do not pass on these weights.",
    "chestmnist": "CC BY 4.0 (MedMNIST; NIH ChestX-ray14)",
    "nih": "NIH Clinical Center asks for attribution: Wang et al., ChestX-ray8, CVPR 2017.",
    "chexpert": "Stanford University Dataset Research Use Agreement: no commercial use.",
    "vindr": "PhysioNet Credentialed Health Data License 1.5.0: do not pass on these weights.",
}
"""Kind of data -> terms."""

SYNTHETIC = "Synthetic training data (phantoms); no patient data."
"""What stands there for phantoms."""

UNKNOWN = "Not stated: treat the weights as bound by the terms of the training data."
"""What stands there for data of one's own."""


def licence_of(kind: str, *, synthetic: bool) -> str:
    """Terms of weights that were trained on a kind of data."""
    return SYNTHETIC if synthetic else LICENCES.get(kind, UNKNOWN)
