import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from medqua.core.errors import DataError
from medqua.train.data.manifest import Manifest
from medqua.train.evaluation.metrics import macro_auroc
from medqua.train.experiment.arms import find_arm
from medqua.train.experiment.evidence import gather
from medqua.train.experiment.grid import Cell
from medqua.train.experiment.report import write_report
from medqua.train.experiment.section import ExperimentSection
from medqua.train.recipe import load_recipe
from medqua.train.statistics.resampling import Resampling

LABELS = ("Mass", "Edema", "Hernia")
EXPERIMENT = ExperimentSection(arms=("medqua", "mlp"), seeds=(0, 1), resamples=100)


def manifest(n: int = 120) -> Manifest:
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "image": [f"{i:04}.png" for i in range(n)],
            "patient_id": [f"p{i // 2}" for i in range(n)],
            "split": [("train", "validate", "test", "test")[i // 2 % 4] for i in range(n)],
            "Mass": rng.integers(0, 2, n),
            "Edema": rng.integers(-1, 2, n),
            "Hernia": np.zeros(n, int),
        }
    )
    return Manifest.of(frame, "made up")


def cell(root: Path, arm: str, seed: int, gain: float, share: float = 1.0, noise: int = 0) -> Cell:
    """A finished run whose scores are `gain` times the truth, plus noise."""
    folder = root / f"{share:g}" / arm / f"seed-{seed}"
    folder.mkdir(parents=True)
    data = manifest()
    data.write(folder / "manifest.parquet")
    recipe = load_recipe("folder", ["data.root=nowhere", f"run.seed={seed}"])
    rng = np.random.default_rng([seed, noise])
    keys = data.frame.filter(pl.col("split") != "train").sort("split", descending=True)
    truth = keys.select(LABELS).to_numpy() == 1
    logits = gain * truth + rng.normal(size=truth.shape)
    columns = [pl.Series("readable", np.ones(len(truth), bool))]
    for i, label in enumerate(LABELS):
        columns.append(pl.Series(f"{label} logit", logits[:, i]))
        columns.append(pl.Series(f"{label} probability", 1 / (1 + np.exp(-logits[:, i]))))
    table = keys.select("image", "patient_id", "study_id", "split").with_columns(columns)
    table.write_parquet(folder / "predictions.parquet")
    record = {"recipe": recipe.to_dict(), "data": {"splits": data.counts()}, "data_hash": "x"}
    versions = dict.fromkeys(("python", "torch", "transformers", "peft", "medqua-train"), "1.2")
    record |= {"started": "2026-01-02T03:04:05+00:00", "git_commit": f"{arm:a<40}"}
    record |= {"device": {"name": "a machine"}, "versions": versions}
    (folder / "run.json").write_text(json.dumps(record | {"state": "complete"}))
    router = {"layers.1": {"activation_ratio": 0.2, "threshold": 0.5, "mean_depth": 1.5}}
    without = {"macro_auroc": 0.6 + 0.1 * seed}
    without |= {"mean_probability_change": 1e-3, "largest_probability_change": 0.02 * (1 + seed)}
    router = {"router": router, "classical_only": without if arm == "medqua" else None}
    metrics = {**router, "trainable_parameters": 100 + seed, "seconds_per_image": 0.01}
    (folder / "metrics.json").write_text(json.dumps(metrics | {"training_seconds": 5.0}))
    (folder / "cell.json").write_text(json.dumps({"seconds": 7.0}))
    return Cell(find_arm(arm), seed, share, recipe, folder)


@pytest.fixture(scope="module")
def reported(tmp_path_factory) -> tuple[Path, list[Cell]]:
    root = tmp_path_factory.mktemp("experiment")
    cells = [
        cell(root, arm, seed, gain, share)
        for share, worth in ((0.1, 0.3), (1.0, 1.0))
        for seed in (0, 1)
        for arm, gain in (("medqua", 3 * worth), ("mlp", 1.5 * worth))
    ]
    return write_report(cells, EXPERIMENT, root / "report"), cells


def test_the_endpoint_is_declared_before_any_figure(reported):
    lines = reported[0].read_text().splitlines()
    assert lines[0] == (
        "Declared endpoint: test macro AUROC of medqua minus mlp, paired over patients, mean of 2 "
        "seeds, 95% bootstrap interval."
    )
    sections = [line for line in lines if line.startswith("## ")]
    assert sections[0] == "## The endpoint"


def test_what_made_the_figures_is_told(reported):
    text = " ".join(reported[0].read_text().split())
    assert "Run 2026-01-02 on a machine, at commit medquaaaaa, mlpaaaaaaa, with python 1.2" in text


def test_figures_are_those_of_the_predictions(reported):
    path, cells = reported
    found = {}
    for arm in ("medqua", "mlp"):
        values = []
        for one in cells:
            if one.arm.name == arm and one.share == 1:
                table = pl.read_parquet(one.folder / "predictions.parquet")
                test = table.filter(pl.col("split") == "test")
                truth = manifest().split("test").select(LABELS).to_numpy().astype(np.int8)
                logits = test.select(f"{label} logit" for label in LABELS).to_numpy()
                values.append(macro_auroc(logits, truth))
        found[arm] = np.mean(values)
        assert f"| {np.mean(values):.4f} ±" in path.read_text()
    assert f"**{found['medqua'] - found['mlp']:+.4f}**" in path.read_text()
    assert "The interval excludes 0: on these patients MedQua ranks better" in path.read_text()
    assert "It could hardly have been otherwise" not in path.read_text()


def test_what_the_bottleneck_does_is_told_for_arms_that_have_one(reported):
    text = reported[0].read_text()
    section = text.partition("## What the bottleneck does")[2].partition("\n## ")[0]
    row = next(line for line in section.splitlines() if line.startswith("| MedQua |"))
    assert row.split(" | ")[2] == "0.6500"  # mean of 0.6 and 0.7
    assert row.endswith("| 1.0e-03 | 4.0e-02 |")
    assert "MLP" not in section


def test_labels_without_positives_say_so(reported):
    line = next(line for line in reported[0].read_text().splitlines() if "| Hernia |" in line)
    assert "no positive image" in line
    assert "nan" not in reported[0].read_text().lower()


def test_tables_hold_every_prediction_and_comparison(reported):
    folder = reported[0].parent
    predictions = pl.read_parquet(folder / "predictions.parquet")
    images = manifest().split("test").height
    assert predictions.height == images * 2 * 2 * 2
    assert set(predictions["share"]) == {0.1, 1.0}
    pairs = pl.read_parquet(folder / "comparisons.parquet")
    assert pairs.height == len(LABELS) * 2
    assert pairs.filter(pl.col("label") == "Mass")["delong_p"].is_between(0, 1).all()


def test_pictures_are_there(reported):
    for name in ("differences.png", "reliability.png", "curve.png"):
        assert (reported[0].parent / name).stat().st_size > 5_000
        assert f"({name})" in reported[0].read_text()


def test_equal_arms_show_no_difference(tmp_path):
    cells = [cell(tmp_path, arm, seed, 1.0) for arm in ("medqua", "mlp") for seed in (0, 1)]
    keys = ["data.root=/data/x", "adapter.route=visual"]
    text = write_report(cells, EXPERIMENT, tmp_path / "report", keys).read_text()
    assert "Set beside the recipe: `adapter.route=visual`." in text
    assert "**+0.0000**" in text
    assert "MedQua and MLP for the circuit rank the images alike in every resample." in text
    assert "p = 1.000" in text
    assert "curve.png" not in text


def test_a_small_difference_is_called_none(tmp_path):
    cells = [
        cell(tmp_path, arm, seed, 1.0, noise=noise)
        for noise, arm in enumerate(("medqua", "mlp"))
        for seed in (0, 1)
    ]
    text = write_report(cells, EXPERIMENT, tmp_path / "report").read_text()
    assert "The interval holds 0" in text
    assert "changes a probability by 1.0e-03 on average" in text


def test_cells_of_other_images_are_refused(tmp_path):
    cells = [cell(tmp_path, arm, 0, 1.0) for arm in ("medqua", "mlp")]
    folder = cells[1].folder
    record = json.loads((folder / "run.json").read_text())
    record["data"]["splits"]["test"]["images"] += 1
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="other images"):
        gather([(c.arm, c.seed, c.folder) for c in cells], Resampling(10))
    (cells[0].folder / "predictions.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="cannot be read"):
        gather([(c.arm, c.seed, c.folder) for c in cells[:1]], Resampling(10))
