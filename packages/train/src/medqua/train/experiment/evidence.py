"""What the finished cells of an experiment say, arm against arm: figures, intervals, tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float64, Int8

from medqua.core.errors import DataError
from medqua.train.data.manifest import IGNORED, Manifest
from medqua.train.evaluation.metrics import Figures, evaluate
from medqua.train.experiment.arms import Arm
from medqua.train.recipe import build_recipe
from medqua.train.record import read_json
from medqua.train.statistics.bootstrap import Calibrated, bootstrap_calibration
from medqua.train.statistics.delong import Comparison, delong
from medqua.train.statistics.holm import holm
from medqua.train.statistics.mcnemar import McNemar, mcnemar
from medqua.train.statistics.paired import Difference, Drawn, difference, draw_macro
from medqua.train.statistics.resampling import Resampling


@dataclass(frozen=True)
class TestSplit:
    """The images that every arm is tested on."""

    __test__ = False  # no test case, whatever its name

    source: str
    """The data set in words."""
    fingerprint: str
    """Of its manifest."""
    keys: pl.DataFrame
    """`image`, `patient_id`, `study_id`; N rows."""
    labels: tuple[str, ...]
    """L names."""
    targets: Int8[np.ndarray, "n l"]
    """1, 0 and `IGNORED`."""
    counts: Mapping[str, Mapping[str, int]]
    """Images, studies and patients of all splits."""

    @property
    def patients(self) -> list[str]:
        """Whose each image is; an image without a patient stands for itself."""
        rows = self.keys.select("patient_id", "image").rows()
        return [str(patient or image) for patient, image in rows]


@dataclass(frozen=True, eq=False)
class ArmResult:
    """One arm, all its seeds."""

    arm: Arm
    """Which."""
    seeds: tuple[int, ...]
    """S seeds."""
    logits: Float64[np.ndarray, "s n l"]
    """Of the test split."""
    probabilities: Float64[np.ndarray, "s n l"]
    """Of the test split, calibrated on validation."""
    figures: tuple[Figures, ...]
    """`evaluate` of each seed."""
    runs: tuple[Figures, ...]
    """`metrics.json` of each seed."""
    seconds: tuple[float, ...]
    """Wall seconds of each cell."""

    def mean(self, name: str) -> float | None:
        """Mean over seeds of a figure of `evaluate`."""
        values = self.values(name)
        return float(np.mean(values)) if values else None

    def deviation(self, name: str) -> float | None:
        """Standard deviation over seeds (n - 1); None with one seed."""
        values = self.values(name)
        return float(np.std(values, ddof=1)) if len(values) > 1 else None

    def values(self, name: str) -> list[float]:
        """A figure of every seed that has it."""
        return [float(row[name]) for row in self.figures if row[name] is not None]

    def routing(self, name: str) -> float | None:
        """Mean over seeds and adapted layers of `activation_ratio` or `mean_depth`."""
        layers = [layer for run in self.runs for layer in run["router"].values()]
        found = [layer[name] for layer in layers if layer[name] is not None]
        return float(np.mean(found)) if found else None

    def cost(self, name: str) -> float:
        """Mean over seeds of a number of `metrics.json`."""
        return float(np.mean([float(run[name] or 0.0) for run in self.runs]))


@dataclass(frozen=True)
class Pair:
    """One arm against another, label by label."""

    per_label: tuple[Comparison, ...]
    """DeLong's test of the AUROCs, mean over seeds, clustered by patient."""
    adjusted: tuple[float | None, ...]
    """Its p values after Holm over the labels."""
    answers: tuple[McNemar, ...]
    """McNemar's test of the answers at probability 0.5, of the probabilities' mean over seeds."""
    answers_adjusted: tuple[float | None, ...]
    """Its mid-p values after Holm over the labels."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything of one share of the training patients."""

    test: TestSplit
    """The test split."""
    arms: Mapping[str, ArmResult]
    """By name, in the order of reports."""
    drawn: Mapping[str, Drawn]
    """Macro AUROC of each arm in every resample."""
    calibrated: Mapping[str, Calibrated]
    """ECE and Brier score of each arm, with intervals."""
    plan: Resampling
    """What was drawn."""

    def minus(self, first: str, second: str) -> Difference:
        """Difference of macro AUROC of two arms."""
        return difference(self.drawn[first], self.drawn[second])

    def pair(self, first: str, second: str) -> Pair:
        """Two arms, label by label."""
        one, two, test = self.arms[first], self.arms[second], self.test
        weights = [1 / len(one.seeds)] * len(one.seeds) + [-1 / len(two.seeds)] * len(two.seeds)
        scores = np.concatenate([one.logits, two.logits])
        right = [_right(result.probabilities, test.targets) for result in (one, two)]
        per_label, answers = [], []
        for i in range(len(test.labels)):
            known = test.targets[:, i] != IGNORED
            patients = [name for name, keep in zip(test.patients, known, strict=True) if keep]
            column = test.targets[known, i]
            per_label.append(
                delong(
                    scores[:, known, i],
                    column,
                    weights,
                    patients,
                    confidence=self.plan.confidence,
                )
            )
            answers.append(mcnemar(right[0][known, i], right[1][known, i], patients))
        return Pair(
            tuple(per_label),
            tuple(holm([found.p for found in per_label])),
            tuple(answers),
            tuple(holm([found.mid_p for found in answers])),
        )


def gather(cells: Sequence[tuple[Arm, int, Path]], plan: Resampling) -> Evidence:
    """Read the finished cells of one share of the patients, and resample each arm once.

    Args:
        cells: Arm, seed and run folder.
        plan: What the bootstrap draws, the same for all arms.

    Raises:
        DataError: A cell lacks its files, or cells are of different data.
    """
    test: TestSplit | None = None
    by_arm: dict[str, list[tuple[Arm, int, Path]]] = {}
    for cell in cells:
        by_arm.setdefault(cell[0].name, []).append(cell)
        found = _test_split(cell[2], known=test)
        test = test or found
    if test is None:
        raise DataError("an experiment without a cell: run at least one arm with one seed")
    arms = {name: _arm(members, test) for name, members in by_arm.items()}
    patients = test.patients
    drawn, calibrated = {}, {}
    for name, result in arms.items():
        drawn[name] = draw_macro(result.logits, test.targets, patients, plan)
        calibrated[name] = bootstrap_calibration(result.probabilities, test.targets, patients, plan)
    return Evidence(test, arms, drawn, calibrated, plan)


def predictions_table(evidence: Evidence, share: float) -> pl.DataFrame:
    """One row an image, arm and seed: keys, and target, logit and probability of each label."""
    tables = []
    for name, result in evidence.arms.items():
        for i, seed in enumerate(result.seeds):
            columns: list[pl.Expr | pl.Series] = [
                pl.lit(name).alias("arm"),
                pl.lit(seed).alias("seed"),
                pl.lit(share).alias("share"),
            ]
            for column, label in enumerate(evidence.test.labels):
                columns += [
                    pl.Series(f"{label} target", evidence.test.targets[:, column]),
                    pl.Series(f"{label} logit", result.logits[i, :, column]),
                    pl.Series(f"{label} probability", result.probabilities[i, :, column]),
                ]
            tables.append(evidence.test.keys.with_columns(columns))
    return pl.concat(tables)


def _test_split(folder: Path, known: TestSplit | None) -> TestSplit | None:
    """The test split of a run; None where its data is the known one."""
    record = read_json(folder / "run.json")
    fingerprint = str(record.get("data_hash"))
    if known is not None:
        if record["data"]["splits"]["test"] != known.counts["test"]:
            raise DataError(
                f"{folder} was tested on other images than the arms before it: arms are compared "
                "on the same ones. Give the experiment a new --output"
            )
        return None
    manifest = Manifest.read(folder / "manifest.parquet")
    rows = manifest.split("test")
    policy = build_recipe(record["recipe"]).data.policy(training=False)
    return TestSplit(
        source=manifest.source,
        fingerprint=fingerprint,
        keys=rows.select("image", "patient_id", "study_id"),
        labels=manifest.labels,
        targets=policy.targets(rows.select(manifest.labels)),
        counts=manifest.counts(),
    )


def _arm(cells: Sequence[tuple[Arm, int, Path]], test: TestSplit) -> ArmResult:
    """All seeds of one arm."""
    logits, probabilities, figures, runs, seconds = [], [], [], [], []
    for _, _, folder in cells:
        path = folder / "predictions.parquet"
        try:
            table = pl.read_parquet(path).filter(pl.col("split") == "test")
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DataError(f"{path} cannot be read: remove that run, and go on") from error
        if table["image"].to_list() != test.keys["image"].to_list():
            raise DataError(f"{path} is of other test images than the manifest's")
        found = [
            table.select(f"{label} {what}" for label in test.labels).to_numpy().astype(np.float64)
            for what in ("logit", "probability")
        ]
        logits.append(found[0])
        probabilities.append(found[1])
        figures.append(evaluate(found[0], found[1], test.targets, test.labels))
        runs.append(read_json(folder / "metrics.json"))
        cell = folder / "cell.json"
        seconds.append(float(read_json(cell)["seconds"]) if cell.is_file() else 0.0)
    return ArmResult(
        cells[0][0],
        tuple(seed for _, seed, _ in cells),
        np.stack(logits),
        np.stack(probabilities),
        tuple(figures),
        tuple(runs),
        tuple(seconds),
    )


def _right(
    probabilities: Float64[np.ndarray, "s n l"], targets: Int8[np.ndarray, "n l"]
) -> Bool[np.ndarray, "n l"]:
    """Whether the mean probability over seeds is on the right side of 0.5."""
    right: Bool[np.ndarray, "n l"] = (probabilities.mean(axis=0) > 0.5) == (targets == 1)
    return right


def all_pairs(evidence: Evidence, against: str) -> pl.DataFrame:
    """DeLong and McNemar of every arm against one, long: a row an arm and label."""
    rows: list[dict[str, Any]] = []
    for name in evidence.arms:
        if name == against:
            continue
        pair = evidence.pair(against, name)
        for i, label in enumerate(evidence.test.labels):
            auroc, answers = pair.per_label[i], pair.answers[i]
            low, high = auroc.interval.bounds or (None, None)
            rows.append(
                {"first": against, "second": name, "label": label}
                | {"auroc_difference": auroc.estimate, "low": low, "high": high}
                | {"delong_p": auroc.p, "delong_holm_p": pair.adjusted[i]}
                | {"only_first_right": answers.only_first, "only_second_right": answers.only_second}
                | {"mcnemar_exact_p": answers.exact, "mcnemar_mid_p": answers.mid_p}
                | {"mcnemar_clustered_p": answers.clustered}
                | {"mcnemar_holm_p": pair.answers_adjusted[i], "reason": auroc.reason}
            )
    return pl.DataFrame(rows, infer_schema_length=None)
