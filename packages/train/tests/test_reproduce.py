import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from medqua.core.errors import ConfigError
from medqua.train.experiment.arms import ARMS
from medqua.train.experiment.grid import is_done, plan
from medqua.train.experiment.report import write_report
from medqua.train.experiment.reproduce import reproduce, run_cell, run_cells
from medqua.train.experiment.section import ExperimentSection
from medqua.train.recipe import load_recipe

QUIET = Console(quiet=True)
RECIPE = "reproduce-radiographs"

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # peft reads it in `open`
)


@pytest.fixture
def keys(small, images) -> list[str]:
    """A grid of seconds: a frozen backbone, one epoch."""
    chosen = [key for key in small if not key.startswith(("backbone.", "data.frac", "optim.epo"))]
    return [*chosen, "optim.epochs=1", "adapter.every=3", f"data.root={images}"]


def test_every_arm_with_every_seed_and_one_zero_shot(tmp_path, keys):
    cells = plan(RECIPE, keys, tmp_path)
    trained = [arm for arm in ARMS if arm.trains != "nothing"]
    assert len(cells) == 5 * len(trained) + 1
    assert len({cell.folder for cell in cells}) == len(cells)
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    for cell in cells:
        assert cell.recipe.run.seed == cell.seed
        assert cell.recipe.run.prefix == str(tmp_path / "states")
    frozen = {cell.arm.name for cell in cells if cell.recipe.backbone.tuned == "full"}
    assert frozen == {"sft"}


def test_a_curve_has_every_arm_at_every_share(tmp_path, keys):
    chosen = [*keys, "experiment.arms=medqua,mlp", "experiment.seeds=7"]
    cells = plan(RECIPE, [*chosen, "experiment.shares=0.1,1"], tmp_path)
    assert [(c.arm.name, c.seed, c.recipe.data.patients) for c in cells] == [
        ("medqua", 7, 0.1),
        ("mlp", 7, 0.1),
        ("medqua", 7, 1.0),
        ("mlp", 7, 1.0),
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("experiment.arms=medqua", "lacks mlp of the declared endpoint"),
        ("experiment.arms=medqua,mlp,loro", "did you mean 'lora'"),
        ("experiment.against=medqua", "needed two arms"),
        ("experiment.seeds=1,1", "different seeds"),
        ("experiment.shares=0", "shares in"),
        ("experiment.resamples=0", "at least 1"),
    ],
)
def test_wrong_experiments_are_refused(tmp_path, keys, override, message):
    with pytest.raises(ConfigError, match=message):
        plan(RECIPE, [*keys, override], tmp_path)


def test_one_arm_with_one_seed_gives_the_same_numbers_again(tmp_path, keys):
    chosen = [*keys, "experiment.arms=medqua,mlp", "experiment.seeds=3"]
    cell = plan(RECIPE, chosen, tmp_path)[0]
    assert not is_done(cell)
    run_cell(cell.recipe.to_dict(), str(cell.folder))
    assert is_done(cell)
    first = pl.read_parquet(cell.folder / "predictions.parquet")
    assert not list((cell.folder / "trainer_state").glob("checkpoint-*"))
    assert json.loads((cell.folder / "cell.json").read_text())["seconds"] > 0
    assert "Starting from kept hidden states" in (cell.folder / "log.txt").read_text()
    shutil.rmtree(tmp_path / "states")  # computed anew too
    run_cell(cell.recipe.to_dict(), str(cell.folder))
    second = pl.read_parquet(cell.folder / "predictions.parquet")
    assert second.equals(first)
    whole = replace(cell.recipe, run=replace(cell.recipe.run, prefix=""))
    run_cell(whole.to_dict(), str(tmp_path / "whole"))
    third = pl.read_parquet(tmp_path / "whole" / "predictions.parquet")
    names = [name for name in first.columns if name.endswith("logit")]
    np.testing.assert_allclose(
        third.select(names).to_numpy(), first.select(names).to_numpy(), atol=1e-4
    )


def test_a_killed_or_foreign_cell_is_not_done(tmp_path, keys):
    chosen = [*keys, "experiment.arms=medqua,mlp", "experiment.seeds=0"]
    cell = plan(RECIPE, chosen, tmp_path)[0]
    cell.folder.mkdir(parents=True)
    record = {"state": "running", "recipe": cell.recipe.to_dict()}
    for name in ("metrics.json", "predictions.parquet"):
        (cell.folder / name).touch()
    (cell.folder / "run.json").write_text(json.dumps(record))
    assert not is_done(cell)
    record["state"] = "complete"
    (cell.folder / "run.json").write_text(json.dumps(record))
    assert is_done(cell)
    moved = replace(cell, recipe=replace(cell.recipe, run=replace(cell.recipe.run, prefix="x")))
    assert is_done(moved)
    record["recipe"]["optim"]["epochs"] = 99.0
    (cell.folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"optim\.epochs was 99"):
        is_done(cell)


def test_a_declared_endpoint_stays(tmp_path):
    def start(against: str) -> None:
        keys = ["data.root=nowhere", f"experiment.against={against}", "experiment.seeds=0"]
        reproduce(RECIPE, keys, tmp_path, QUIET, jobs=1)

    (tmp_path / "reproduce.json").write_text(
        json.dumps({"endpoint": {"arm": "medqua", "against": "mlp"}})
    )
    with pytest.raises(ConfigError, match="not changed once it is declared"):
        start("lora")


def test_the_shipped_experiments_declare_the_matched_perceptron():
    for name in ("reproduce", "reproduce-radiographs"):
        experiment = load_recipe(name).experiment
        assert (experiment.arm, experiment.against) == ("medqua", "mlp")
        assert len(experiment.seeds) >= 5
    assert ExperimentSection().endpoint.startswith("test macro AUROC of medqua minus mlp")


@pytest.mark.slow
def test_a_grid_in_worker_processes_goes_on_where_it_stopped(tmp_path, keys, images: Path):
    chosen = [*keys, "experiment.arms=medqua,mlp,zero_shot", "experiment.seeds=0,1"]
    cells = reproduce(RECIPE, chosen, tmp_path, QUIET, jobs=2)
    assert all(is_done(cell) for cell in cells)
    before = {cell.folder: (cell.folder / "metrics.json").stat().st_mtime_ns for cell in cells}
    shutil.rmtree(cells[0].folder)
    reproduce(RECIPE, chosen, tmp_path, QUIET, jobs=1)
    after = {cell.folder: (cell.folder / "metrics.json").stat().st_mtime_ns for cell in cells}
    assert {folder for folder in before if before[folder] != after[folder]} == {cells[0].folder}
    report = write_report(cells, load_recipe(RECIPE, chosen).experiment, tmp_path / "report")
    assert "Zero-shot" in report.read_text()


@pytest.mark.slow
def test_a_cell_that_fails_costs_itself_alone(tmp_path, keys):
    chosen = [*keys, "experiment.arms=medqua,mlp", "experiment.seeds=0"]
    cells = plan(RECIPE, chosen, tmp_path)
    broken = replace(cells[0].recipe, data=replace(cells[0].recipe.data, root="nowhere"))
    failed = run_cells([replace(cells[0], recipe=broken), cells[1]], 1, 0, QUIET)
    assert [cell.arm.name for cell, _ in failed] == [cells[0].arm.name]
    assert is_done(cells[1])
