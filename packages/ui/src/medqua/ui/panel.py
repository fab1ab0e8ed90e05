"""The findings panel: what is likely, what is too uncertain to call, and what that rests on."""

from collections.abc import Sequence
from html import escape

from medqua.core.errors import DataError
from medqua.core.findings.labels import observation
from medqua.core.findings.validation import POINTS, Call, LabelValidation
from medqua.ui.findings import Reading, Row

RESEARCH = '<p class="research">Research use only, not for diagnosis.</p>'

GROUPS: tuple[tuple[Call, str, str], ...] = (
    ("likely", "Likely", "at or above the rule-in point"),
    ("uncertain", "Too uncertain to call", "between the screening and the rule-in point"),
    ("unlikely", "Unlikely", "below the screening point"),
    (
        "not judged",
        "Not judged",
        "too few validation images, with or without it or near its probability",
    ),
)
"""What a finding can be called, its title, and what that means."""

NOT_VALIDATED = (
    "This bundle holds no validation figures, so there are no intervals and no operating points, "
    "and nothing is called. Train it again to have them."
)

FOREIGN = (
    "Not judged: this model was trained on drawn phantoms alone and has seen no patient. Of this "
    "image its probabilities say nothing."
)

SERVICE = (
    "A service that runs an export gave these findings. It tells probabilities alone: no "
    "classical-only result, no intervals, no operating points, no overlays. Nothing is called. "
    "One that serves the bundle tells all of it."
)

KEY = """
<details class="quiet"><summary>What is shown</summary>
<p><b>Probability</b>: calibrated on the validation images (temperature scaling). The mark is the
model as trained, the ring the same model with its quantum path taken away; <b>Diff.</b> in
percentage points.</p>
<p><b>k of n</b>: of the n validation images with a similar probability, k had the finding. Shaded
and in brackets: the 95 % interval of that share (Wilson), images taken as independent. It is
an interval of what was seen in validation, not of this patient's risk.</p>
<p><b>S B R</b>: operating points, filled where the probability reaches them. S, screening: 95 %
sensitivity; R, rule-in: 95 % specificity; B, balanced: the best sum of both. All measured on
the validation images, which also chose the temperatures. Between S and R a finding is too
uncertain to call.</p></details>
"""


def findings(reading: Reading) -> str:
    """Show findings in groups, the likeliest first, with the classical-only result beside them."""
    if reading.refusal:
        return f'{RESEARCH}<p class="quiet">No findings: {escape(reading.refusal)}</p>'
    told = any(row.validated for row in reading.rows)
    both = any(row.classical is not None for row in reading.rows)
    head = "<th>Finding</th><th>Probability</th>"
    head += "<th>Classical only</th><th>Diff.</th>" if both else ""
    bodies = []
    if told:
        for call, title, meaning in GROUPS:
            rows = [r for r in reading.rows if r.validated and r.call == call]
            bodies.append(_group(rows, title, meaning, wide=both))
    else:
        bodies.append(f"<tbody>{''.join(_row(row) for row in _sorted(reading.rows))}</tbody>")
    notes = "".join(f"<li>{escape(note)}</li>" for note in reading.notes)
    facts = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
        for name, value in reading.provenance.items()
    )
    facts += f"<dt>Time</dt><dd>{reading.seconds:.2f} s</dd>"
    warning = f'<p class="foreign" role="note">{escape(FOREIGN)}</p>' if reading.foreign else ""
    if reading.foreign:
        legend = ""
    elif told:
        legend = KEY
    else:
        legend = f'<p class="quiet">{SERVICE if reading.service else NOT_VALIDATED}</p>'
    return (
        f'{RESEARCH}{warning}<table id="findings"><thead><tr>{head}</tr></thead>'
        f"{''.join(bodies)}</table>{legend}"
        + (f'<ul class="quiet">{notes}</ul>' if notes else "")
        + f'<dl class="facts">{facts}</dl>'
    )


def _sorted(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: -row.probability)


def _group(rows: Sequence[Row], title: str, meaning: str, *, wide: bool) -> str:
    if not rows:
        return ""
    span = 4 if wide else 2
    head = (
        f'<tr class="group"><th scope="rowgroup" colspan="{span}">{title} '
        f'<span class="quiet">{meaning}</span></th></tr>'
    )
    return f"<tbody>{head}{''.join(_row(row) for row in _sorted(rows))}</tbody>"


def _row(row: Row) -> str:
    label = row.validated
    name = escape(title(row.label))
    cells = (
        f'<th scope="row">{name}{_points(row.probability, label)}</th>'
        f"<td>{100 * row.probability:.1f} %{_track(row)}{_similar(row.probability, label)}</td>"
    )
    if row.classical is not None:
        difference = 100 * (row.probability - row.classical)
        sign = "0.0" if abs(difference) < 0.05 else f"{difference:+.1f}".replace("-", "−")
        cells += f"<td>{100 * row.classical:.1f} %</td><td>{sign}</td>"
    return f"<tr>{cells}</tr>"


def title(label: str) -> str:
    """Write a label in words; a user's own as it is."""
    try:
        return observation(label).title
    except DataError:
        return label


def _points(probability: float, label: LabelValidation | None) -> str:
    """Operating points as small marks, filled where the probability reaches them."""
    if label is None or not label.points:
        return ""
    marks = []
    for name in POINTS:
        point = label.points[name]
        reached = probability >= point.threshold
        told = (
            f"{name}: {'reached' if reached else 'not reached'}. From {100 * point.threshold:.1f} "
            f"% on; sensitivity {100 * point.sensitivity:.0f} %, specificity "
            f"{100 * point.specificity:.0f} % in validation"
        )
        kind = "on" if reached else "off"
        marks.append(
            f'<span class="point {kind}" role="img" title="{told}" aria-label="{told}">'
            f"{name[0].upper()}</span>"
        )
    return f'<span class="points">{"".join(marks)}</span>'


def _similar(probability: float, label: LabelValidation | None) -> str:
    """How often the finding was there in validation images of similar probability."""
    if label is None:
        return ""
    band = label.band(probability)
    if band is None:
        return '<span class="similar">no validation image near</span>'
    low, high = (100 * share for share in band.interval)
    told = f"validation images from {100 * band.low:.0f} to {100 * band.high:.0f} %"
    count = f"{band.positives} of {band.images}"
    return f'<span class="similar" title="{told}">{count} ({low:.0f}–{high:.0f} %)</span>'


def _track(row: Row) -> str:
    """A line from 0 to 1 with the interval, both probabilities and the operating points."""
    parts = ['<rect class="whole" x="0" y="4" width="100" height="4"/>']
    band = row.validated.band(row.probability) if row.validated else None
    if band is not None:
        low, high = band.interval
        box = f'x="{100 * low:.1f}" y="3" width="{max(100 * (high - low), 1):.1f}" height="6"'
        parts.append(f'<rect class="band" {box}/>')
    for name in ("screening", "rule-in"):
        if row.validated and row.validated.points:
            at = min(100 * row.validated.points[name].threshold, 100)
            parts.append(f'<path class="cut" d="M{at:.1f} 0V12"/>')
    if row.classical is not None:
        parts.append(f'<circle class="without" cx="{100 * row.classical:.1f}" cy="6" r="3"/>')
    parts.append(f'<circle class="with" cx="{100 * row.probability:.1f}" cy="6" r="2.4"/>')
    return f'<svg class="track" viewBox="-3 0 106 12" aria-hidden="true">{"".join(parts)}</svg>'
