"""What stands in the corner of a picture: whose it is, when, and whether it is the latest."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from medqua.ui.identity import identity
from medqua.ui.pieces import MASK
from medqua.ui.studies import Session, Sessions, Study


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    sessions = Sessions(tmp_path)
    session = sessions.get(sessions.begin())
    assert session is not None
    yield session
    sessions.close()


def add(session: Session, number: str, name: str, date: str) -> Study:
    told = {"(0010,0020)": number, "(0010,0010)": name, "(0008,0020)": date}
    rows = [
        {"tag": tag, "value": value, "level": 0, "personal": True}
        for tag, value in told.items()
        if value
    ]
    description = {
        "modality": "CR", "body_part": "", "view": "PA", "columns": 3, "rows": 2, "frames": 1,
        "tags": rows,
    }  # fmt: skip
    return session.add("x.dcm", b"content", np.zeros((1, 2, 3), np.int16), description)


def test_personal_values_are_masked_until_revealed(session: Session):
    study = add(session, "1", "Fictitious^Ada", "20300102")
    assert identity(session, study)["lines"] == [f"name {MASK}", f"date {MASK}", "current"]
    session.revealed.add(study.name)
    assert identity(session, study)["lines"] == ["Fictitious^Ada", "20300102", "current"]
    assert identity(session, study)["study"] == study.name


@pytest.mark.parametrize(
    ("dates", "told"),
    [
        (["20300102"], ["current"]),
        (["20300102", "20300201", "20300103"], ["prior, 30 days before", "current",
                                                "prior, 29 days before"]),
        (["20300201", "20300131"], ["current", "prior, 1 day before"]),
        (["20300201", "20300201"], ["current", "current"]),
        ([""], ["current"]),
        (["", "20300201"], ["current or prior: not known", "current"]),
        (["no date", "20300201"], ["current or prior: not known"] * 2),
    ],
)  # fmt: skip
def test_the_latest_study_of_a_patient_is_current(session: Session, dates, told):
    add(session, "2", "Other^Patient", "20310101")  # says nothing of the first one's
    studies = [add(session, "1", "Fictitious^Ada", date) for date in dates]
    assert [identity(session, study)["lines"][2] for study in studies] == told


def test_of_nobody_known_nothing_is_said(session: Session):
    add(session, "", "", "20310101")
    assert identity(session, add(session, "", "", ""))["lines"] == [
        "name not stated", "date not stated", "",
    ]  # fmt: skip
