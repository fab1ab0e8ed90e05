"""A run that learns reports: its folder, its resuming, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from medqua.core.errors import ConfigError
from medqua.core.model.bundle import Bundle
from medqua.train.__main__ import app
from medqua.train.data.manifest import IGNORED
from medqua.train.data.phantom import write_tree
from medqua.train.model import build_model
from medqua.train.recipe import ReportRecipe, load_recipe
from medqua.train.reports.model import ReportWriter
from medqua.train.reports.prepare import report_recipe
from medqua.train.reports.run import report_stages
from medqua.train.reports.writer import report_inputs, report_loss
from medqua.train.run import train

SMALL = (
    "image.size=56",
    "optim.batch_size=8",
    "optim.epochs=2",
    "run.log_every=1",
    "run.threads=1",
    "evaluation.bootstrap=20",
    "evaluation.batch_size=16",
    "evaluation.every=1",
    "backbone.source=tiny",
    "backbone.tune=full",
    "backbone.prompt=Findings?",
    "backbone.tiny.decoder_layers=2",
    "backbone.tiny.vision_depth=1",
    "backbone.tiny.hidden=32",
    "backbone.tiny.heads=2",
    "backbone.tiny.mlp=32",
    "adapter.every=1",
    "adapter.n_qubits=2",
    "adapter.max_depth=1",
    "data.views=[]",
    "report.max_tokens=12",
    "report.gallery=4",
    "report.references=2",
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree") / "phantoms"
    write_tree(root, patients=24, seed=3, size=64, dicom=False, processes=1)
    return root


def recipe_of(tree: Path, *more: str) -> ReportRecipe:
    return report_recipe(load_recipe("report", [*SMALL, f"data.root={tree}", *more]))


@pytest.fixture(scope="module")
def done(tree: Path, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("run") / "r"
    metrics = train(recipe_of(tree), folder, Console(quiet=True), stages=report_stages)
    return folder, metrics


def test_a_run_leaves_figures_page_pictures_and_texts(done):
    folder, metrics = done
    kept = json.loads((folder / "metrics.json").read_text())
    assert kept["test"]["macro_f1"] == metrics["test"]["macro_f1"]
    assert metrics["writers"]["reference"]["macro_f1"] == 1.0
    assert metrics["writers"]["all_negative"]["macro_f1"] == 0.0
    assert set(metrics["retrieval"]["equal_text"]) >= {"beyond", "classical_only", "chance"}
    for name in ("writers", "retrieval", "learning"):
        assert (folder / "plots" / f"{name}.png").stat().st_size > 5000
    page = (folder / "report.md").read_text()
    assert page.index("Declared comparison") < page.index("What the texts say")
    texts = pl.read_parquet(folder / "reports.parquet")
    assert len(texts) == metrics["test"]["images"]
    assert texts["reference"][0].split()[0] in page
    assert json.loads((folder / "run.json").read_text())["state"] == "complete"
    assert len(Bundle.open(folder / "bundle").labels) == 14


def test_texts_of_patients_are_not_in_the_page(tree: Path, tmp_path: Path):
    real = tmp_path / "tree"
    real.mkdir()
    for path in tree.iterdir():
        if path.name != "phantom.json":
            (real / path.name).symlink_to(path)
    recipe = recipe_of(real, "optim.max_steps=1", "evaluation.plots=false")
    train(recipe, tmp_path / "r", Console(quiet=True), stages=report_stages)
    page = (tmp_path / "r" / "report.md").read_text()
    assert "Samples" not in page
    for text in pl.read_parquet(tmp_path / "r" / "reports.parquet")["reference"]:
        assert text not in page


def test_a_resumed_run_is_the_run_that_was_never_stopped(done, tree: Path, tmp_path: Path):
    folder, metrics = done
    state = tmp_path / "r" / "trainer_state"
    first = sorted((folder / "trainer_state").glob("checkpoint-*"), key=lambda p: len(p.name))[0]
    state.mkdir(parents=True)
    (state / first.name).symlink_to(first)
    (tmp_path / "r" / "run.json").write_text((folder / "run.json").read_text())
    again = train(
        recipe_of(tree), tmp_path / "r", Console(quiet=True), resume=True, stages=report_stages
    )
    assert again["test"] == metrics["test"]
    assert again["retrieval"] == metrics["retrieval"]


def test_the_loss_of_a_writer_is_that_of_its_reports_and_the_head_sees_none(tree: Path):
    recipe = recipe_of(tree)
    writer, backbone = build_model(recipe, 14, ReportWriter)
    torch.nn.init.normal_(writer.head.weight)
    writer.eval()
    images = list(np.random.default_rng(0).random((2, 56, 56), dtype=np.float32))
    inputs = report_inputs(backbone.processor, images, "Findings?", ["No edema.", "Edema is seen."])
    labels = inputs["labels"]
    with torch.no_grad():
        expected = report_loss(writer.backbone, inputs)
        asked = {name: value for name, value in inputs.items() if name != "labels"}
        logits, nats = writer(**asked, report=labels)
        torch.testing.assert_close(nats.sum() / (labels != IGNORED).sum(), expected)
        other = report_inputs(backbone.processor, images, "Findings?", ["Fracture.", "Fracture."])
        report = other.pop("labels")
        torch.testing.assert_close(writer(**other, report=report)[0], logits)


def test_what_cannot_be_learned_is_refused(tree: Path):
    for key in ("run.prefix=/tmp/x", "run.parallel=fsdp", "evaluation.patience=1"):
        with pytest.raises(ConfigError, match=r"with \[report\]"):
            recipe_of(tree, key)
    with pytest.raises(ConfigError, match="at most once"):
        recipe_of(tree, "report.sections=findings,findings")
    with pytest.raises(ConfigError, match=r"no \[report\] section"):
        report_recipe(load_recipe("mimic"))


def test_the_verb_looks_ahead_and_others_refuse_its_recipe(tree: Path):
    run = CliRunner().invoke(app, ["report", "--dry-run", *SMALL, f"data.root={tree}"])
    assert run.exit_code == 0, run.output
    assert "different texts" in run.output
    refused = CliRunner().invoke(app, ["mimic", "--dry-run", "report.gallery=3"])
    assert isinstance(refused.exception, ConfigError)
    assert "use the verb report" in str(refused.exception)
