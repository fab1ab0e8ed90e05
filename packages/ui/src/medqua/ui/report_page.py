"""A report of one page: picture, overlay, findings, what made them, and that it is for research."""

from datetime import UTC, datetime
from io import BytesIO

import numpy as np
from fpdf import FPDF
from PIL import Image

from medqua.ui.findings import Reading
from medqua.ui.overlay import lay_routed, routed_colours
from medqua.ui.panel import FOREIGN

MARK = "RESEARCH USE ONLY. NOT A MEDICAL DEVICE, NOT FOR DIAGNOSIS."
MOST_ROWS = 30
LEFT, SIDE, GAP = 10.0, 92.0, 6.0
"""Margin of the page, longest side of a picture, and room between two, in millimetres."""
SWATCHES = 30.0
"""Width of the legend's colours, in millimetres."""


def draw_report(picture: np.ndarray, reading: Reading, facts: dict[str, str]) -> bytes:
    """Write a report as PDF, A4.

    Args:
        picture: Grey levels `[H, W]` float32 in [0, 1].
        reading: What the model says.
        facts: What identifies the image, by name; no patient data.
    """
    pdf = FPDF(format="A4")
    pdf.set_auto_page_break(False)
    pdf.set_title("MedQua: findings, research use only")
    pdf.set_lang("en")
    pdf.add_page()
    _banner(pdf)
    pdf.set_font("Helvetica", "B", 16)
    pdf.cell(0, 10, "MedQua findings", new_x="LMARGIN", new_y="NEXT")
    top = pdf.get_y() + 1
    levels = Image.fromarray((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8))
    levels.thumbnail((1400, 1400))
    scale = SIDE / max(levels.size)
    width, height = levels.width * scale, levels.height * scale
    told = "The radiograph that the findings are of"
    pdf.image(levels, LEFT, top, width, height, alt_text=told)
    routes = reading.routes
    if routes is not None and routes.layers and reading.image is not None:
        size = picture.shape[0], picture.shape[1]
        laid = lay_routed(np.asarray(levels), size, routes, reading.image)
        beside = LEFT + width + GAP
        told = "The same, coloured where tokens were routed to the quantum path"
        pdf.image(Image.fromarray(laid), beside, top, width, height, alt_text=told)
        pdf.set_xy(beside, top + height + 1)
        _legend(pdf, len(routes.layers))
    top += height + 7
    below = _facts(pdf, top, facts | reading.provenance)
    pdf.set_xy(LEFT, below + 2)
    _table(pdf, reading, 297 - 36 - below)
    pdf.set_y(-34)
    pdf.set_font("Helvetica", "", 8)
    notes = "; ".join(reading.notes)
    if notes:
        pdf.multi_cell(0, 4, _latin(f"Notes: {notes}")[:400], new_x="LMARGIN", new_y="NEXT")
    told = "Calibrated probabilities. Classical only: the same model without its quantum path. "
    pdf.multi_cell(0, 4, told + f"Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.")
    pdf.set_y(-18)
    _banner(pdf)
    stream = BytesIO()
    pdf.output(stream)
    return stream.getvalue()


def _banner(pdf: FPDF) -> None:
    pdf.set_fill_color(255, 224, 138)
    pdf.set_text_color(36, 26, 0)
    pdf.set_font("Helvetica", "B", 11)
    pdf.cell(0, 9, MARK, align="C", fill=True, new_x="LMARGIN", new_y="NEXT")
    pdf.set_text_color(0)


def _legend(pdf: FPDF, layers: int) -> None:
    """Draw the colour of every number of adapters, left to right."""
    pdf.set_font("Helvetica", "", 8)
    told = "Routed to the quantum path by 1 "
    pdf.cell(pdf.get_string_width(told) + 1, 4, told)
    step = min(5.0, SWATCHES / layers)
    for colour in routed_colours(layers)[1:]:
        pdf.set_fill_color(*(int(part) for part in colour))
        pdf.cell(step, 4, "", fill=True)
    pdf.cell(0, 4, f" {layers} adapters" if layers > 1 else " adapter")


def _facts(pdf: FPDF, top: float, facts: dict[str, str]) -> float:
    """Write facts in two columns and return where they end."""
    columns = LEFT, LEFT + SIDE + GAP
    ends = [top, top]
    for name, value in facts.items():
        column = 0 if ends[0] <= ends[1] else 1
        pdf.set_xy(columns[column], ends[column])
        pdf.set_font("Helvetica", "B", 8)
        pdf.cell(0, 3.6, _latin(name), new_x="LEFT", new_y="NEXT")
        pdf.set_font("Helvetica", "", 8)
        pdf.multi_cell(SIDE, 3.6, _latin(value)[:160])
        ends[column] = pdf.get_y() + 0.8
    return max(ends)


def _table(pdf: FPDF, reading: Reading, room: float) -> None:
    """Write the findings, in so many millimetres."""
    if reading.refusal:
        pdf.set_font("Helvetica", "", 11)
        pdf.multi_cell(0, 6, _latin(f"No findings: {reading.refusal}"))
        return
    if reading.foreign:
        pdf.set_font("Helvetica", "B", 10)
        pdf.multi_cell(0, 5, FOREIGN, new_x="LMARGIN", new_y="NEXT")
        room -= 12
    rows = sorted(reading.rows, key=lambda row: -row.probability)[:MOST_ROWS]
    height = min(6.5, room / (len(rows) + 2))
    pdf.set_font("Helvetica", "B", 10)
    widths = {"Finding": 70, "Call": 40, "Probability": 40, "Classical only": 40}
    for text, width in widths.items():
        pdf.cell(width, height, text, border="B", align="L" if width == 70 else "R")
    pdf.ln(height)
    pdf.set_font("Helvetica", "", 10)
    for row in rows:
        pdf.cell(70, height, _latin(row.label)[:40])
        pdf.cell(40, height, row.call, align="R")
        pdf.cell(40, height, f"{100 * row.probability:.1f} %", align="R")
        classical = "" if row.classical is None else f"{100 * row.classical:.1f} %"
        pdf.cell(40, height, classical, align="R")
        pdf.ln(height)
    if len(reading.rows) > MOST_ROWS:
        pdf.cell(0, height, f"and {len(reading.rows) - MOST_ROWS} less likely ones")


def _latin(text: str) -> str:
    """Return a text in the letters that PDF's own fonts have."""
    return text.encode("latin-1", "replace").decode("latin-1")
