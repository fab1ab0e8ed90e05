import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from medqua.core.adapter import classical_only
from medqua.core.errors import ConfigError, DataError, MedQuaError
from medqua.core.model.bundle import Bundle
from medqua.train.model import build_model
from medqua.train.recipe import Recipe, load_recipe
from medqua.train.run import train
from medqua.train.trainer.checkpoint import RECORD, Checkpoints, load_trained_state
from medqua.train.trainer.trainer import MedQuaTrainer

QUIET = Console(quiet=True)

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # peft reads it in `open`
)


@pytest.fixture(scope="module")
def recipe(small: tuple[str, ...]) -> Callable[..., Recipe]:
    return lambda root, *more: load_recipe("folder", [*small, f"data.root={root}", *more])


@pytest.fixture(scope="module")
def finished(recipe, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    train(recipe(images, "evaluation.plots=true"), folder, QUIET)
    return folder


def test_a_run_leaves_everything(finished):
    there = {path.name for path in finished.iterdir()}
    assert there == {
        *("metrics.json", "run.json", "manifest.parquet", "predictions.parquet", "bundle"),
        *("trainer_state", "tensorboard", "plots"),
    }
    record = json.loads((finished / "run.json").read_text())
    assert record["state"] == "complete"
    assert record["recipe"]["optim"]["batch_size"] == 8
    assert len(record["data_hash"]) == 64
    assert record["versions"]["torch"] == torch.__version__.split("+")[0] or record["versions"]
    assert (finished / "plots" / "roc.png").stat().st_size > 5_000


def test_metrics_have_the_documented_keys(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    for key in ("macro_auroc", "macro_auprc", "accuracy", "all_negative_accuracy", "ece", "brier"):
        assert key in metrics["test"]
        assert key in metrics["untrained"]
    row = metrics["test"]["per_label"]["Mass"]
    assert {"auroc", "auroc_ci95", "positives"} <= set(row)
    assert len(metrics["router"]) == 2
    for layer in metrics["router"].values():
        assert set(layer) == {"activation_ratio", "threshold", "mean_depth"}
    assert metrics["seconds_per_image"] > 0
    assert 0 < metrics["trainable_parameters"] <= metrics["parameters"]
    assert metrics["untrained"]["macro_auroc"] == 0.5  # the head starts at zero


def test_each_evaluation_happens_once(finished):
    state = json.loads((finished / "trainer_state" / "trainer_state.json").read_text())
    steps = [line["step"] for line in state["log_history"] if "eval_macro_auroc" in line]
    assert len(steps) == len(set(steps)) == 1  # the recipe: every other epoch of two


def test_the_bundle_predicts_what_was_written(finished, images):
    rows = pl.read_parquet(finished / "predictions.parquet").filter(pl.col("split") == "test")
    bundle = Bundle.open(finished / "bundle")
    assert bundle.labels == ("Mass", "Edema")
    found = bundle.predict([images / name for name in rows["image"]])
    for name in bundle.labels:
        served = [findings[name].probability for findings in found]
        assert served == pytest.approx(rows[f"{name} probability"].to_list(), abs=1e-5)


def test_what_the_quantum_path_does_is_recorded(finished, images):
    rows = pl.read_parquet(finished / "predictions.parquet").filter(pl.col("split") == "test")
    bundle = Bundle.open(finished / "bundle")
    with classical_only(bundle.classifier):
        found = bundle.predict([images / name for name in rows["image"]])
    changes = [
        abs(findings[name].probability - probability)
        for name in bundle.labels
        for findings, probability in zip(found, rows[f"{name} probability"], strict=True)
    ]
    recorded = json.loads((finished / "metrics.json").read_text())["classical_only"]
    assert recorded["largest_probability_change"] == pytest.approx(max(changes), abs=1e-6)
    assert recorded["mean_probability_change"] == pytest.approx(np.mean(changes), abs=1e-6)
    assert max(changes) > 0


def test_a_folder_that_holds_a_run_is_not_overwritten(finished, recipe, images):
    with pytest.raises(ConfigError, match="holds a run already"):
        train(recipe(images), finished, QUIET)
    with pytest.raises(
        ConfigError, match=r"made by another recipe.*optim\.epochs was 2\.0, is 9\.0"
    ):
        train(recipe(images, "optim.epochs=9"), finished, QUIET, resume=True)
    with pytest.raises((ConfigError, DataError)):
        train(recipe(images), finished.parent / "nothing", QUIET, resume=True)


def test_a_stopped_run_resumes_to_the_same_bits(finished, recipe, images, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    log = MedQuaTrainer.log

    def stop_at_two(self: MedQuaTrainer, *args: object, **kwargs: object) -> None:
        log(self, *args, **kwargs)  # type: ignore[arg-type]
        self.stop.wanted = self.stop.wanted or self.state.global_step == 1

    with monkeypatch.context() as patch:
        patch.setattr(MedQuaTrainer, "log", stop_at_two)
        with pytest.raises(KeyboardInterrupt):
            train(recipe(images), folder, QUIET)
    assert json.loads((folder / "run.json").read_text())["state"] == "interrupted"
    stopped = Checkpoints(folder / "trainer_state").last()
    assert stopped is not None
    assert (stopped / RECORD).is_file()
    train(recipe(images), folder, QUIET, resume=True)
    expected = load_file(finished / "bundle" / "head.safetensors")
    for name, value in load_file(folder / "bundle" / "head.safetensors").items():
        assert value.equal(expected[name]), name
    adapter = "bundle/adapter/adapter_model.safetensors"
    for name, value in load_file(folder / adapter).items():
        assert value.equal(load_file(finished / adapter)[name]), name
    both = [pl.read_parquet(path / "predictions.parquet") for path in (finished, folder)]
    assert both[0].equals(both[1])


def test_unreadable_images_are_counted_and_listed(recipe, images, tmp_path):
    root = tmp_path / "images"
    shutil.copytree(images, root)
    (root / "7.png").write_bytes((root / "7.png").read_bytes()[:200])
    (root / "8.png").unlink()
    with pytest.raises(DataError, match=r"1 images that are not there, among them 8\.png"):
        train(recipe(root), tmp_path / "a", QUIET)
    with pytest.raises(MedQuaError, match=r"7\.png"):
        train(recipe(root, "data.check_images=false"), tmp_path / "b", QUIET)
    assert json.loads((tmp_path / "b" / "run.json").read_text())["state"] == "failed"
    short = ("optim.epochs=1", "evaluation.plots=false", "evaluation.untrained=false")
    for keep in ("true", "false"):
        options = (f"data.keep_in_memory={keep}", "data.skip_unreadable=true", *short)
        metrics = train(recipe(root, *options), tmp_path / keep, QUIET)
        assert metrics["data"]["skipped"] == 2
        assert (tmp_path / keep / "unreadable.txt").read_text() == "7.png\n8.png\n"


def test_a_checkpoint_of_another_model_is_refused(finished, recipe, images):
    checkpoint = Checkpoints(finished / "trainer_state").last()
    assert checkpoint is not None
    other, _ = build_model(recipe(images, "backbone.tiny.mlp=64"), 2)
    with pytest.raises(DataError, match="of another model"):
        load_trained_state(other, checkpoint)
    with pytest.raises(DataError, match="no checkpoint"):
        load_trained_state(other, finished)


def torchrun(processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", "-m", "medqua.train", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_two_processes_give_the_same_keys_and_count_every_image_once(
    finished, small, images, tmp_path
):
    overrides = [*small, f"data.root={images}", "adapter.target_ratio=0.05"]
    result = torchrun(2, "folder", "--json", "--output", str(tmp_path / "run"), *overrides)
    assert result.returncode == 0, result.stderr[-3000:]
    metrics = json.loads(result.stdout)
    alone = json.loads((finished / "metrics.json").read_text())
    assert metrics.keys() == alone.keys()
    assert metrics["test"].keys() == alone["test"].keys()
    assert metrics["test"]["images"] == alone["test"]["images"]
    rows = pl.read_parquet(tmp_path / "run" / "predictions.parquet")
    assert np.isfinite(rows["Mass logit"].to_numpy()).all()
    assert rows["image"].n_unique() == rows.height
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["device"]["processes"] == 2


@pytest.mark.slow
def test_a_signal_leaves_a_checkpoint_and_a_true_record(small, images, tmp_path, patience):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "medqua.train", "folder", "--output", str(folder)]
    overrides = [*small, f"data.root={images}", "optim.epochs=5000", "evaluation.untrained=false"]
    with subprocess.Popen(
        [*command, *overrides], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "step " in line:
                process.send_signal(signal.SIGINT)
                break
        process.stdout.read()
        assert process.wait(patience) == 130
    assert json.loads((folder / "run.json").read_text())["state"] == "interrupted"
    assert Checkpoints(folder / "trainer_state").last() is not None
    assert not (folder / "metrics.json").exists()
