"""Whose picture it is and when it was taken, in lines for the picture's corner."""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from medqua.ui.pieces import MASK
from medqua.ui.studies import Session, Study


def identity(session: Session, study: Study, dates: Sequence[str] | None = None) -> dict[str, Any]:
    """Return what stands in the corner of a picture; personal values masked as in the header.

    Args:
        session: Whose study it is.
        study: What is shown.
        dates: Study Dates of the patient's studies that are open, sorted, where they are known.

    Returns:
        `study`, its name; `lines`: the patient's name, the study's date and its place in time
        among the studies of the patient that are open. The latest is *current*, others are *prior*.
    """
    if dates is None:
        opened = list(session.studies.values())
        dates = sorted(one.date for one in opened if one.patient == study.patient)
    values: Mapping[str, tuple[str, bool]] = study.shown
    revealed = study.name in session.revealed
    lines = []
    for keyword in ("name", "date"):
        value, personal = values.get(keyword, ("", False))
        if not value:
            lines.append(f"{keyword} not stated")
        else:
            lines.append(f"{keyword} {MASK}" if personal and not revealed else value)
    return {"study": study.name, "lines": [*lines, _when(study, dates)]}


def _when(study: Study, dates: Sequence[str]) -> str:
    """Say whether a study is the latest of its patient that is open, and how far before it."""
    if not study.patient:
        return ""
    own, latest = _day(study.date), _day(dates[-1]) if dates else None
    if own is None or latest is None:
        return "current" if len(dates) < 2 else "current or prior: not known"
    days = (latest - own).days
    if days <= 0:
        return "current"
    return f"prior, {days} {'day' if days == 1 else 'days'} before"


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text.replace(".", "-") if "." in text else text)
    except ValueError:
        return None
