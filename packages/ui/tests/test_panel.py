"""The findings panel says what the figures say, and what it does not know."""

import re

from medqua.core.findings.domain import UNJUDGED
from medqua.core.findings.validation import Band, LabelValidation, Point
from medqua.ui.findings import Reading, Row
from medqua.ui.panel import FOREIGN, NOT_VALIDATED, SERVICE, findings


def label(screening: float, balanced: float, rule_in: float) -> LabelValidation:
    """Twenty images with the finding and eighty without."""
    points = {
        "screening": Point(screening, 19, 1, 40, 40),
        "balanced": Point(balanced, 16, 4, 70, 10),
        "rule-in": Point(rule_in, 8, 12, 76, 4),
    }
    bands = (Band(0.0, 0.4, 60, 3), Band(0.4, 1.0, 40, 17))
    return LabelValidation(20, 80, bands, points)


def row(name: str, probability: float, classical: float, validated: LabelValidation) -> Row:
    return Row(name, probability, classical, validated.call(probability), validated)


ROWS = (
    row("Edema", 0.05, 0.06, label(0.1, 0.3, 0.6)),
    row("Pleural_Thickening", 0.45, 0.40, label(0.1, 0.3, 0.6)),
    row("Cardiomegaly", 0.91, 0.911, label(0.1, 0.3, 0.6)),
    row("Lung Lesion", 0.2, 0.2, LabelValidation(2, 98)),
    row("Pneumonia", 0.55, 0.5, label(0.1, 0.3, 0.6)),
)


def text(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", page))


def test_findings_are_grouped_sorted_and_judged():
    page = findings(Reading(ROWS, "", ("view not stated",), {"Bundle": "<b>"}, 1.5))
    told = text(page)
    names = ["Likely", "Cardiomegaly", "Too uncertain", "Pneumonia", "Pleural Thickening",
             "Unlikely", "Edema", "Not judged", "Lung Lesion"]  # fmt: skip
    places = [told.index(name) for name in names]
    assert places == sorted(places)
    assert told.startswith(" Research use only, not for diagnosis.")
    assert "91.0 %" in told
    assert "17 of 40 (29–58 %)" in told  # Wilson's interval of 17 in 40: 0.285 to 0.578
    assert "3 of 60 (2–14 %)" in told
    assert "+5.0" in told
    assert "−1.0" in told
    assert "&lt;b&gt;" in page
    assert "view not stated" in told


def test_points_are_filled_where_they_are_reached():
    page = findings(Reading(ROWS[4:], "", (), {}, 0.0))
    marks = re.findall(r'class="point (on|off)".*?>(S|B|R)<', page)
    assert marks == [("on", "S"), ("on", "B"), ("off", "R")]
    assert "sensitivity 95 %, specificity 50 % in validation" in page
    assert page.index("Too uncertain to call") < page.index("Pneumonia")


def test_without_validation_nothing_is_called():
    rows = (Row("Mine <x>", 0.4, None), Row("Edema", 0.7, None))
    page = findings(Reading(rows, "", (), {}, 0.0))
    assert NOT_VALIDATED in page
    assert page.index("Edema") < page.index("Mine &lt;x&gt;")
    for word in ("Likely", "uncertain to call<", 'class="point', "Classical"):
        assert word not in page


def test_what_a_service_does_not_tell_is_said():
    page = findings(Reading((Row("Edema", 0.7, None),), "", (), {}, 0.0, service=True))
    assert SERVICE in page
    assert NOT_VALIDATED not in page


def test_of_an_image_that_is_foreign_to_the_model_nothing_is_judged():
    rows = tuple(Row(one.label, one.probability, one.classical) for one in ROWS)
    page = findings(Reading(rows, "", (UNJUDGED,), {"Trained on": "drawn phantoms"}, 0.1))
    assert FOREIGN in page
    assert "drawn phantoms" in page
    for word in (">Likely", ">Unlikely", "uncertain to call<", 'class="point', NOT_VALIDATED):
        assert word not in page


def test_a_refusal_is_said():
    assert "No findings: It is a leg &amp; no chest" in findings(
        Reading((), "It is a leg & no chest", (), {}, 0.0)
    )
