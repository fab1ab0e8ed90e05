"""Splitting by patient: the same patients land in the same split on every machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import polars as pl

from medqua.core.errors import ConfigError


@dataclass(frozen=True)
class SplitFractions:
    """How many of the patients are held out."""

    validate: float = 0.15
    """Fraction of patients for calibration and the choice of a checkpoint, within (0, 1)."""

    test: float = 0.2
    """Fraction of patients for the figures that are reported, within (0, 1)."""

    def __post_init__(self) -> None:
        if not (self.validate > 0 and self.test > 0 and self.validate + self.test < 1):
            raise ConfigError(
                f"split fractions validate = {self.validate}, test = {self.test}: each must be "
                "more than 0, and together less than 1, so that patients are left to train on"
            )


def split_by_hash(patients: Sequence[str], fractions: SplitFractions, seed: int) -> dict[str, str]:
    """Split by a hash of seed and patient alone.

    Who else is in the data set does not matter: patients added later move nobody, which is what a
    growing collection needs. Fractions are met on average only.

    Returns:
        Patient -> `train`, `validate` or `test`.
    """
    return {patient: _name(hashed_place(patient, seed), fractions) for patient in patients}


def split_stratified(
    labels: Mapping[str, frozenset[str]], fractions: SplitFractions, seed: int
) -> dict[str, str]:
    """Split so that rare findings are in every split, as far as there are patients for it.

    Each patient belongs to the stratum of the rarest finding that they have; within a stratum
    patients are ordered by the hash of `split_by_hash` and cut at the fractions, which are met to
    one patient. Adding patients may move others.

    Args:
        labels: Patient -> findings present in any of their images.
        fractions: Parts to hold out.
        seed: Seed of the order.

    Returns:
        Patient -> `train`, `validate` or `test`.
    """
    count: dict[str, int] = {}
    for found in labels.values():
        for label in found:
            count[label] = count.get(label, 0) + 1
    strata: dict[str, list[str]] = {}
    for patient, found in labels.items():
        rarest = min(found, key=lambda label: (count[label], label), default="")
        strata.setdefault(rarest, []).append(patient)
    result: dict[str, str] = {}
    for stratum in strata.values():
        ordered = sorted(stratum, key=lambda patient: (hashed_place(patient, seed), patient))
        for position, patient in enumerate(ordered):
            result[patient] = _name((position + 0.5) / len(ordered), fractions)
    return result


def positives_by_patient(frame: pl.DataFrame, labels: Sequence[str]) -> dict[str, frozenset[str]]:
    """Patient -> labels that are 1 in any of their images."""
    present = frame.group_by("patient_id").agg((pl.col(label) == 1).any() for label in labels)
    return {
        str(row["patient_id"]): frozenset(label for label in labels if row[label])
        for row in present.iter_rows(named=True)
    }


def hashed_place(patient: str, seed: int) -> float:
    """A place in [0, 1) of a patient, uniform over patients and equal on every machine."""
    digest = blake2b(f"{seed}:{patient}".encode(), digest_size=7).digest()
    return int.from_bytes(digest) / 2**56


def _name(place: float, fractions: SplitFractions) -> str:
    if place < fractions.test:
        return "test"
    return "validate" if place < fractions.test + fractions.validate else "train"
