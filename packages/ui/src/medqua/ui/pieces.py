"""Parts of the page that are written as HTML: every value of a file or a model is escaped."""

from collections.abc import Sequence
from html import escape
from typing import Any

VIEWER = '<iframe id="viewer" src="/viewer/index.html" title="Image viewer"></iframe>'

MASK = "••••••"
"""Shown in place of a masked value."""

HELP = """
**Open** DICOM, JPG or PNG files, or a ZIP of them: drop them on the picture or on *Open files*.
A file that cannot be opened is listed with the reason; the others are not touched.

**Window and level**: drag on the picture. The list beside the tools has the file's own windows
and VOI LUTs. Press `?` in the picture for all keys; Tab goes there, and the arrow keys in
*Studies* change the study.

**Lengths** say what they rest on: Pixel Spacing, or the detector's (Imager Pixel Spacing), which
makes what lies in the patient look larger than it is. Without either they are in pixels.

**Header**: values that may identify the patient are masked. *Reveal* shows them and is written
to the audit log.

**Files** stay in a private folder of the server and are deleted when the last tab is closed, with
*Close all studies*, and by age.

Research use only. Not a medical device, not for diagnosis.
"""


def of_study(name: str, html: str) -> str:
    """Mark HTML as being of one study: the page hides it while another one is in view."""
    return f'<div data-study="{escape(name)}">{html}</div>'


def no_findings(sentence: str) -> str:
    """Say why there are no findings."""
    return f'<p class="quiet">{escape(sentence)}</p>'


def tag_table(rows: Sequence[dict[str, Any]], look: str, *, revealed: bool) -> str:
    """Show a header, personal values masked unless revealed; masked ones are never searched.

    Args:
        rows: As told by `medqua.core.vision.tags`.
        look: What tag, name or shown value must hold; empty for all.
        revealed: Show personal values.
    """
    if not rows:
        return no_findings("A JPG or PNG has no header.")
    wanted, lines = look.casefold().strip(), []
    for row in rows:
        masked = row["personal"] and not revealed
        value = "" if masked else row["value"]
        if wanted not in f"{row['tag']} {row['name']} {value}".casefold():
            continue
        level = f"<i>{'&rsaquo; ' * row['level']}</i>" if row["level"] else ""
        kind = ' class="personal"' if row["personal"] else ""
        shown = MASK if masked else value
        lines.append(
            f'<tr{kind}><td title="{escape(row["vr"])}">{level}{escape(row["tag"])}</td>'
            f'<th scope="row">{escape(row["name"])}</th><td>{escape(shown)}</td></tr>'
        )
    count = f'<p class="quiet" role="status">{len(lines)} of {len(rows)} elements</p>'
    head = "<thead><tr><th>Tag</th><th>Name</th><th>Value</th></tr></thead>"
    return f"{count}<table>{head}<tbody>{''.join(lines)}</tbody></table>"
