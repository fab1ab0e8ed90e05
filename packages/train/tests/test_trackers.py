import json
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import wandb
from mlflow.tracking import MlflowClient
from rich.console import Console

from medqua.core.errors import ConfigError
from medqua.train.data.sections import DATA_KINDS
from medqua.train.recipe import SECTIONS, load_recipe
from medqua.train.run import train
from medqua.train.trackers.opened import Trackers, check_installed
from medqua.train.trackers.shared import PATHS, scalars, settings, summary
from medqua.train.typed import annotations_of, field_names

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),  # mlflow's own
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # sqlalchemy's pool outlives the client
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

QUICK = ("evaluation.untrained=false", "evaluation.bootstrap=0", "optim.epochs=1")

HARMLESS = {  # text that tells neither where files are nor whose
    *("backbone.revision", "backbone.prompt", "head.question", "run.project"),
    *("data.labels", "data.views", "data.other_findings", "backbone.source"),
}


@pytest.fixture(scope="module")
def tracked(small, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that tells MLflow and an offline W&B."""
    folder = tmp_path_factory.mktemp("tracked") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        keys = ("run.trackers=tensorboard,wandb,mlflow", "run.project=lungs")
        train(
            load_recipe("folder", [*small, *QUICK, *keys, f"data.root={images}"]),
            folder,
            Console(quiet=True),
        )
    wandb.teardown()  # its service writes the file to the end
    return folder


def mlflow_run(folder: Path):
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("lungs")
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run


def told_wandb(folder: Path) -> bytes:
    (path,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    return path.read_bytes()


def test_mlflow_holds_the_log_the_settings_and_the_figures(tracked):
    metrics = json.loads((tracked / "metrics.json").read_text())
    client, run = mlflow_run(tracked)
    assert run.info.status == "FINISHED"
    assert run.data.params["optim.batch_size"] == "8"
    assert run.data.metrics["test/macro_auroc"] == metrics["test"]["macro_auroc"]
    assert run.data.metrics["test/Mass/auroc"] == metrics["test"]["per_label"]["Mass"]["auroc"]
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "loss")]
    assert steps == list(range(1, metrics["steps"] + 1))
    assert client.list_artifacts(run.info.run_id) == []


def test_wandb_offline_holds_the_log_and_the_figures(tracked):
    told = told_wandb(tracked)
    for name in (b"loss", b"eval_macro_auroc", b"test/macro_auroc", b"optim", b"lungs"):
        assert name in told, name


def test_nothing_that_names_files_or_patients_is_told(tracked, images):
    told = told_wandb(tracked)
    _, run = mlflow_run(tracked)
    told += json.dumps(run.to_dictionary()["data"]).encode()
    for secret in (str(images), images.parent.name, "37.png", "p37", "data.root", "labels.csv"):
        assert secret.encode() not in told, secret


def test_paths_are_told_when_asked_for(small, images):
    recipe = load_recipe("folder", [*small, f"data.root={images}", "run.prefix=/kept"])
    assert "data.root" not in settings(recipe, paths=False)
    assert settings(recipe, paths=True)["data.root"] == str(images)
    assert settings(recipe, paths=True)["run.prefix"] == "/kept"
    local = load_recipe("folder", [*small, f"backbone.source={images}", "backbone.tune=adapter"])
    assert settings(local, paths=False)["backbone.source"] == images.name


def test_every_text_of_a_recipe_was_judged():
    def texts(kind: type, prefix: str) -> set[str]:
        found = set()
        hints = annotations_of(kind)
        for name in field_names(kind):
            if is_dataclass(hints[name]):
                continue  # below data: names of columns, shares, sizes
            if hints[name] in (str, tuple[str, ...]):
                found.add(prefix + name)
        return found

    found = set()
    for name, kind in [*SECTIONS.items(), *(("data", kind) for kind in DATA_KINDS.values())]:
        if name not in ("experiment", "adapter", "image"):
            assert fields(kind)
            found |= texts(kind, f"{name}.")
    assert found == PATHS | HARMLESS


def test_a_package_that_is_missing_is_refused_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(
        "medqua.train.trackers.opened.MODULES", {"wandb": "a_package_that_is_not_there"}
    )
    with pytest.raises(ConfigError, match=r"pip install 'medqua-train\[wandb\]'"):
        check_installed(["tensorboard", "wandb"])


def test_an_unknown_tracker_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'mlflow'"):
        load_recipe("folder", ["run.trackers=mlflo"])


def test_a_tracker_that_fails_is_left_out_and_named_once(tmp_path):
    class Gone:
        def log(self, line):
            raise OSError("connection refused")

        def figures(self, metrics):
            raise AssertionError

        def pictures(self, folder):
            raise AssertionError

        def close(self, state):
            raise AssertionError

    said: list[str] = []
    trackers = Trackers({"far": Gone()}, said.append)
    trackers.log({"step": 1})
    trackers.log({"step": 2})
    trackers.finish({}, tmp_path)
    assert said == ["far is told nothing more: OSError: connection refused"]


def test_a_store_that_is_out_of_reach_is_refused_by_name(small, images, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "gopher://tracking")
    recipe = load_recipe("folder", [*small, f"data.root={images}", "run.trackers=mlflow"])
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI"):
        train(recipe, tmp_path / "run", Console(quiet=True))


def test_figures_become_numbers_by_name():
    metrics = {
        "test": {"macro_auroc": 0.5, "unit": "image", "per_label": {"A": {"auroc": None}}},
        "untrained": None,
        "steps": 7,
        "router": {"x": {"threshold": 1.0}},
    }
    assert summary(metrics) == {"test/macro_auroc": 0.5, "steps": 7.0}
    assert scalars({"step": 3, "loss": float("nan"), "rate": 1}) == {"rate": 1.0}
