import json
import shutil
from pathlib import Path

import optuna
import pytest
from rich.console import Console

from medqua.core.errors import ConfigError, MedQuaError
from medqua.train.search.report import write_sweep_report
from medqua.train.search.space import Dimension, Space, load_space, shipped_space
from medqua.train.search.sweep import sweep

QUIET = Console(quiet=True)
SPACE = Space(
    trials=2,
    space={
        "optim.head": {"low": 1e-3, "high": 1e-1, "log": True},
        "adapter.rank": {"choices": [2, 4]},
        "optim.max_steps": {"low": 4, "high": 6, "whole": True},
    },
)


@pytest.fixture(scope="module")
def keys(small, images: Path) -> list[str]:
    return [*small, "optim.max_steps=6", "optim.warmup=0", f"data.root={images}"]


@pytest.fixture(scope="module")
def swept(keys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("sweep") / "out"
    study = sweep("folder", keys, SPACE, output, QUIET)
    write_sweep_report(study, SPACE, output, "folder")
    return output


def test_a_sweep_leaves_its_trials_and_the_best_of_them(swept):
    told = [json.loads(p.read_text()) for p in sorted((swept / "trials").glob("*.json"))]
    assert [t["trial"] for t in told] == [0, 1]
    best = json.loads((swept / "best.json").read_text())
    assert best["validation_macro_auroc"] == max(t["validate"]["macro_auroc"] for t in told)
    assert best["overrides"] == told[best["trial"]]["overrides"]
    assert len({t["validate"]["macro_auroc"] for t in told}) == 2  # else any would be the best
    assert {key.split("=")[0] for key in best["overrides"]} == set(SPACE.space)
    assert (swept / "sweep.png").stat().st_size > 5_000


def test_nothing_of_the_test_split_stays(swept):
    left = {path.name for path in swept.rglob("*") if path.is_file()}
    assert left == {"study.db", "best.json", "report.md", "sweep.png", "0.json", "1.json"}
    for path in (swept / "trials").glob("*.json"):
        assert '"test"' not in path.read_text()


def test_the_same_command_goes_on(swept, keys, tmp_path):
    from dataclasses import replace

    output = Path(shutil.copytree(swept, tmp_path / "out"))
    before = (output / "trials" / "0.json").read_text()
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{output / 'study.db'}")
    study.ask()  # as a trial that was killed
    found = sweep("folder", keys, replace(SPACE, trials=3), output, QUIET)
    states = [trial.state.name for trial in found.trials]
    assert states == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]
    assert (output / "trials" / "0.json").read_text() == before
    with pytest.raises(ConfigError, match="another recipe or space"):
        sweep("folder", [*keys, "optim.beta1=0.5"], SPACE, output, QUIET)


def test_a_sweep_of_failures_says_where_to_look(keys, tmp_path):
    space = Space(trials=1, space={"optim.head": {"choices": [1.0]}})
    with pytest.raises(MedQuaError, match="all 1 trials failed"):
        sweep("folder", [*keys, "data.table=nowhere.csv"], space, tmp_path / "out", QUIET)
    told = json.loads((tmp_path / "out" / "trials" / "0.json").read_text())
    assert "nowhere.csv" in told["error"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[space", "no search space"),
        ("trials = 3", "space"),
        ("[space]", "is empty"),
        ('[space."optim.hed"]\nlow = 1e-3\nhigh = 1e-2', "did you mean 'optim.head'"),
        ('[space."optim.head"]\nlow = -1\nhigh = 1e-2', "optim.head = -1"),
        ('[space."optim.head"]\nlow = 1', "low below high"),
        ('[space."optim.head"]\nlow = 0\nhigh = 1\nlog = true', "more than 0"),
        ('[space."optim.head"]\nlow = 1\nhigh = 2\nchoices = [1]', "either choices"),
        ('[space."optim.head"]\nlow = 1\nhigh = 2\nstep = 1', "unknown key"),
        ('[space."adapter.rank"]\nlow = 1.5\nhigh = 2\nwhole = true', "whole numbers"),
        ('[space."run.seed"]\nchoices = [0, 1]', "flatter"),
        ('[space."data.root"]\nchoices = ["a", "b"]', "one data set"),
        ("space = 3", "a table"),
    ],
)
def test_a_space_that_does_not_fit_is_refused(text, words, tmp_path):
    path = tmp_path / "space.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_space(path, "folder", ["data.root=x"])


def test_the_shipped_space_fits_every_recipe_with_an_adapter():
    for recipe in ("mimic", "chestmnist", "folder", "nih"):
        space = load_space(shipped_space(), recipe, [])
        assert isinstance(space.dimensions["optim.head"], Dimension)
