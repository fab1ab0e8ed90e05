"""A contact sheet: one phantom without findings, then the same with each cause switched on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from medqua.core.vision.recipe import mimic_cxr_jpg
from medqua.train.data.phantom.canvas import Exposure
from medqua.train.data.phantom.causes import PREVALENCE, Patient, draw_cause, draw_patient
from medqua.train.data.phantom.detector import Storage, expose, store

COLUMNS = 5
"""Pictures in a row."""


def contact_sheet(path: Path, *, seed: int = 0, size: int = 240) -> None:
    """Draw counterfactual pairs: equal patients and exposures, one cause apart.

    Args:
        path: PNG file to write.
        seed: Seed of the patient.
        size: Columns of each picture, in pixels.
    """
    rng = np.random.default_rng(seed)
    healthy = replace(draw_patient(rng), causes={})
    pictures = [
        ("No Finding, PA", _picture(healthy, "PA", size)),
        ("No Finding, AP", _picture(healthy, "AP", size)),
        ("No Finding, lateral", _picture(healthy, "LATERAL", size)),
    ]
    for finding in sorted(PREVALENCE):
        cause = replace(draw_cause(rng), severity=0.75)
        patient = replace(healthy, causes={finding: cause})
        pictures.append((finding, _picture(patient, "PA", size)))
    while len(pictures) % COLUMNS:
        patient = draw_patient(rng)
        pictures.append((", ".join(patient.causes) or "No Finding", _picture(patient, "PA", size)))
    caption = ImageFont.load_default(max(size // 17, 9))
    height, strip = pictures[0][1].shape[0], size // 10
    rows = len(pictures) // COLUMNS
    sheet = Image.new("L", (COLUMNS * size, rows * (height + strip)), 255)
    pen = ImageDraw.Draw(sheet)
    for i, (title, picture) in enumerate(pictures):
        left, top = i % COLUMNS * size, i // COLUMNS * (height + strip)
        sheet.paste(Image.fromarray(picture), (left, top + strip))
        pen.text((left + 4, top + 2), title[:36], fill=0, font=caption)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, "PNG", optimize=True)


def _picture(patient: Patient, view: str, size: int) -> npt.NDArray[np.uint8]:
    exposure = Exposure(
        view=view,
        height=round(1.12 * size),
        width=size,
        shift=(0.0, 0.0),
        tilt=0.0,
        inspiration=0.92 if view == "AP" else 1.0,
        dose=20.0,
        seed=1,
    )
    storage = Storage(bits=12, photometric="MONOCHROME2")
    stored = store(expose(patient, exposure), storage)
    return mimic_cxr_jpg(stored, storage.photometric, bits_stored=storage.bits)
