"""What a phantom has: anatomy, exposure, and the findings with their causes.

A finding is present because a cause was drawn, and its label follows from the cause's severity. So
the best possible classifier is known in principle: it sees what the cause did to the image, and it
cannot foresee the labeller's noise. Severities near zero are borderline and labelled uncertain.
"""

from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

FINDINGS: Final = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
"""The 14 CheXpert observations in the column order of MIMIC-CXR-JPG."""

PREVALENCE: Final = {
    "Atelectasis": 0.14,
    "Cardiomegaly": 0.20,
    "Consolidation": 0.10,
    "Edema": 0.14,
    "Enlarged Cardiomediastinum": 0.10,
    "Fracture": 0.09,
    "Lung Lesion": 0.11,
    "Lung Opacity": 0.10,
    "Pleural Effusion": 0.18,
    "Pleural Other": 0.08,
    "Pneumonia": 0.10,
    "Pneumothorax": 0.12,
    "Support Devices": 0.16,
}
"""Chance of each cause in a patient who is not healthy, before what follows from others."""

HEALTHY: Final = 0.34
"""Share of patients without any cause but, at times, a device."""

OPAQUE: Final = ("Atelectasis", "Consolidation", "Edema", "Lung Lesion", "Pneumonia")
"""Causes that also are a lung opacity, as CheXpert's hierarchy has it."""

BORDERLINE: Final = 0.22
"""Severity below which a reader would not commit: labelled uncertain."""


@dataclass(frozen=True, kw_only=True)
class Cause:
    """One finding's cause."""

    severity: float
    """0 (barely there) to 1 (marked)."""
    side: int
    """-1: the patient's right (image left); +1: the patient's left."""
    place: tuple[float, float]
    """Where in the lung: across and down, each 0 to 1."""
    seed: int
    """Seed of its texture."""


@dataclass(frozen=True, kw_only=True)
class Patient:
    """One synthetic patient's anatomy, in units of half the image width unless said otherwise."""

    sex: str
    """`F` or `M`."""
    age: int
    """Years."""
    chest: float
    """Half the inner width of the thorax."""
    apex: float
    """Height of the lung apices below the upper edge."""
    lung: float
    """Height of the right lung at full inspiration."""
    girth: float
    """Thickness of soft tissue, 1 on average."""
    ctr: float
    """Cardiothoracic ratio without disease, on a PA image."""
    aorta: float
    """Prominence of the aortic knob, 0 to 1."""
    ribs: float
    """Slope of the posterior ribs."""
    seed: int
    """Seed of vessels and bone texture."""
    causes: dict[str, Cause] = field(default_factory=dict)
    """Finding -> cause."""

    def without(self, finding: str) -> "Patient":
        """The same patient with one cause taken away: the counterfactual."""
        return replace(self, causes={k: v for k, v in self.causes.items() if k != finding})


def draw_patient(rng: np.random.Generator) -> Patient:
    """Draw one patient.

    Args:
        rng: The patient's own generator.

    Returns:
        Anatomy and causes of the first study.
    """
    female = bool(rng.random() < 0.48)
    return Patient(
        sex="F" if female else "M",
        age=int(np.clip(rng.normal(62, 16), 18, 95)),
        chest=float(rng.normal(0.74 if not female else 0.71, 0.025)),
        apex=float(rng.normal(0.30, 0.03)),
        lung=float(rng.normal(1.12 if not female else 1.06, 0.05)),
        girth=float(np.clip(rng.normal(1.0, 0.15), 0.65, 1.5)),
        ctr=float(np.clip(rng.normal(0.44, 0.02), 0.38, 0.485)),
        aorta=float(rng.uniform(0.2, 1.0)),
        ribs=float(rng.normal(0.30, 0.04)),
        seed=int(rng.integers(2**31)),
        causes=draw_causes(rng),
    )


def draw_causes(rng: np.random.Generator) -> dict[str, Cause]:
    """Draw the causes of one patient, with the clinic's usual company.

    A failing heart brings edema and effusion, effusion compresses the lung beneath it, and who
    has a pneumothorax usually has a tube.
    """
    if rng.random() < HEALTHY:
        names = {"Support Devices"} if rng.random() < 0.06 else set()
        return {name: draw_cause(rng) for name in sorted(names)}
    names = {name for name, chance in PREVALENCE.items() if rng.random() < chance}
    if "Cardiomegaly" in names:
        names |= {name for name in ("Edema", "Pleural Effusion") if rng.random() < 0.2}
    if "Pleural Effusion" in names and rng.random() < 0.12:
        names.add("Atelectasis")
    if names & {"Edema", "Pneumothorax"} and rng.random() < 0.25:
        names.add("Support Devices")
    if not names:
        names.add(str(rng.choice(sorted(PREVALENCE))))
    return {name: draw_cause(rng) for name in sorted(names)}


def draw_cause(rng: np.random.Generator) -> Cause:
    """Draw one cause: mostly clear, at times borderline."""
    borderline = rng.random() < 0.08
    low, high = (0.05, BORDERLINE) if borderline else (0.4, 1.0)
    return Cause(
        severity=float(rng.uniform(low, high)),
        side=int(rng.choice((-1, 1))),
        place=(float(rng.uniform(0.15, 0.85)), float(rng.uniform(0.1, 0.9))),
        seed=int(rng.integers(2**31)),
    )


def next_study(patient: Patient, rng: np.random.Generator) -> Patient:
    """The same patient some weeks later: what persists, what healed, what came."""
    lasting = {"Cardiomegaly", "Enlarged Cardiomediastinum", "Pleural Other", "Fracture"}
    kept = {
        name: cause
        for name, cause in patient.causes.items()
        if rng.random() < (0.95 if name in lasting else 0.6)
    }
    changed = {
        name: cause
        if name in lasting
        else replace(
            cause, severity=float(np.clip(cause.severity * rng.uniform(0.8, 1.2), 0.05, 1))
        )
        for name, cause in kept.items()
    }
    if rng.random() < 0.25:
        changed.setdefault(str(rng.choice(sorted(PREVALENCE))), draw_cause(rng))
    return replace(patient, causes=dict(sorted(changed.items())))


def labels(causes: dict[str, Cause], rng: np.random.Generator) -> dict[str, float | None]:
    """Label one study as a CheXpert labeller would label its report.

    Args:
        causes: Finding -> cause.
        rng: The labeller's noise: which absences are mentioned, and rare hedging.

    Returns:
        For each of `FINDINGS` 1.0 (present), 0.0 (mentioned as absent), -1.0 (uncertain) or None
        (not mentioned). `No Finding` is 1.0 or None, as in MIMIC-CXR-JPG.
    """
    out: dict[str, float | None] = dict.fromkeys(FINDINGS)
    for name in FINDINGS:
        hedge, mention = rng.random(), rng.random()
        cause = causes.get(name)
        if cause is not None:
            unsure = cause.severity < BORDERLINE or hedge < 0.02
            out[name] = -1.0 if unsure and name != "Support Devices" else 1.0
        elif name not in ("No Finding", "Support Devices") and mention < 0.25:
            out[name] = -1.0 if hedge < 0.02 else 0.0
    opaque = [out[name] for name in OPAQUE if name in causes]
    if 1.0 in opaque:
        out["Lung Opacity"] = 1.0
    elif opaque and out["Lung Opacity"] != 1.0:
        out["Lung Opacity"] = -1.0
    if "Pneumonia" in causes and out["Pneumonia"] == 1.0:
        out["Consolidation"] = 1.0
    if not set(causes) - {"Support Devices"}:
        out["No Finding"] = 1.0
    return out
