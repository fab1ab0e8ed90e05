import json

import pytest

from medqua.core.console import run
from medqua.train.__main__ import app


def test_help_of_every_verb_shows_examples(capsys):
    for verb in ("mimic", "chestmnist", "folder", "nih", "chexpert", "vindr", "phantoms"):
        assert run(app, [verb, "--help"]) == 0
        text = capsys.readouterr().out
        assert f"medqua-train {verb}" in text
        assert "KEY=VALUE" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["folder"], "data.root is not given"),
        (["folder", "data.root=nowhere"], "no folder nowhere"),
        (["chestmnist", "data.root=nowhere"], "data.download=true"),
        (["mimic", "data.root=nowhere"], "no folder nowhere"),
        (["mimic", "optim.epoch=3"], "did you mean 'optim.epochs'"),
        (["mimic", "--resume"], "--resume needs --output"),
        (["mimic", "--recipe", "nowhere.toml"], "no recipe nowhere.toml"),
    ],
)
def test_a_mistake_ends_with_its_message_and_status_2(
    arguments, words, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert run(app, arguments) == 2
    error = capsys.readouterr().err
    assert words in " ".join(error.split())
    assert "Traceback" not in error


def test_a_recipe_of_another_kind_is_refused(capsys, tmp_path):
    path = tmp_path / "own.toml"
    path.write_text('[data]\nkind = "folder"\n')
    assert run(app, ["mimic", "--recipe", str(path)]) == 2
    assert "use the verb folder" in " ".join(capsys.readouterr().err.split())


def test_metrics_go_to_standard_output_alone(capsys, small, images, tmp_path):
    short = ["optim.max_steps=1", "evaluation.plots=false", "evaluation.bootstrap=0"]
    arguments = ["folder", "--json", "--output", str(tmp_path / "run"), *small, *short]
    assert run(app, [*arguments, f"data.root={images}"]) == 0
    captured = capsys.readouterr()
    metrics = json.loads(captured.out)
    assert metrics["test"]["per_label"]["Mass"]["auroc_ci95"] is None
    assert "untrained" in captured.err
