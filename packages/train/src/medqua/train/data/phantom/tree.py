"""A whole MIMIC-CXR(-JPG) tree of phantoms: images, reports, and every table.

ROOT/phantom.json                            says that all of this is synthetic, and its parameters
ROOT/phantom-truth.csv                       causes and severities, which MIMIC cannot have
ROOT/mimic-cxr-2.0.0-{metadata,split,chexpert,negbio}.csv.gz
ROOT/mimic-cxr-2.1.0-test-set-labeled.csv
ROOT/files/p90/p90000001/s95000001.txt       report
ROOT/files/p90/p90000001/s95000001/ID.{jpg,dcm}
"""

import csv
import datetime
import gzip
import io
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.progress import track

from medqua.core.console import console
from medqua.core.errors import ConfigError, DataError
from medqua.train.data.phantom.canvas import Exposure
from medqua.train.data.phantom.causes import (
    BORDERLINE,
    FINDINGS,
    OPAQUE,
    Patient,
    draw_patient,
    labels,
    next_study,
)
from medqua.train.data.phantom.detector import Storage, expose, store
from medqua.train.data.phantom.files import Identity, write_image
from medqua.train.data.phantom.wording import report

VERSION: Final = 3
"""Raised whenever equal parameters would give other bytes."""

SUBJECTS: Final = 90_000_000
"""Subject ids begin above this; those of MIMIC begin with 1."""

STUDIES: Final = 95_000_000
"""Study ids begin above this; those of MIMIC begin with 5."""

REPORTS: Final = 0x7E97
"""Sets the generators of reports apart from those of images."""

SPLITS: Final = {"train": 0.70, "validate": 0.10, "test": 0.20}
"""Share of patients in each official split. (MIMIC's own validate and test are about 1 %.)"""

METADATA: Final = (
    "dicom_id",
    "subject_id",
    "study_id",
    "PerformedProcedureStepDescription",
    "ViewPosition",
    "Rows",
    "Columns",
    "StudyDate",
    "StudyTime",
    "ProcedureCodeSequence_CodeMeaning",
    "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)
"""Columns of `mimic-cxr-2.0.0-metadata.csv.gz`."""


@dataclass(frozen=True, kw_only=True)
class PhantomParameters:
    """What decides every byte of a tree."""

    patients: int
    """Synthetic patients."""
    seed: int
    """Seed of everything about them."""
    size: int
    """Columns of an image, in pixels; rows are 1.0 to 1.25 times as many."""
    dicom: bool
    """Whether DICOM objects stand beside the JPGs."""
    version: int = VERSION
    """Of the generator."""

    def __post_init__(self) -> None:
        if self.patients < 10 or self.size < 64:
            raise ConfigError(
                f"patients = {self.patients}, size = {self.size}: needed at least 10 patients and "
                "64 pixels"
            )


def write_tree(
    root: Path,
    *,
    patients: int,
    seed: int = 0,
    size: int = 320,
    dicom: bool = True,
    processes: int | None = None,
) -> PhantomParameters:
    """Write a tree, or find it written.

    The folder appears whole or not at all. Its bytes depend on the parameters alone, not on the
    number of processes.

    Args:
        root: Folder to write; its parent is made if absent.
        patients: Number of synthetic patients, at least 10.
        seed: Seed of everything about them.
        size: Columns of an image, in pixels, at least 64.
        dicom: Write DICOM objects beside the JPGs.
        processes: Workers; the number of usable cores if None.

    Returns:
        The parameters, as `phantom.json` holds them.

    Raises:
        ConfigError: Too few patients or pixels.
        DataError: The folder exists and holds something else.
    """
    parameters = PhantomParameters(patients=patients, seed=seed, size=size, dicom=dicom)
    if root.exists():
        _check_same(root, parameters)
        return parameters
    unfinished = root.with_name(f".{root.name}.{os.getpid()}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        rows = _write_patients(unfinished, parameters, processes)
        _write_tables(unfinished, rows)
        marker = {"synthetic": True, "what": "phantoms, not patients", **asdict(parameters)}
        (unfinished / "phantom.json").write_text(json.dumps(marker, indent=2) + "\n")
        unfinished.replace(root)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return parameters


def is_phantom_tree(root: Path) -> bool:
    """Whether a folder says of itself that it is synthetic."""
    return (root / "phantom.json").is_file()


def _check_same(root: Path, parameters: PhantomParameters) -> None:
    marker = root / "phantom.json"
    if not marker.is_file():
        raise DataError(f"{root} exists and is no phantom tree: give another folder")
    found = json.loads(marker.read_text())
    differing = [key for key, value in asdict(parameters).items() if found.get(key) != value]
    if differing:
        raise DataError(
            f"{root} holds phantoms of other parameters ({', '.join(differing)}): delete it or "
            "give another folder"
        )


def _write_patients(
    root: Path, parameters: PhantomParameters, processes: int | None
) -> list[dict[str, Any]]:
    work = partial(_write_patient, root, parameters)
    indices = range(parameters.patients)
    workers = processes or len(os.sched_getaffinity(0))
    show = partial(
        track, description="Phantoms", total=len(indices), console=console, transient=True
    )
    if workers == 1:
        return [row for rows in show(map(work, indices)) for row in rows]
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        return [row for rows in show(pool.map(work, indices, chunksize=4)) for row in rows]


def _write_patient(root: Path, parameters: PhantomParameters, index: int) -> list[dict[str, Any]]:
    """Write one patient's studies; one row for each image, with its study's labels."""
    rng = np.random.default_rng([parameters.seed, index])
    patient = draw_patient(rng)
    subject = SUBJECTS + 1 + index
    moment = datetime.datetime(2150, 1, 1) + datetime.timedelta(days=float(rng.uniform(0, 9000)))
    split = _split(parameters, index)
    rows: list[dict[str, Any]] = []
    for number in range(int(rng.choice((1, 2, 3), p=(0.6, 0.3, 0.1)))):
        if number:
            patient = next_study(patient, rng)
            moment += datetime.timedelta(days=float(rng.uniform(1, 120)))
        study = STUDIES + 1 + 4 * index + number
        label = {
            "chexpert": labels(patient.causes, rng),
            "negbio": labels(patient.causes, rng),
        }
        folder = root / "files" / f"p{subject // 10**6}" / f"p{subject}"
        for view in _views(patient, rng):
            image = "-".join(f"{word:08x}" for word in rng.integers(2**32, size=5))
            identity = Identity(subject=subject, study=study, image=image, moment=moment)
            exposure = _exposure(view, parameters.size, rng)
            storage = Storage(
                bits=int(rng.choice((10, 12, 14, 16))),
                photometric=str(rng.choice(("MONOCHROME1", "MONOCHROME2"))),
            )
            write_image(
                folder / f"s{study}",
                identity,
                patient,
                exposure,
                storage,
                store(expose(patient, exposure), storage),
                compress=bool(rng.random() < 0.25),
                dicom=parameters.dicom,
            )
            rows.append(
                _row(identity, exposure, split) | {"labels": label, "causes": patient.causes}
            )
        wording = np.random.default_rng([parameters.seed, index, number, REPORTS])
        text = report(label["chexpert"], patient.causes, wording)
        (folder / f"s{study}.txt").write_text(text)
    return rows


def _split(parameters: PhantomParameters, index: int) -> str:
    """Spread the splits evenly over the patients, shuffled by the seed."""
    order = np.random.default_rng([parameters.seed, 2**32]).permutation(parameters.patients)
    place = (float(order[index]) + 0.5) / parameters.patients
    if place < SPLITS["train"]:
        return "train"
    return "validate" if place < SPLITS["train"] + SPLITS["validate"] else "test"


def _views(patient: Patient, rng: np.random.Generator) -> tuple[str, ...]:
    """The very ill are imaged in bed (AP); others standing, often from the side too."""
    ill = {"Edema", "Pneumothorax", "Support Devices"} & set(patient.causes)
    if rng.random() < (0.65 if ill else 0.30):
        return ("AP",) if rng.random() < 0.8 else ("AP", "AP")
    return ("PA", "LATERAL") if rng.random() < 0.45 else ("PA",)


def _exposure(view: str, size: int, rng: np.random.Generator) -> Exposure:
    return Exposure(
        view=view,
        height=round(size * float(rng.choice((1.0, 1.12, 1.22)))),
        width=size,
        shift=(float(rng.normal(0, 0.025)), float(rng.normal(0.0, 0.03))),
        tilt=float(rng.normal(0, 0.02 if view == "PA" else 0.035)),
        inspiration=float(np.clip(rng.normal(0.90 if view == "AP" else 1.0, 0.035), 0.75, 1.1)),
        dose=float(rng.uniform(8, 30)),
        seed=int(rng.integers(2**31)),
    )


def _row(identity: Identity, exposure: Exposure, split: str) -> dict[str, Any]:
    lateral = exposure.view == "LATERAL"
    described = {"AP": "antero-posterior", "PA": "postero-anterior", "LATERAL": "lateral"}
    return {
        "dicom_id": identity.image,
        "subject_id": identity.subject,
        "study_id": identity.study,
        "PerformedProcedureStepDescription": "CHEST (PORTABLE AP)"
        if exposure.view == "AP"
        else "CHEST (PA AND LAT)",
        "ViewPosition": exposure.view,
        "Rows": exposure.height,
        "Columns": exposure.width,
        "StudyDate": identity.moment.strftime("%Y%m%d"),
        "StudyTime": identity.moment.strftime("%H%M%S.000"),
        "ProcedureCodeSequence_CodeMeaning": "CHEST (PORTABLE AP)"
        if exposure.view == "AP"
        else "CHEST (PA AND LAT)",
        "ViewCodeSequence_CodeMeaning": described[exposure.view],
        "PatientOrientationCodeSequence_CodeMeaning": "" if lateral else "Erect",
        "split": split,
    }


def _write_tables(root: Path, rows: Sequence[dict[str, Any]]) -> None:
    _write_csv(root / "mimic-cxr-2.0.0-metadata.csv.gz", METADATA, rows)
    split = ("dicom_id", "study_id", "subject_id", "split")
    _write_csv(root / "mimic-cxr-2.0.0-split.csv.gz", split, rows)
    studies = list({row["study_id"]: row for row in rows}.values())
    for labeler in ("chexpert", "negbio"):
        _write_csv(
            root / f"mimic-cxr-2.0.0-{labeler}.csv.gz",
            ("subject_id", "study_id", *FINDINGS),
            [row | row["labels"][labeler] for row in studies],
        )
    read_by_hand = [
        {"study_id": row["study_id"]} | _truth(row["causes"])
        for row in studies
        if row["split"] == "test"
    ]
    names = tuple("Airspace Opacity" if f == "Lung Opacity" else f for f in FINDINGS)
    _write_csv(root / "mimic-cxr-2.1.0-test-set-labeled.csv", ("study_id", *names), read_by_hand)
    _write_csv(
        root / "phantom-truth.csv",
        ("subject_id", "study_id", "finding", "severity", "side", "across", "down"),
        [
            {
                "subject_id": row["subject_id"],
                "study_id": row["study_id"],
                "finding": name,
                "severity": round(cause.severity, 4),
                "side": "right" if cause.side < 0 else "left",
                "across": round(cause.place[0], 4),
                "down": round(cause.place[1], 4),
            }
            for row in studies
            for name, cause in row["causes"].items()
        ],
    )


def _truth(causes: dict[str, Any]) -> dict[str, float]:
    """What a reader who sees every clear cause would write: present or absent, never blank."""
    seen = {name for name, cause in causes.items() if cause.severity >= BORDERLINE}
    if seen & set(OPAQUE):
        seen.add("Lung Opacity")
    if "Pneumonia" in seen:
        seen.add("Consolidation")
    if not seen - {"Support Devices"}:
        seen.add("No Finding")
    return {
        "Airspace Opacity" if name == "Lung Opacity" else name: float(name in seen)
        for name in FINDINGS
    }


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """Write a table, gzipped without a time stamp so that equal rows give equal bytes."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    data = stream.getvalue().encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
