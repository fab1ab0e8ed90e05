"""What a model was trained on, and of which images it may therefore call a finding.

A model that has seen drawn phantoms alone knows no patient: of any other image its probabilities
are no more than numbers, and none of its findings is judged.
"""

from collections.abc import Mapping

PHANTOMS = "PHANTOMS"
"""How the name of a data set of drawn phantoms begins."""

UNJUDGED = (
    "the model was trained on drawn phantoms alone: of this image, which is none, no finding is "
    "judged"
)
"""Note of an image that is not of the domain."""


def domain_of(training_data: Mapping[str, str]) -> str:
    """Return what a model was trained on, by its bundle's `training_data`.

    Returns:
        `drawn phantoms`, `radiographs`, or `not stated` where no data are named.
    """
    name = training_data.get("name", "")
    if name.startswith(PHANTOMS):
        return "drawn phantoms"
    return "radiographs" if name else "not stated"


def is_foreign(domain: str, *, phantom: bool) -> bool:
    """Tell whether an image is not of the domain of a model.

    Args:
        domain: As `domain_of` gives it.
        phantom: Whether the file says that it shows a phantom of ours.
    """
    return domain == "drawn phantoms" and not phantom
