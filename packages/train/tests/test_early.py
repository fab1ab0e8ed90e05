import json
from math import nan

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from medqua.core.errors import ConfigError
from medqua.train.recipe import load_recipe
from medqua.train.run import train
from medqua.train.trainer.early import describe, exhausted, waited


def log(*scores: float) -> list[dict[str, float]]:
    return [{"step": 10 * (i + 1), "eval_macro_auroc": s} for i, s in enumerate(scores)]


@pytest.mark.parametrize(
    ("scores", "min_delta", "expected"),
    [
        ((), 0.0, 0),
        ((0.5,), 0.0, 0),
        ((0.5, 0.6, 0.6, 0.55), 0.0, 2),  # as good is not better
        ((0.5, 0.505, 0.509), 0.01, 2),  # small steps from the same best
        ((0.5, 0.505, 0.511), 0.01, 0),
        ((nan, nan), 0.0, 2),
        ((nan, 0.4), 0.5, 0),  # the first that there is
        ((0.6, nan, 0.7), 0.0, 0),
    ],
)
def test_waiting_is_counted_from_the_last_better_score(scores, min_delta, expected):
    assert waited(scores, min_delta) == expected


@given(st.lists(st.floats(0, 1), min_size=1), st.integers(1, 5))
def test_a_run_never_stops_on_its_best_score(scores, patience):
    best = [*scores, 2.0]
    assert not exhausted(log(*best), patience, 0.0)
    assert exhausted(log(*best, *[0.0] * patience), patience, 0.0)


def test_no_patience_is_for_ever():
    assert not exhausted(log(*[0.5] * 100), 0, 0.0)


def test_what_is_recorded_names_the_best_step():
    assert describe(log(0.5, 0.7, 0.6, 0.6), 2, 0.0) == {
        "patience": 2,
        "min_delta": 0.0,
        "stopped": True,
        "last_step": 40,
        "best_step": 20,
        "best_macro_auroc": 0.7,
    }


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["evaluation.patience=2", "evaluation.choose_best=false"], "keeps its best checkpoint"),
        (["evaluation.min_delta=0.01"], "without evaluation.patience"),
        (["evaluation.patience=-1"], "at least 0"),
    ],
)
def test_contradictions_are_refused(keys, words):
    with pytest.raises(ConfigError, match=words):
        load_recipe("folder", keys)


def test_a_run_stops_early_keeps_its_best_and_says_so(small, images, tmp_path):
    keys = ["optim.epochs=40", "evaluation.every=1", "evaluation.patience=2", "run.trackers=[]"]
    keys += ["evaluation.min_delta=0.9", "evaluation.untrained=false", "evaluation.bootstrap=0"]
    recipe = load_recipe("folder", [*small, *keys, f"data.root={images}"])
    metrics = train(recipe, tmp_path / "run", Console(quiet=True))
    found = json.loads((tmp_path / "run" / "run.json").read_text())["early_stopping"]
    assert found["stopped"]
    assert metrics["steps"] == found["last_step"] == 3 * 3  # the first sets the mark, two wait
    assert metrics["validate"]["macro_auroc"] == pytest.approx(found["best_macro_auroc"])
