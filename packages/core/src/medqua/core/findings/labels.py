"""What the models look for: the observations of CheXpert and of NIH ChestX-ray14, as data.

The names are those of the data sets, because tables and metrics are matched by them. The codes are
for reports: SNOMED CT (scheme `SCT`) or, where DICOM itself defines the term, `DCM`; each was
found in DICOM PS3.16, a published FHIR value set or a terminology server, and an observation
that no single concept covers is a morphology with its site, or is marked as not exact.

Sources: Irvin et al. 2019 (CheXpert), Johnson et al. 2019 (MIMIC-CXR-JPG), Wang et al. 2017
(ChestX-ray8, extended to 14), Yang et al. 2023 (MedMNIST v2: ChestMNIST).
"""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from medqua.core.errors import DataError

Relation = Literal["exact", "broader", "none"]
"""Of an observation to one of the other set: the same, contained in a wider one, or without one."""


@dataclass(frozen=True)
class Code:
    """One coded concept."""

    scheme: str
    """DICOM coding scheme designator: `SCT` (SNOMED CT) or `DCM`."""
    value: str
    """Identifier in the scheme."""
    meaning: str
    """The scheme's own term for it."""


@dataclass(frozen=True)
class Observation:
    """One label of a data set."""

    name: str
    """Name in the label columns of the data set."""
    code: Code
    """What is observed."""
    site: Code | None
    """Where, if `code` does not say so."""
    exact: bool
    """Whether `code` at `site` means this label, neither more nor less."""

    @property
    def title(self) -> str:
        """The name for people: words, without underscores."""
        return self.name.replace("_", " ")


@dataclass(frozen=True)
class Mapping:
    """The counterpart of an observation in the other label set."""

    name: str
    """Observation of the one set."""
    other: str | None
    """Observation of the other set; None where there is none."""
    relation: Relation
    """`exact`, or `broader` where `other` also covers what `name` does not."""


_LUNG = Code("SCT", "39607008", "Lung")
_MEDIASTINUM = Code("SCT", "72410000", "Mediastinum")

_ATELECTASIS = Code("SCT", "46621007", "Atelectasis")
_CARDIOMEGALY = Code("SCT", "8186001", "Cardiomegaly")
_CONSOLIDATION = Code("SCT", "95436008", "Lung consolidation")
_EDEMA = Code("SCT", "19242006", "Pulmonary edema")
_EFFUSION = Code("SCT", "60046008", "Pleural effusion")
_PLEURA = Code("SCT", "301256004", "Pleura finding")
_PNEUMONIA = Code("SCT", "233604007", "Pneumonia")
_PNEUMOTHORAX = Code("SCT", "36118008", "Pneumothorax")


def _is(name: str, code: Code, site: Code | None = None, *, exact: bool = True) -> Observation:
    return Observation(name, code, site, exact)


CHEXPERT: tuple[Observation, ...] = (
    _is("Atelectasis", _ATELECTASIS),
    _is("Cardiomegaly", _CARDIOMEGALY),
    _is("Consolidation", _CONSOLIDATION),
    _is("Edema", _EDEMA),
    _is("Enlarged Cardiomediastinum", Code("SCT", "260376009", "Enlarged"), _MEDIASTINUM),
    _is("Fracture", Code("SCT", "125605004", "Fracture of bone")),
    _is("Lung Lesion", Code("SCT", "52988006", "Lesion"), _LUNG),
    _is("Lung Opacity", Code("DCM", "112001", "Opacity"), _LUNG),
    # no other observation but support devices: not a statement that the patient is healthy
    _is("No Finding", Code("SCT", "373572006", "Clinical finding absent"), exact=False),
    _is("Pleural Effusion", _EFFUSION),
    _is("Pleural Other", _PLEURA, exact=False),
    _is("Pneumonia", _PNEUMONIA),
    _is("Pneumothorax", _PNEUMOTHORAX),
    _is("Support Devices", Code("SCT", "49062001", "Device")),
)
"""The 14 observations of CheXpert and MIMIC-CXR, in the order of MIMIC's `chexpert.csv`."""

NIH: tuple[Observation, ...] = (
    _is("Atelectasis", _ATELECTASIS),
    _is("Cardiomegaly", _CARDIOMEGALY),
    _is("Effusion", _EFFUSION),
    _is("Infiltration", Code("SCT", "409609008", "Radiologic infiltrate of lung")),
    _is("Mass", Code("SCT", "309529002", "Lung mass")),
    _is("Nodule", Code("SCT", "786838002", "Nodule of lung")),
    _is("Pneumonia", _PNEUMONIA),
    _is("Pneumothorax", _PNEUMOTHORAX),
    _is("Consolidation", _CONSOLIDATION),
    _is("Edema", _EDEMA),
    _is("Emphysema", Code("SCT", "87433001", "Pulmonary emphysema")),
    _is("Fibrosis", Code("SCT", "51615001", "Fibrosis of lung")),
    _is("Pleural_Thickening", _PLEURA, exact=False),
    _is("Hernia", Code("SCT", "39839004", "Diaphragmatic hernia"), exact=False),
)
"""The 14 observations of NIH ChestX-ray14, in the order of ChestMNIST's label columns 0 to 13."""

CHEXPERT_NAMES = tuple(observation.name for observation in CHEXPERT)
"""Column names of MIMIC's `mimic-cxr-2.0.0-chexpert.csv.gz` and of CheXpert."""

NIH_NAMES = tuple(observation.name for observation in NIH)
"""Label names of `Data_Entry_2017.csv`, where `|` separates them and `No Finding` is none."""

ALIASES = {
    "Airspace Opacity": "Lung Opacity",  # mimic-cxr-2.1.0-test-set-labeled.csv
    "Pleural Thickening": "Pleural_Thickening",
    "Pleural": "Pleural_Thickening",  # MedMNIST's documentation
}
"""Other spellings of a label in published tables -> the name used here."""

CHEXPERT_TO_NIH: tuple[Mapping, ...] = (
    Mapping("Atelectasis", "Atelectasis", "exact"),
    Mapping("Cardiomegaly", "Cardiomegaly", "exact"),
    Mapping("Consolidation", "Consolidation", "exact"),
    Mapping("Edema", "Edema", "exact"),
    Mapping("Enlarged Cardiomediastinum", None, "none"),
    Mapping("Fracture", None, "none"),
    Mapping("Lung Lesion", None, "none"),
    Mapping("Lung Opacity", None, "none"),
    Mapping("No Finding", None, "none"),
    Mapping("Pleural Effusion", "Effusion", "exact"),
    Mapping("Pleural Other", None, "none"),
    Mapping("Pneumonia", "Pneumonia", "exact"),
    Mapping("Pneumothorax", "Pneumothorax", "exact"),
    Mapping("Support Devices", None, "none"),
)
"""For each CheXpert observation, its counterpart in NIH."""

NIH_TO_CHEXPERT: tuple[Mapping, ...] = (
    Mapping("Atelectasis", "Atelectasis", "exact"),
    Mapping("Cardiomegaly", "Cardiomegaly", "exact"),
    Mapping("Effusion", "Pleural Effusion", "exact"),
    Mapping("Infiltration", "Lung Opacity", "broader"),
    Mapping("Mass", "Lung Lesion", "broader"),
    Mapping("Nodule", "Lung Lesion", "broader"),
    Mapping("Pneumonia", "Pneumonia", "exact"),
    Mapping("Pneumothorax", "Pneumothorax", "exact"),
    Mapping("Consolidation", "Consolidation", "exact"),
    Mapping("Edema", "Edema", "exact"),
    Mapping("Emphysema", None, "none"),
    Mapping("Fibrosis", None, "none"),
    Mapping("Pleural_Thickening", "Pleural Other", "broader"),
    Mapping("Hernia", None, "none"),
)
"""For each NIH observation, its counterpart in CheXpert."""


def observation(name: str) -> Observation:
    """Find an observation of either set by its name or an alias.

    The two sets share eight names up to spelling; where they do, the codes are the same.

    Raises:
        DataError: Neither set has it; the message names the nearest.
    """
    wanted = ALIASES.get(name, name)
    for known in (*CHEXPERT, *NIH):
        if known.name == wanted:
            return known
    names = [*CHEXPERT_NAMES, *NIH_NAMES, *ALIASES]
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(set(names)))}"
    raise DataError(f"unknown observation {name!r}: {hint}")
