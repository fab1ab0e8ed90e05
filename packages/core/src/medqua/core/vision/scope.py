"""Whether a DICOM header describes one frontal chest radiograph.

A header refuses by what it says, not by what it leaves out: genuine chest radiographs arrive with
neither body part nor view. The reasons quote only listed terms, never free text, which may name
a patient.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from medqua.core.errors import OutOfScopeError


def _words(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


RADIOGRAPHY = ("CR", "DX", "RG")
"""Modality (0008,0060): computed, digital, and digitised film radiography."""

MODALITIES = _words(
    "ANN AR ASMT AU BDUS BI BMD CFM CR CT CTPROTOCOL DMS DG DOC DX ECG EEG EMG EOG EPS ES FID "
    "GM HC HD IO IOL IVOCT IVUS KER KO LEN LS MG MR M3D NM OAM OCT OP OPM OPT OPTBSV OPTENF OPV "
    "OSS OT PA PLAN POS PR PT PX REG RESP RF RG RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD "
    "RTSEGANN RTSTRUCT RWV SEG SM SMR SR SRF STAIN TEXTUREMAP TG US VA XA XAPROTOCOL XC"
)
"""Defined terms of Modality (PS3.3 C.7.3.1.1.1)."""

RADIOGRAPH_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.1",  # Computed Radiography
    "1.2.840.10008.5.1.4.1.1.1.1",  # Digital X-Ray, for presentation
)

CHEST = _words("CHEST THORAX TORAX LUNG LUNGS CXR THORACIC PULMONARY")
ELSEWHERE = _words(
    "ABDOMEN ABDOMINAL ANKLE ARM BREAST CALCANEUS CERVICAL CLAVICLE COCCYX CSPINE DENTAL ELBOW "
    "EXTREMITY FACE FACIAL FEMUR FIBULA FINGER FOOT FOREARM HAND HEAD HIP HUMERUS JAW KNEE KUB "
    "LEG LSPINE LUMBAR MANDIBLE MAXILLA NASAL NECK ORBIT PANCREAS PATELLA PELVIS RADIUS RIB "
    "RIBS SACRUM SCAPULA SHOULDER SINUS SKULL SPINE SSPINE STERNUM TEETH THIGH THUMB TIBIA TOE "
    "TOOTH TSPINE ULNA WHOLEBODY WRIST"
)
"""Words that name a body part; found in the coded attribute as in descriptions."""

UNSTATED = frozenset(("", "UNKNOWN", "OTHER", "NONE", "UNDEFINED", "UNSPECIFIED", "NOT SPECIFIED"))

VIEWS = {
    "lateral": _words("LL RL LAT LATERAL LLAT RLAT XTABLE SWIMMERS"),
    "decubitus": _words("LLD RLD DECUB DECUBITUS"),
    "oblique": _words("LAO RAO LPO RPO LLO RLO OBL OBLI OBLIQUE"),
    "lordotic": _words("AXIAL LORDOTIC"),
}
"""Kind of view that is not a plain frontal one -> its terms in View Position (0018,5101)."""

FRONTAL_CODES = _words("399348003 272479007 399033003 R-10206 R-10214 R-10202")
"""AP, PA and frontal in CID 4010, as SNOMED CT and SNOMED RT codes."""

LATERAL_CODES = _words("399173006 399198007 399067008 R-10236 R-10232 R-102CD")
"""Left, right and plain lateral in CID 4010, as SNOMED CT and SNOMED RT codes."""

CHEST_CODES = _words("816094009 51185008 39607008 43799004 T-D3000 T-28000 T-D3200")
"""Thorax, lung, chest and thoracic cavity in CID 4, as SNOMED CT and SNOMED RT codes."""


@dataclass(frozen=True)
class Header:
    """What is needed of a DICOM header; nothing that identifies a patient."""

    modality: str
    """Modality (0008,0060)."""

    sop_class: str
    """SOP Class UID (0008,0016)."""

    transfer_syntax: str
    """Transfer Syntax UID (0002,0010), or the one that a headless file is written in."""

    body_part: str
    """Body Part Examined (0018,0015)."""

    region_codes: tuple[str, ...]
    """Code Values of Anatomic Region Sequence (0008,2218)."""

    described: tuple[str, ...]
    """Anatomy words of `CHEST` and `ELSEWHERE` that the study and series descriptions hold."""

    view_position: str
    """View Position (0018,5101)."""

    view_codes: tuple[str, ...]
    """Code Values of View Code Sequence (0054,0220)."""

    laterality: str
    """Image Laterality (0020,0062), else Laterality (0020,0060)."""

    row_direction: str
    """First value of Patient Orientation (0020,0020): A or P in a lateral view."""

    presentation_intent: str
    """Presentation Intent Type (0008,0068)."""

    photometric: str
    """Photometric Interpretation (0028,0004)."""

    rows: int
    """Rows (0028,0010); 0 where absent."""

    columns: int
    """Columns (0028,0011); 0 where absent."""

    frames: int
    """Number of Frames (0028,0008); 1 where absent."""

    samples: int
    """Samples per Pixel (0028,0002)."""

    bits_allocated: int
    """Bits Allocated (0028,0100)."""

    bits_stored: int
    """Bits Stored (0028,0101)."""

    high_bit: int
    """High Bit (0028,0102)."""

    signed: bool
    """Pixel Representation (0028,0103) is 1."""

    spacing: tuple[float, float] | None
    """Between rows and between columns in millimetres: Pixel Spacing (0028,0030), else
    Imager Pixel Spacing (0018,1164), which is measured at the detector."""

    phantom: bool = False
    """Whether Manufacturer (0008,0070) says that it is a phantom that this project drew."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Header":
        """Build a header from JSON values, in which tuples have become lists."""
        values: dict[str, Any] = dict(data)
        for name, value in data.items():
            if isinstance(value, list):
                values[name] = tuple(value)
        return cls(**values)


def anatomy_words(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the anatomy words in free text, sorted; nothing else of the text."""
    words = {word for text in texts for word in re.findall(r"[A-Z]+", text.upper())}
    return tuple(sorted(words & (CHEST | ELSEWHERE)))


def check_scope(header: Header) -> None:
    """Accept one frontal chest radiograph made for viewing; unstated attributes are accepted.

    Order: modality, intent, number of frames, region (coded, then body part, then descriptions),
    view (position, code, orientation).

    Raises:
        OutOfScopeError: If the header says otherwise; the message says what it said.
    """
    _check_modality(header)
    if header.presentation_intent == "FOR PROCESSING":
        raise OutOfScopeError(
            "Presentation Intent Type is FOR PROCESSING: raw detector data; "
            "send the image made FOR PRESENTATION"
        )
    check_frames(header)
    _check_region(header)
    _check_view(header)


def check_frames(header: Header) -> None:
    """Refuse an image of several frames.

    Raises:
        OutOfScopeError: If there are several.
    """
    if header.frames > 1:
        raise OutOfScopeError(
            f"Number of Frames is {header.frames}; a chest radiograph has one: send single images"
        )


def unstated(header: Header | None) -> tuple[str, ...]:
    """Name what the gate took for granted: attributes that a header leaves out.

    Args:
        header: Of an accepted DICOM file; None for JPG and PNG, which have none.
    """
    if header is None:
        return ("no DICOM header: taken for a frontal chest radiograph",)
    notes = []
    if header.body_part in UNSTATED and not (header.region_codes or header.described):
        notes.append("body part not stated: taken for a chest")
    words = set(re.findall(r"[A-Z]+", header.view_position))
    if not words & {"AP", "PA"} and FRONTAL_CODES.isdisjoint(header.view_codes):
        notes.append("view not stated: taken for frontal")
    return tuple(notes)


def _check_modality(header: Header) -> None:
    """Require radiography by Modality, or where that is absent by SOP class."""
    modality = header.modality
    if modality in RADIOGRAPHY or (not modality and header.sop_class in RADIOGRAPH_CLASSES):
        return
    said = "absent" if not modality else modality if modality in MODALITIES else "not a listed term"
    raise OutOfScopeError(f"Modality is {said}; a chest radiograph is CR or DX")


def _check_region(header: Header) -> None:
    """Require the chest wherever the header names a body part."""
    if header.region_codes:
        if CHEST_CODES.isdisjoint(header.region_codes):
            raise OutOfScopeError("Anatomic Region Sequence codes a region other than the chest")
        return
    if header.body_part not in UNSTATED:
        part = re.sub("[^A-Z]", "", header.body_part)
        elsewhere = [word for word in ELSEWHERE if word in part]
        if any(word in part for word in CHEST) and not elsewhere:
            return
        said = max(elsewhere, key=len, default="a part other than the chest")
        raise OutOfScopeError(f"Body Part Examined is {said}; only the chest is in scope")
    if header.described and CHEST.isdisjoint(header.described):
        raise OutOfScopeError(
            f"Body Part Examined is absent and the description says {header.described[0]}; "
            "only the chest is in scope"
        )


def _check_view(header: Header) -> None:
    """Require a frontal view wherever the header names a view."""
    words = set(re.findall(r"[A-Z]+", header.view_position))
    for kind, terms in VIEWS.items():
        if said := sorted(words.intersection(terms)):
            raise OutOfScopeError(
                f"View Position is {said[0]} ({kind}); only frontal views (PA, AP) are in scope"
            )
    if words & {"AP", "PA"}:
        return
    if not LATERAL_CODES.isdisjoint(header.view_codes):
        raise OutOfScopeError("View Code Sequence codes a lateral view; only frontal are in scope")
    if FRONTAL_CODES.isdisjoint(header.view_codes) and header.row_direction[:1] in ("A", "P"):
        raise OutOfScopeError(
            "Patient Orientation runs front to back (lateral); only frontal views are in scope"
        )
