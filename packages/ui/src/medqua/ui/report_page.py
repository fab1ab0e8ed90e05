"""A report of one page: picture, findings, what made them, and that it is for research only."""

from datetime import UTC, datetime
from io import BytesIO

import numpy as np
from fpdf import FPDF
from PIL import Image

from medqua.ui.findings import Reading

MARK = "RESEARCH USE ONLY. NOT A MEDICAL DEVICE, NOT FOR DIAGNOSIS."
MOST_ROWS = 30
SIDE = 96.0
"""Of the picture, in millimetres."""


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
    pdf.image(
        levels, 10, top, levels.width * scale, levels.height * scale,
        alt_text="The radiograph that the findings are of",
    )  # fmt: skip
    _facts(pdf, 112.0, float(top), facts | reading.provenance)
    pdf.set_xy(10, top + SIDE + 4)
    _table(pdf, reading)
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


def _facts(pdf: FPDF, x: float, y: float, facts: dict[str, str]) -> None:
    for name, value in facts.items():
        pdf.set_xy(x, y)
        pdf.set_font("Helvetica", "B", 9)
        pdf.cell(0, 4, _latin(name), new_x="LEFT", new_y="NEXT")
        pdf.set_font("Helvetica", "", 9)
        pdf.multi_cell(88, 4, _latin(value)[:160])
        y = pdf.get_y() + 1


def _table(pdf: FPDF, reading: Reading) -> None:
    if reading.refusal:
        pdf.set_font("Helvetica", "", 11)
        pdf.multi_cell(0, 6, _latin(f"No findings: {reading.refusal}"))
        return
    rows = sorted(reading.rows, key=lambda row: -row.probability)[:MOST_ROWS]
    height = min(6.5, 105 / (len(rows) + 1))
    pdf.set_font("Helvetica", "B", 10)
    for text, width in (("Finding", 80), ("Probability", 40), ("Classical only", 40)):
        pdf.cell(width, height, text, border="B", align="L" if width == 80 else "R")
    pdf.ln(height)
    pdf.set_font("Helvetica", "", 10)
    for row in rows:
        pdf.cell(80, height, _latin(row.label)[:48])
        pdf.cell(40, height, f"{100 * row.probability:.1f} %", align="R")
        classical = "" if row.classical is None else f"{100 * row.classical:.1f} %"
        pdf.cell(40, height, classical, align="R")
        pdf.ln(height)
    if len(reading.rows) > MOST_ROWS:
        pdf.cell(0, height, f"and {len(reading.rows) - MOST_ROWS} less likely ones")


def _latin(text: str) -> str:
    """Return a text in the letters that PDF's own fonts have."""
    return text.encode("latin-1", "replace").decode("latin-1")
