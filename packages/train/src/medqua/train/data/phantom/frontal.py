"""A frontal chest radiograph of a phantom: the anatomy as a sum of attenuation.

Attenuation is in units of the mediastinum of an average adult; `medqua.train.data.phantom.detector`
turns it into pixels. Geometry and exposure differ between PA and AP: nearer to the tube the heart
is magnified, the clavicles stand lower, and the scapulae cover the lungs.
"""

from dataclasses import dataclass

import numpy as np

from medqua.train.data.phantom.canvas import Canvas, Curve, Exposure, Plane, inside, plane
from medqua.train.data.phantom.causes import Cause, Patient

Lungs = dict[int, Plane]
"""Depth of air in each lung, 0 to 1, by side."""


@dataclass(frozen=True)
class Thorax:
    """The bony and lung outline of one patient in one exposure."""

    half: float
    """Half the inner width."""
    apex: float
    """Height of the apices."""
    domes: tuple[float, float]
    """Heights of the diaphragm's domes: image left, image right."""
    ctr: float
    """Cardiothoracic ratio as projected."""
    projection: float
    """1 on PA; above 1 the heart's magnification on AP."""

    def wall(self, y: Plane) -> Plane:
        """Inner chest wall: distance from the midline at each height."""
        v = np.clip((y - self.apex) / 0.9, 0, 1)
        return plane(self.half * (0.40 + 0.60 * (1 - (1 - v) ** 2.2) ** 0.8))

    def dome(self, u: Plane, side: int) -> Plane:
        """Height of the diaphragm at distance `u` from the midline, falling to the costal angle."""
        top = self.domes[0 if side < 0 else 1]
        w = (u - 0.48 * self.half) / (0.52 * self.half)
        return plane(top + 0.22 * np.abs(w) ** 2.4)


def thorax(patient: Patient, exposure: Exposure) -> Thorax:
    """Place the thorax: volume loss and poor inspiration raise the domes."""
    ap = exposure.view == "AP"
    height = patient.lung * exposure.inspiration
    right, left = patient.apex + height, patient.apex + height + 0.05
    collapse = patient.causes.get("Atelectasis")
    if collapse is not None:
        lift = 0.05 + 0.15 * collapse.severity
        right, left = (right - lift, left) if collapse.side < 0 else (right, left - lift)
    swollen = patient.causes.get("Cardiomegaly")
    ctr = patient.ctr + (0.0 if swollen is None else 0.07 + 0.15 * swollen.severity)
    return Thorax(patient.chest, patient.apex, (right, left), ctr, 1.08 if ap else 1.0)


def anatomy(canvas: Canvas, frame: Thorax, patient: Patient, view: str) -> tuple[Plane, Lungs]:
    """Attenuation of the anatomy, and the depth of air in each lung.

    Args:
        canvas: Coordinates of the exposure.
        frame: What `thorax` gave.
        patient: Anatomy and causes.
        view: `PA` or `AP`.

    Returns:
        Attenuation `[H, W]`, which may fall below 0, and the lungs by side (-1 image left, 1).
    """
    lungs = _lungs(canvas, frame)
    air = np.maximum(lungs[-1], lungs[1])
    out = _body(canvas, patient, frame) - 0.58 * air
    out += _vessels(canvas, patient) * air * _vessel_strength(patient)
    out += _mediastinum(canvas, patient)
    out += _heart(canvas, frame)
    out += _bones(canvas, patient, frame, view)
    out += _soft_parts(canvas, patient, frame)
    bubble = ((canvas.x - 0.42) / 0.13) ** 2 + ((canvas.y - frame.domes[1] - 0.13) / 0.06) ** 2
    out -= 0.20 * inside(1 - bubble, 0.5)
    return plane(out), lungs


def _body(canvas: Canvas, patient: Patient, frame: Thorax) -> Plane:
    x, y = canvas.x, canvas.y
    skin = frame.half + 0.10 + 0.06 * patient.girth
    shoulder = np.clip((y - 0.02) / 0.5, 0, 1)
    width = 0.26 + (skin + 0.35 - 0.26) * shoulder**0.7
    width = np.where(y > 0.55, skin + 0.35 * np.exp(-((y - 0.55) / 0.25)), width)
    r = np.clip(np.abs(x) / width, 0, 1.2)
    thick = np.sqrt(np.clip(1 - r**2.6, 0, 1)) * (0.86 + 0.14 * patient.girth)
    belly = 0.25 * np.clip((y - min(frame.domes)) / 0.6, 0, 1)
    return plane(thick * (1.0 + belly))


def _lungs(canvas: Canvas, frame: Thorax) -> dict[int, Plane]:
    """Depth of air in each lung, 0 to 1, by side."""
    x, y = canvas.x, canvas.y
    wall = frame.wall(y)
    out = {}
    for side in (-1, 1):
        u = x * side
        medial = 0.10 + 0.03 * np.clip(y - frame.apex, 0, 2)
        across = np.clip((u - medial) / np.maximum(wall - medial, 0.05), 0, 1)
        profile = np.clip(4 * across * (1 - across), 0, 1) ** 0.42
        cap = 1 - ((u - 0.36 * frame.half / 0.72) / 0.26) ** 2
        top = frame.apex + 0.30 * (1 - np.sqrt(np.clip(cap, 0, 1)))
        depth = profile * inside(y - top, 0.05) * inside(frame.dome(u, side) - y, 0.025)
        out[side] = plane(depth * (u > 0))
    return out


def _vessel_strength(patient: Patient) -> float:
    edema = patient.causes.get("Edema")
    return 0.16 + (0.0 if edema is None else 0.10 * edema.severity)


def _vessels(canvas: Canvas, patient: Patient) -> Plane:
    """Branching vessels from each hilum, wide at the root, none at the edge."""
    rng = np.random.default_rng(patient.seed)
    strokes: dict[int, list[Curve]] = {0: [], 1: [], 2: []}
    for side in (-1, 1):
        stack = [(side * 0.17, 0.80 - 0.03 * (side > 0), a, 0) for a in np.linspace(-1.2, 1.35, 8)]
        while stack:
            px, py, angle, order = stack.pop()
            length = (0.17, 0.15, 0.13)[order] * rng.uniform(0.75, 1.25)
            points = [(px, py)]
            for _ in range(4):
                angle += rng.normal(0, 0.10)
                px += side * np.cos(angle) * length / 4
                py += np.sin(angle) * length / 4
                points.append((px, py))
            strokes[order].append(np.array(points))
            if order < 2:
                stack += [(px, py, angle + rng.normal(s * 0.42, 0.12), order + 1) for s in (-1, 1)]
    tree = np.zeros(canvas.shape, np.float32)
    for order, width in enumerate((0.030, 0.018, 0.010)):
        tree += canvas.lines(strokes[order], width, 0.006) * (1.3, 1.0, 0.8)[order]
    hilum = np.exp(-(((np.abs(canvas.x) - 0.17) / 0.07) ** 2) - ((canvas.y - 0.80) / 0.11) ** 2)
    return plane(tree + 0.9 * hilum)


def _mediastinum(canvas: Canvas, patient: Patient) -> Plane:
    x, y = canvas.x, canvas.y
    wide = patient.causes.get("Enlarged Cardiomediastinum")
    extra = 0.0 if wide is None else 0.06 + 0.13 * wide.severity
    upper = np.exp(-(((y - 0.55) / 0.30) ** 2))
    half = 0.105 + extra * upper + 0.02 * np.clip(y - 0.6, 0, 1)
    band = inside(half - np.abs(x - 0.015), 0.035) * inside(y - 0.05, 0.3)
    knob = inside(1 - ((x - 0.10 - extra) / 0.085) ** 2 - ((y - 0.56) / 0.085) ** 2, 0.5)
    trachea = inside(0.035 - np.abs(x + 0.01), 0.02) * inside(0.62 - y, 0.06)
    return plane(0.20 * band + 0.14 * patient.aorta * knob - 0.20 * trachea)


def _heart(canvas: Canvas, frame: Thorax) -> Plane:
    """An egg with its apex down and to the left, a third of it right of the midline."""
    width = frame.ctr * frame.projection * frame.half  # half of the heart's width
    height = 0.31 + 0.35 * (width - 0.30)
    x = canvas.x - 0.36 * width
    y = canvas.y - (0.5 * sum(frame.domes) + 0.07 - 0.8 * height)
    u, v = 0.93 * x - 0.30 * y, 0.93 * y + 0.30 * x
    waist = 1 + 0.22 * np.clip(-v / height, -1, 1)  # narrow above, broad at the apex
    r = 1 - np.abs(u * waist / (0.97 * width)) ** 2.1 - np.abs(v / height) ** 2.1
    depth = np.sqrt(np.clip(r, 0, 1)) ** 0.8
    return plane(0.36 * depth + 0.10 * inside(r, 0.12))


def _rib(frame: Thorax, side: int, index: int, slope: float) -> Curve:
    """Centre line of one posterior rib, from the spine to the wall."""
    t = np.linspace(0, 1, 22)
    top = frame.apex - 0.06 + 0.128 * index
    reach = (
        frame.half * (0.40 + 0.60 * (1 - (1 - min((top + 0.1 - frame.apex) / 0.9, 1)) ** 2.2))
        if top + 0.1 > frame.apex
        else frame.half * 0.42
    )
    px = 0.06 + (reach + 0.02 - 0.06) * np.sin(t * np.pi / 2) ** 0.9
    py = top - 0.05 * np.sin(t * np.pi) + slope * t**2.2 * (0.35 + 0.075 * index)
    return np.stack([side * px, py], axis=1)


def _bones(canvas: Canvas, patient: Patient, frame: Thorax, view: str) -> Plane:
    x, y = canvas.x, canvas.y
    broken = patient.causes.get("Fracture")
    posterior, anterior, callus = [], [], []
    for side in (-1, 1):
        for index in range(9):
            rib = _rib(frame, side, index, patient.ribs)
            if broken is not None and side == broken.side and index in _broken_ribs(broken):
                cut = 10 + int(7 * broken.place[0])
                step = np.array([0.0, 0.045 + 0.04 * broken.severity])
                posterior += [rib[: cut - 1], rib[cut + 1 :] + step]
                callus.append(rib[cut] + step / 2)
            else:
                posterior.append(rib)
            if 1 <= index <= 6:
                t = np.linspace(0, 1, 12)
                outer = rib[-1]
                px = outer[0] * (1 - 0.55 * t)
                py = outer[1] + 0.10 * np.sin(t * np.pi / 2) + 0.22 * t
                anterior.append(np.stack([px, py], axis=1))
    out = 0.13 * canvas.lines(posterior, 0.050, 0.006) - 0.06 * canvas.lines(
        posterior, 0.022, 0.006
    )
    out += 0.06 * canvas.lines(anterior, 0.045, 0.010)
    for centre in callus:
        r2 = ((x - centre[0]) / 0.05) ** 2 + ((y - centre[1]) / 0.055) ** 2
        out += plane(0.30 * np.exp(-r2))
    ap = view == "AP"
    lift = -0.05 if ap else 0.04
    t = np.linspace(0, 1, 20)
    clavicles, scapulae = [], []
    for side in (-1, 1):
        py = frame.apex + 0.16 + lift - 0.16 * t + 0.03 * np.sin(t * 2 * np.pi)
        clavicles.append(np.stack([side * (0.09 + 0.66 * t), py], axis=1))
        inner = frame.half - 0.10 if ap else frame.half + 0.10
        scapulae.append(
            np.array(
                [(inner, 0.45), (inner + 0.24, 0.36), (inner + 0.28, 0.52), (inner + 0.06, 0.98)]
            )
            * np.array([side, 1.0])
        )
    out += 0.16 * canvas.lines(clavicles, 0.060, 0.008)
    out += 0.09 * canvas.area(scapulae, 0.018)
    spine = inside(0.075 - np.abs(x), 0.03) * (0.09 + 0.04 * np.cos(2 * np.pi * y / 0.135))
    return plane(out + spine)


def _broken_ribs(cause: Cause) -> tuple[int, ...]:
    first = 3 + int(cause.place[1] * 3)
    return tuple(range(first, first + 2 + round(cause.severity)))


def _soft_parts(canvas: Canvas, patient: Patient, frame: Thorax) -> Plane:
    x, y = canvas.x, canvas.y
    out = 0.02 * canvas.texture(patient.seed + 1, 0.25)
    if patient.sex == "F":
        low = min(frame.domes) - 0.18
        for side in (-1, 1):
            r = 1 - ((x * side - 0.42) / 0.28) ** 2 - ((y - low) / 0.24) ** 2
            out = out + 0.16 * patient.girth * np.sqrt(np.clip(r, 0, 1)) * (1 + 0.4 * (y - low))
    return out.astype(np.float32)
