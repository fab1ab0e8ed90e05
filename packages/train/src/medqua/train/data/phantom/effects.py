"""What each cause does to a frontal radiograph, on top of the anatomy.

Cardiomegaly, an enlarged mediastinum, a fracture and the volume loss of an atelectasis act on the
anatomy itself and are told in `frontal`. A lung's depth of air, 0 to 1, comes in as `lungs`, by
side: -1 is the patient's right (image left).
"""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from medqua.train.data.phantom.canvas import Canvas, Plane, inside, plane
from medqua.train.data.phantom.causes import Cause
from medqua.train.data.phantom.frontal import Thorax

Lungs = Mapping[int, Plane]


def _spot(frame: Thorax, cause: Cause) -> tuple[float, float]:
    """Where a focal cause sits, inside the lung's middle."""
    px = cause.side * (0.26 + (0.62 * frame.half - 0.14) * cause.place[0])
    top, bottom = frame.apex + 0.24, min(frame.domes) - 0.10
    return px, top + (bottom - top) * cause.place[1]


def _effusion(canvas: Canvas, frame: Thorax, cause: Cause, lungs: Lungs) -> Plane:
    """Fluid from the costal angle up to a level that climbs at the wall (meniscus)."""
    u = canvas.x * cause.side
    bottom = frame.domes[0 if cause.side < 0 else 1]
    level = bottom + 0.06 - (0.10 + 0.42 * cause.severity)
    climb = 0.20 * np.clip((u - 0.55 * frame.half) / (0.45 * frame.half), 0, 1) ** 2
    fluid = inside(canvas.y - (level - climb), 0.05) * (u > 0.02)
    within = inside(frame.wall(canvas.y) + 0.02 - u, 0.03)
    return plane(fluid * within * (0.56 * lungs[cause.side] + 0.14))


def _pneumothorax(canvas: Canvas, frame: Thorax, cause: Cause, lungs: Lungs) -> Plane:
    """Air between wall and a lung drawn back: darker, without vessels, behind a fine edge."""
    u = canvas.x * cause.side
    gap = 0.08 + 0.20 * cause.severity
    upper = np.clip((canvas.y - frame.apex) / 1.0, 0, 1)
    edge = frame.wall(canvas.y) - gap * (1.15 - 0.75 * upper)
    roof = frame.apex + 0.06 + 0.7 * gap
    lung = np.minimum(inside(edge - u, 0.012), inside(canvas.y - roof, 0.03))
    free = (1 - lung) * (u > 0) * np.clip(lungs[cause.side] * 3, 0, 1)
    line = np.exp(-(((edge - u) / 0.012) ** 2)) * (canvas.y > roof) * (lungs[cause.side] > 0.05)
    squeezed = 0.06 * (1 + cause.severity) * lung * lungs[cause.side]
    return plane(-0.16 * free + 0.10 * line + squeezed)


def _blob(canvas: Canvas, frame: Thorax, cause: Cause, size: float, ragged: float) -> Plane:
    """A rounded region with a ragged edge, 0 to 1."""
    px, py = _spot(frame, cause)
    r = ((canvas.x - px) / size) ** 2 + ((canvas.y - py) / (1.2 * size)) ** 2
    return inside(1 - r + ragged * canvas.texture(cause.seed, 0.10), 0.7)


def _consolidation(canvas: Canvas, frame: Thorax, cause: Cause, lungs: Lungs) -> Plane:
    """A lobe's part without air: dense, with the bronchi still dark in it."""
    region = _blob(canvas, frame, cause, 0.13 + 0.09 * cause.severity, 0.35)
    px, py = _spot(frame, cause)
    tubes = [
        np.array(
            [
                (px - cause.side * 0.12, py - 0.08 + 0.05 * k),
                (px + cause.side * 0.10, py + 0.09 * k - 0.06),
            ]
        )
        for k in range(3)
    ]
    bronchi = canvas.lines(tubes, 0.016, 0.005)
    return plane(region * (0.44 - 0.20 * bronchi) * np.sqrt(lungs[cause.side]))


def _pneumonia(canvas: Canvas, frame: Thorax, cause: Cause, lungs: Lungs) -> Plane:
    """Patchy filling over a wider region."""
    region = _blob(canvas, frame, cause, 0.20 + 0.10 * cause.severity, 0.3)
    patches = inside(canvas.texture(cause.seed + 1, 0.05) + 0.3, 0.8)
    return plane(region * (0.14 + 0.34 * patches) * np.sqrt(lungs[cause.side]))


def _opacity(canvas: Canvas, frame: Thorax, cause: Cause, lungs: Lungs) -> Plane:
    """Haze that does not say what it is."""
    region = _blob(canvas, frame, cause, 0.20 + 0.10 * cause.severity, 0.2)
    return plane(0.26 * region * np.sqrt(lungs[cause.side]))


def _lesion(canvas: Canvas, frame: Thorax, cause: Cause, lungs: Lungs) -> Plane:
    """A round nodule or mass with a sharp edge."""
    px, py = _spot(frame, cause)
    size = 0.045 + 0.055 * cause.severity
    r = 1 - ((canvas.x - px) / size) ** 2 - ((canvas.y - py) / size) ** 2
    return plane(0.42 * np.sqrt(np.clip(r, 0, 1)))


def _atelectasis(canvas: Canvas, frame: Thorax, cause: Cause, lungs: Lungs) -> Plane:
    """Plate-like bands above a raised diaphragm."""
    base = frame.domes[0 if cause.side < 0 else 1]
    bands = [
        np.array(
            [
                (cause.side * 0.20, base - 0.07 - lift),
                (cause.side * (frame.half - 0.10), base - 0.16 - lift + 0.10 * cause.place[0]),
            ]
        )
        for lift in (0.0, 0.09)[: 1 + (cause.severity > 0.5)]
    ]
    plate = canvas.lines(bands, 0.030 + 0.025 * cause.severity, 0.008)
    haze = np.exp(-(((canvas.y - base) / 0.16) ** 2)) * 0.14
    return plane((0.34 * plate + haze) * np.sqrt(lungs[cause.side]))


def _edema(canvas: Canvas, frame: Thorax, cause: Cause, lungs: Lungs) -> Plane:
    """Haze around both hila and short septal lines at the bases."""
    x, y = canvas.x, canvas.y
    wings = np.exp(-(((np.abs(x) - 0.24) / 0.19) ** 2) - ((y - 0.86) / 0.30) ** 2)
    mottle = 1 + 0.35 * canvas.texture(cause.seed, 0.045)
    septa = [
        np.array([(s * (frame.half - 0.02), h), (s * (frame.half - 0.10), h + 0.005)])
        for s in (-1, 1)
        for h in np.linspace(min(frame.domes) - 0.20, min(frame.domes) - 0.02, 5)
    ]
    lines = canvas.lines(septa, 0.010, 0.003)
    air = np.maximum(lungs[-1], lungs[1])
    strength = 0.18 + 0.24 * cause.severity
    return plane((strength * wings * mottle + 0.14 * lines) * np.sqrt(air))


def _pleural_other(canvas: Canvas, frame: Thorax, cause: Cause, lungs: Lungs) -> Plane:
    """A thickened pleura along the lateral wall, with a calcified plaque."""
    u = canvas.x * cause.side
    depth = 0.045 + 0.05 * cause.severity
    rind = inside(u - frame.wall(canvas.y) + depth, 0.015) * inside(
        frame.wall(canvas.y) + 0.02 - u, 0.015
    )
    along = inside(canvas.y - frame.apex - 0.25, 0.1) * inside(
        max(frame.domes) + 0.1 - canvas.y, 0.1
    )
    patches = 0.30 + 0.10 * canvas.texture(cause.seed, 0.06)
    return plane(rind * along * patches)


def devices(canvas: Canvas, frame: Thorax, cause: Cause) -> Plane:
    """One to three of: tracheal tube, central line, pacemaker, electrodes."""
    rng = np.random.default_rng(cause.seed)
    kinds = rng.permutation(4)[: 1 + int(rng.integers(0, 3))]
    out = np.zeros(canvas.shape, np.float32)
    t = np.linspace(0, 1, 30)
    if 0 in kinds:
        tube = np.stack([-0.01 + 0.01 * np.sin(3 * t), 0.66 * t], axis=1)
        out += 0.30 * canvas.lines([tube], 0.016) + 0.14 * canvas.lines([tube], 0.045)
    if 1 in kinds:
        path = np.stack(
            [-0.42 + 0.34 * np.sin(t * np.pi / 2), frame.apex - 0.12 + 0.70 * t**1.8], axis=1
        )
        out += 0.40 * canvas.lines([path], 0.020)
    if 2 in kinds:
        side, px, py = cause.side, cause.side * 0.52, frame.apex + 0.24
        box = np.array(
            [
                (px - 0.12, py - 0.09),
                (px + 0.12, py - 0.09),
                (px + 0.12, py + 0.10),
                (px - 0.12, py + 0.10),
            ]
        )
        lead = np.stack(
            [
                px - side * 0.1 + (0.16 - px + side * 0.1) * t,
                py - 0.06 * np.sin(2 * t) + (1.1 - py) * t**2,
            ],
            axis=1,
        )
        out += 0.9 * canvas.area([box], 0.008) + 0.40 * canvas.lines([lead], 0.018)
    if 3 in kinds:
        for _ in range(3):
            ex, ey = rng.uniform(-0.6, 0.6), rng.uniform(frame.apex + 0.1, 1.3)
            r = (canvas.x - ex) ** 2 + (canvas.y - ey) ** 2
            out += plane(0.55 * (r < 0.028**2))
            wire = np.stack(
                [ex + (rng.uniform(-1, 1) - ex) * t, ey + 0.9 * t + 0.1 * np.sin(4 * t)], axis=1
            )
            out += 0.30 * canvas.lines([wire], 0.012)
    return out


EFFECTS: Final[Mapping[str, Callable[[Canvas, Thorax, Cause, Lungs], Plane]]] = {
    "Atelectasis": _atelectasis,
    "Consolidation": _consolidation,
    "Edema": _edema,
    "Lung Lesion": _lesion,
    "Lung Opacity": _opacity,
    "Pleural Effusion": _effusion,
    "Pleural Other": _pleural_other,
    "Pneumonia": _pneumonia,
    "Pneumothorax": _pneumothorax,
}
"""Finding -> what its cause adds to the attenuation; the others act on anatomy itself."""
