"""The labeller reads from every phantom report the labels that it was written from."""

import numpy as np
import pytest

from medqua.core.findings.labels import CHEXPERT_NAMES
from medqua.train.data.phantom.causes import draw_patient, labels, next_study
from medqua.train.data.phantom.wording import report
from medqua.train.reports.labeller import UNMENTIONED, label_text, label_texts
from medqua.train.reports.read import sections


def test_every_phantom_report_gives_its_labels_back():
    seen: set[tuple[str, int]] = set()
    for seed in range(500):
        rng = np.random.default_rng(seed)
        patient = draw_patient(rng)
        if seed % 3 == 0:
            patient = next_study(patient, rng)
        truth = labels(patient.causes, rng)
        parts = sections(report(truth, patient.causes, rng))
        expected = {n: UNMENTIONED if v is None else int(v) for n, v in truth.items()}
        assert label_text(parts["findings"]) == expected
        assert label_text(f"{parts['findings']} {parts['impression']}") == expected
        seen |= set(expected.items())
    for name in set(CHEXPERT_NAMES) - {"No Finding", "Support Devices"}:
        assert {(name, value) for value in (1, 0, -1, UNMENTIONED)} <= seen


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("No pleural effusion or pneumothorax.", "Pneumothorax", 0),
        ("No effusion, but a small pneumothorax.", "Pneumothorax", 1),
        ("No effusion, but a small pneumothorax.", "Pleural Effusion", 0),
        ("Pneumonia cannot be excluded.", "Pneumonia", -1),
        ("No edema. Mild edema is seen.", "Edema", 1),
        ("NO ACUTE CARDIOPULMONARY\nPROCESS.", "No Finding", 1),
        ("The heart is enlarged", "Cardiomegaly", 1),
        ("", "Edema", UNMENTIONED),
    ],
)
def test_denial_and_doubt_end_with_their_clause(text: str, name: str, value: int):
    assert label_text(text)[name] == value


def test_several_texts():
    assert label_texts([]).shape == (0, 14)
    assert label_texts(["edema"])[0, CHEXPERT_NAMES.index("Edema")] == 1
