"""What the list says of a study, and which one a page begins with."""

import pytest

from medqua.ui.findings import Reading, Row
from medqua.ui.worklist import called


def row(label: str, probability: float, call: str) -> Row:
    return Row(label, probability, None, call)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (
            [
                ("Edema", 0.9, "likely"),
                ("Pneumonia", 0.95, "likely"),
                ("Fracture", 0.99, "unlikely"),
            ],
            ("likely: Pneumonia 95 % and 1 more", 2),
        ),
        ([("Edema", 0.4, "uncertain")], ("too uncertain to call: Edema 40 %", 1)),
        ([("No Finding", 0.9, "likely"), ("Edema", 0.1, "unlikely")], ("nothing is likely", 0)),
        ([("Support Devices", 0.9, "likely")], ("nothing is likely", 0)),
        ([("Edema", 1.0, "not judged")], ("not judged", 0)),
    ],
)
def test_what_is_called_is_named_and_makes_a_study_urgent(rows, told):
    reading = Reading(tuple(row(*one) for one in rows), "", (), {}, 0.0)
    assert called(reading) == told
