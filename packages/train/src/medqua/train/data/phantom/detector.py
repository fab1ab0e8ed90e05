"""From attenuation to stored pixels: Beer-Lambert, scatter, quanta, collimation, marker, bits."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter

from medqua.train.data.phantom.canvas import Canvas, Exposure, Plane, plane
from medqua.train.data.phantom.causes import Patient
from medqua.train.data.phantom.effects import EFFECTS, devices
from medqua.train.data.phantom.frontal import anatomy, thorax
from medqua.train.data.phantom.lateral import lateral

OPTICAL_DEPTH = 2.2
"""Natural logarithm of the beam's weakening by one unit of attenuation."""

SCATTER = 0.07
"""Share of quanta that arrive from elsewhere."""


@dataclass(frozen=True, kw_only=True)
class Storage:
    """How the pixels are stored."""

    bits: int
    """Bits Stored (0028,0101): 10, 12, 14 or 16."""
    photometric: str
    """`MONOCHROME1` or `MONOCHROME2`."""


def attenuation(patient: Patient, exposure: Exposure) -> Plane:
    """Sum of attenuation along each ray, `[H, W]`, not below 0."""
    canvas = Canvas(exposure)
    if exposure.view == "LATERAL":
        return plane(np.maximum(lateral(canvas, patient, exposure.inspiration), 0))
    frame = thorax(patient, exposure)
    out, lungs = anatomy(canvas, frame, patient, exposure.view)
    for name, cause in patient.causes.items():
        if name in EFFECTS:
            out += EFFECTS[name](canvas, frame, cause, lungs)
    if "Support Devices" in patient.causes:
        out += devices(canvas, frame, patient.causes["Support Devices"])
    return plane(np.maximum(out, 0))


def expose(patient: Patient, exposure: Exposure) -> Plane:
    """Take the image: logarithmic detector signal in [0, 1], bone bright.

    Noise, marker and collimation depend on the exposure's seed alone, never on a finding.
    """
    rng = np.random.default_rng(exposure.seed)
    primary = np.exp(-OPTICAL_DEPTH * attenuation(patient, exposure))
    beam = (1 - SCATTER) * primary + SCATTER * gaussian_filter(primary, 0.08 * exposure.width)
    quanta = np.maximum(beam, 1e-4)
    noisy = quanta + np.sqrt(quanta / (1000 * exposure.dose)) * rng.standard_normal(
        quanta.shape, dtype=np.float32
    )
    signal = -np.log(np.maximum(noisy, 2e-3)) / -np.log(2e-3)
    signal = np.maximum(signal, _marker(exposure, rng))
    shutter = rng.uniform(0, 0.03, 4) * (rng.random() < 0.5)
    top, bottom = int(shutter[0] * exposure.height), int(shutter[1] * exposure.height)
    left, right = int(shutter[2] * exposure.width), int(shutter[3] * exposure.width)
    inner = signal[top : exposure.height - bottom, left : exposure.width - right]
    out = np.full_like(signal, 1.0)
    out[top : exposure.height - bottom, left : exposure.width - right] = inner
    return plane(np.clip(out, 0, 1))


def store(signal: Plane, storage: Storage) -> npt.NDArray[np.uint16]:
    """Quantise a signal in [0, 1], bone bright, to stored pixels."""
    top = (1 << storage.bits) - 1
    stored = np.rint(signal * top).astype(np.uint16)
    return stored if storage.photometric == "MONOCHROME2" else (top - stored).astype(np.uint16)


def _marker(exposure: Exposure, rng: np.random.Generator) -> Plane:
    """The lead letter on the patient's left, as technologists place it."""
    image = Image.new("L", (exposure.width, exposure.height))
    size = max(exposure.width // 16, 8)
    left, top = rng.uniform(0.84, 0.91), rng.uniform(0.04, 0.14)
    ImageDraw.Draw(image).text(
        (left * exposure.width, top * exposure.height),
        "L",
        fill=int(rng.uniform(190, 250)),
        font=ImageFont.load_default(size),
    )
    return plane(np.asarray(image) / 255)
