"""How long the manifest of MIMIC-CXR-JPG takes, beside the same joins in pandas; and the loader.

    hatch run bench:data

The loader is measured on real radiographs (`--radiographs`, see `loaders.py`), where there are any.

The manifest: writes the four tables with the published number of rows (377,110 images, 227,827
labelled studies, 65,379 patients; values random, shapes and sparsity as published), joins them by
`medqua.train.data.mimic` and by pandas, checks that both give the same table, and times both in
turn. pandas runs twice: as one writes it first (`read_csv` of whole files), and told which
columns and types to read. Both, like the manifest, keep frontal views and write their Parquet
columns: paths, strings and small integers.
"""

import argparse
import gzip
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import loaders
import numpy as np
import pandas as pd
import polars as pl

from medqua.train.data.mimic import LABELS, read_mimic

IMAGES, STUDIES, LABELLED, PATIENTS = 377_110, 227_835, 227_827, 65_379
SPLIT_STUDIES = {"test": 3_269, "validate": 1_808}
VIEWS = {"AP": 0.390, "PA": 0.255, "LATERAL": 0.215, "LL": 0.095, "": 0.042, "LAO": 0.003}
POSITIVE, NEGATIVE, UNCERTAIN = 0.10, 0.06, 0.03
PACKAGES = (
    "polars",
    "pandas",
    "numpy",
    "torch",
    "pillow",
    "pydicom",
    "safetensors",
    "medqua-train",
)
RESULTS = Path(__file__).parent / "results" / "data.json"


def write_tables(root: Path, images: int = IMAGES, seed: int = 0) -> None:
    """The tables of a data set of the published shape, gzipped as they are distributed."""
    rng = np.random.default_rng(seed)
    scale = images / IMAGES
    studies, patients = int(STUDIES * scale), int(PATIENTS * scale)
    subject = np.sort(rng.choice(np.arange(10_000_000, 20_000_000), patients, replace=False))
    of_study = np.sort(np.r_[np.arange(patients), rng.integers(0, patients, studies - patients)])
    study = rng.choice(np.arange(50_000_000, 60_000_000), studies, replace=False)
    of_image = np.sort(np.r_[np.arange(studies), rng.integers(0, studies, images - studies)])
    words = rng.integers(0, 2**32, (images, 5), dtype=np.uint64).tolist()
    patient_split = np.full(patients, "train", dtype="<U8")
    order = rng.permutation(patients)
    held_out = {name: int(patients * count / STUDIES) for name, count in SPLIT_STUDIES.items()}
    patient_split[order[: held_out["test"]]] = "test"
    patient_split[order[held_out["test"] : sum(held_out.values())]] = "validate"
    keys = pl.DataFrame(
        {
            "dicom_id": ["-".join(f"{word:08x}" for word in row) for row in words],
            "study_id": study[of_image],
            "subject_id": subject[of_study[of_image]],
            "split": patient_split[of_study[of_image]],
        }
    ).sort("subject_id", "study_id", "dicom_id")  # as the tables are distributed
    view = rng.choice(list(VIEWS), images, p=list(VIEWS.values()))
    metadata = keys.select("dicom_id", "subject_id", "study_id").with_columns(
        PerformedProcedureStepDescription=pl.lit("CHEST (PA AND LAT)"),
        ViewPosition=pl.Series(view),
        Rows=pl.Series(rng.choice([2544, 3056, 2022], images)),
        Columns=pl.Series(rng.choice([3056, 2544, 1800], images)),
        StudyDate=pl.Series(rng.integers(21_100_101, 22_001_231, images)),
        StudyTime=pl.Series(np.round(rng.uniform(0, 235_959, images), 3)),
        ProcedureCodeSequence_CodeMeaning=pl.lit("CHEST (PA AND LAT)"),
        ViewCodeSequence_CodeMeaning=pl.lit("postero-anterior"),
        PatientOrientationCodeSequence_CodeMeaning=pl.lit("Erect"),
    )
    chance = rng.random((studies, len(LABELS)))
    cells = np.full(chance.shape, np.nan)
    for value, upper in (
        (-1.0, POSITIVE + NEGATIVE + UNCERTAIN),
        (0.0, POSITIVE + NEGATIVE),
        (1.0, POSITIVE),
    ):
        cells[chance < upper] = value
    labels = (
        pl.DataFrame({"subject_id": subject[of_study], "study_id": study})
        .with_columns(
            pl.Series(name, cells[:, i], nan_to_null=True) for i, name in enumerate(LABELS)
        )[: studies - (STUDIES - LABELLED)]
        .sort("subject_id", "study_id")
    )
    root.mkdir(parents=True, exist_ok=True)
    for stem, table in (
        ("split", keys),
        ("metadata", metadata),
        ("chexpert", labels),
        ("negbio", labels),
    ):
        with gzip.open(root / f"mimic-cxr-2.0.0-{stem}.csv.gz", "wb", compresslevel=6) as out:
            out.write(table.write_csv().encode())


def join_by_pandas(root: Path, *, tuned: bool) -> pd.DataFrame:
    """The manifest's columns, by pandas."""

    def table(stem: str, types: dict[str, str]) -> pd.DataFrame:
        path = root / f"mimic-cxr-2.0.0-{stem}.csv.gz"
        return pd.read_csv(path, usecols=list(types), dtype=types) if tuned else pd.read_csv(path)

    split = table(
        "split", {"dicom_id": "str", "study_id": "int64", "subject_id": "int64", "split": "str"}
    )
    metadata = table("metadata", {"dicom_id": "str", "ViewPosition": "str"})
    findings = table("chexpert", {"study_id": "int64"} | dict.fromkeys(LABELS, "float32"))
    metadata = metadata.loc[
        metadata["ViewPosition"].isin(["AP", "PA"]), ["dicom_id", "ViewPosition"]
    ]
    joined = split.merge(metadata, on="dicom_id").merge(
        findings[["study_id", *LABELS]], on="study_id"
    )
    subject, study = joined["subject_id"].astype("str"), joined["study_id"].astype("str")
    image = (
        "files/p"
        + subject.str[:2]
        + "/p"
        + subject
        + "/s"
        + study
        + "/"
        + joined["dicom_id"]
        + ".jpg"
    )
    return pd.DataFrame(
        {
            "image": image,
            "patient_id": subject,
            "study_id": study,
            "split": joined["split"],
            "view": joined["ViewPosition"],
            **{name: joined[name].astype("Int8") for name in LABELS},
        }
    )


def join_by_medqua(root: Path) -> pl.DataFrame:
    return read_mimic(root).frame


def same(ours: pl.DataFrame, peer: pd.DataFrame) -> bool:
    """Whether two tables hold the same values in the same order."""
    if list(ours.columns) != list(peer.columns) or ours.height != len(peer):
        return False
    for name in ours.columns:
        left, right = ours[name].to_list(), peer[name].astype(object).to_list()
        if any(a != b and not (a is None and pd.isna(b)) for a, b in zip(left, right, strict=True)):
            return False
    return True


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=IMAGES, help="rows of the image tables")
    parser.add_argument("--repeats", type=int, default=5, help="timings of each, the median counts")
    parser.add_argument(
        "--radiographs",
        type=Path,
        default=Path(os.environ.get("MEDQUA_TEST_DATA", "../shared/data")),
        help="folder with cxr/ (JPG, PNG) and dicom/ for the loader",
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_tables(root, arguments.images)
        runs: dict[str, Callable[[], object]] = {
            "medqua": lambda: join_by_medqua(root),
            "pandas": lambda: join_by_pandas(root, tuned=False),
            "pandas, columns and types given": lambda: join_by_pandas(root, tuned=True),
        }
        reference = join_by_medqua(root)
        for tuned in (False, True):
            if not same(reference, join_by_pandas(root, tuned=tuned)):
                raise SystemExit("the manifest and pandas disagree: no timing is worth anything")
        taken: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(arguments.repeats):  # in turn, so that a busy moment meets all of them
            for name, run in runs.items():
                taken[name].append(seconds(run))
    medians = {name: round(statistics.median(values), 3) for name, values in taken.items()}
    ours = medians.pop("medqua")
    best = min(medians, key=lambda name: medians[name])
    row = {
        "case": f"manifest of {arguments.images:,} images, {reference.height:,} frontal, seconds",
        "ours": ours,
        "peers": medians,
        "best_peer": best,
        "ratio": round(medians[best] / ours, 2),
    }
    rows = [row]
    if arguments.radiographs.is_dir():
        rows += loaders.rows(arguments.radiographs, arguments.repeats)
    else:
        print(f"no radiographs at {arguments.radiographs}: the loader is not measured")
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
        "date": datetime.now(UTC).date().isoformat(),
        "rows": rows,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
