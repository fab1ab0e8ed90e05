"""A lateral chest radiograph of a phantom, patient facing image left.

It exists because a MIMIC study has one: training on frontal views leaves it out. It shows the
sagittal outline, the heart, both domes, and of the causes those that a side view shows.
"""

import numpy as np

from medqua.train.data.phantom.canvas import Canvas, Curve, Plane, inside
from medqua.train.data.phantom.causes import Patient


def lateral(canvas: Canvas, patient: Patient, inspiration: float) -> Plane:
    """Attenuation of a lateral view.

    Args:
        canvas: Coordinates of the exposure.
        patient: Anatomy and causes.
        inspiration: Height of the lungs relative to full inspiration.

    Returns:
        `[H, W]` float32, which may fall below 0.
    """
    x, y = canvas.x, canvas.y
    apex, floor = patient.apex, patient.apex + patient.lung * inspiration
    depth = 0.52 * patient.chest / 0.72
    v = np.clip((y - apex) / 0.8, 0, 1)
    front = -depth * (0.35 + 0.65 * v**0.7)
    back = depth * (0.75 + 0.25 * np.sin(np.pi * np.clip((y - apex) / 1.2, 0, 1)))
    skin = inside(x - front + 0.16 * patient.girth, 0.04) * inside(back + 0.20 - x, 0.04)
    out = 1.15 * skin * inside(y - 0.02, 0.2)
    dome = floor - 0.12 + 0.30 * np.clip((x + 0.1) / 0.6, -0.2, 1) ** 2
    across = np.clip((x - front) / np.maximum(back - front, 0.1), 0, 1)
    air = np.clip(4 * across * (1 - across), 0, 1) ** 0.5
    air = air * inside(y - apex, 0.12) * inside(dome - y, 0.03)
    out = out - 0.70 * air
    swollen = patient.causes.get("Cardiomegaly")
    size = 0.26 + (0.0 if swollen is None else 0.10 * swollen.severity)
    heart = 1 - ((x + 0.18) / size) ** 2 - ((y - floor + 0.34) / (1.15 * size)) ** 2
    out = out + 0.38 * np.sqrt(np.clip(heart, 0, 1))
    vertebrae = inside(0.075 - np.abs(x - back + 0.10), 0.03)
    out = out + vertebrae * (0.16 + 0.07 * np.cos(2 * np.pi * y / 0.14))
    t = np.linspace(0, 1, 16)
    ribs: list[Curve] = [
        np.stack([0.85 * depth - 1.3 * depth * t, apex + 0.12 * k + 0.30 * t], axis=1)
        for k in range(9)
    ]
    out = out + 0.06 * canvas.lines(ribs, 0.035, 0.008)
    out = out + 0.03 * canvas.texture(patient.seed + 2, 0.06) * air
    fluid = patient.causes.get("Pleural Effusion")
    if fluid is not None:
        level = dome - 0.08 - 0.35 * fluid.severity * np.clip((x + 0.2) / 0.5, 0, 1)
        out = out + 0.55 * inside(y - level, 0.05) * air
    for name in ("Consolidation", "Pneumonia", "Lung Opacity", "Lung Lesion"):
        cause = patient.causes.get(name)
        if cause is not None:
            px, py = -0.25 + 0.5 * cause.place[0], apex + 0.3 + 0.55 * cause.place[1]
            radius = 0.07 if name == "Lung Lesion" else 0.18
            spot = 1 - ((x - px) / radius) ** 2 - ((y - py) / radius) ** 2
            out = out + 0.30 * inside(spot, 0.6) * air
    return np.asarray(out, dtype=np.float32)
