"""Whose picture it is and when it was taken, in lines for the picture's corner."""

from collections.abc import Mapping
from datetime import date
from typing import Any

from medqua.ui.pieces import MASK
from medqua.ui.studies import Session, Study


def identity(session: Session, study: Study) -> dict[str, Any]:
    """Return what stands in the corner of a picture; personal values masked as in the header.

    Returns:
        `study`, its name; `lines`: the patient's name, the study's date and its place in time
        among the studies of the patient that are open. The latest is *current*, others are *prior*.
    """
    values: Mapping[str, tuple[str, bool]] = study.shown
    revealed = study.name in session.revealed
    lines = []
    for keyword, absent in (("name", "name not stated"), ("date", "date not stated")):
        value, personal = values.get(keyword, ("", False))
        lines.append(absent if not value else MASK if personal and not revealed else value)
    return {"study": study.name, "lines": [*lines, _when(session, study)]}


def _when(session: Session, study: Study) -> str:
    """Say whether a study is the latest of its patient that is open, and how far before it."""
    if not study.patient:
        return ""
    others = [one for one in list(session.studies.values()) if one.patient == study.patient]
    dates = [_day(one.date) for one in others]
    own, known = _day(study.date), [day for day in dates if day is not None]
    if own is None:
        return "current" if len(others) == 1 else "current or prior: not known"
    days = (max(known) - own).days
    if days == 0:
        return "current"
    return f"prior, {days} {'day' if days == 1 else 'days'} before"


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text.replace(".", "-") if "." in text else text)
    except ValueError:
        return None
