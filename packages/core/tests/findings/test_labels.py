import pytest
from pydicom.sr.codedict import codes

from medqua.core.errors import DataError
from medqua.core.findings import (
    CHEXPERT,
    CHEXPERT_NAMES,
    CHEXPERT_TO_NIH,
    NIH,
    NIH_NAMES,
    NIH_TO_CHEXPERT,
    observation,
)


def test_chexpert_columns_are_those_of_mimic():
    """Header of mimic-cxr-2.0.0-chexpert.csv, as published on PhysioNet."""
    assert CHEXPERT_NAMES == (
        "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum",
        "Fracture", "Lung Lesion", "Lung Opacity", "No Finding", "Pleural Effusion",
        "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices",
    )  # fmt: skip


def test_nih_order_is_that_of_chestmnist():
    """medmnist.INFO["chestmnist"]["label"], keys 0 to 13."""
    published = [
        "atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia",
        "pneumothorax", "consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia",
    ]  # fmt: skip
    for name, short in zip(NIH_NAMES, published, strict=True):
        assert name.lower().startswith(short)


@pytest.mark.parametrize("known", sorted({*CHEXPERT, *NIH}, key=str), ids=lambda k: k.name)
def test_codes_are_well_formed(known):
    for code in (known.code, known.site):
        if code is None:
            continue
        assert code.scheme in ("SCT", "DCM")
        assert code.meaning
        if code.scheme == "SCT":
            assert verhoeff(code.value), f"{code.value} is no SNOMED CT identifier"


def verhoeff(number: str) -> bool:
    """Check digit of SNOMED CT identifiers (SNOMED CT Technical Implementation Guide, 6.3)."""
    dihedral = [[(i + j) % 5 if i < 5 and j < 5 else 0 for j in range(10)] for i in range(10)]
    for i in range(10):
        for j in range(10):
            a, b = (i % 5, i // 5), (j % 5, j // 5)
            turn = (a[0] - b[0]) % 5 if a[1] else (a[0] + b[0]) % 5
            dihedral[i][j] = turn + 5 * (a[1] ^ b[1])
    row, permutation = list(range(10)), []
    shift = [1, 5, 7, 6, 2, 8, 3, 0, 9, 4]
    for _ in range(8):
        permutation.append(row)
        row = [row[shift[k]] for k in range(10)]
    check = 0
    for position, digit in enumerate(reversed(number)):
        check = dihedral[check][permutation[position % 8][int(digit)]]
    return check == 0


def test_codes_that_dicom_has_are_those_of_dicom():
    """PS3.16, by way of pydicom's tables."""
    for ours, theirs in (
        (observation("Pneumothorax").code, codes.SCT.Pneumothorax),
        (observation("Pleural Effusion").code, codes.SCT.PleuralEffusion),
        (observation("Edema").code, codes.SCT.PulmonaryEdema),
        (observation("Lung Opacity").code, codes.DCM.Opacity),
        (observation("Lung Opacity").site, codes.SCT.Lung),
        (observation("Lung Lesion").code, codes.SCT.Lesion),
        (observation("Enlarged Cardiomediastinum").code, codes.SCT.Enlarged),
        (observation("Enlarged Cardiomediastinum").site, codes.SCT.Mediastinum),
    ):
        assert (ours.value, ours.scheme) == (theirs.value, theirs.scheme_designator)


def test_the_mappings_cover_and_agree():
    assert tuple(m.name for m in CHEXPERT_TO_NIH) == CHEXPERT_NAMES
    assert tuple(m.name for m in NIH_TO_CHEXPERT) == NIH_NAMES
    forth = {(m.name, m.other) for m in CHEXPERT_TO_NIH if m.relation == "exact"}
    back = {(m.other, m.name) for m in NIH_TO_CHEXPERT if m.relation == "exact"}
    assert forth == back
    assert len(forth) == 7
    for mapping in (*CHEXPERT_TO_NIH, *NIH_TO_CHEXPERT):
        assert (mapping.other is None) == (mapping.relation == "none")
        if mapping.relation == "exact":
            assert observation(mapping.name).code == observation(mapping.other).code


def test_other_spellings_are_known():
    assert observation("Airspace Opacity").name == "Lung Opacity"
    assert observation("Pleural_Thickening").title == "Pleural Thickening"
    with pytest.raises(DataError, match="did you mean 'Cardiomegaly'"):
        observation("Cardiomegally")
