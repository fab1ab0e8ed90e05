"""From recipe to findings: what the documented commands leave and print."""

import json
from pathlib import Path

import pytest
from typer import Typer

from medqua.core.console import run
from medqua.core.findings import CHEXPERT_NAMES
from medqua.serve.__main__ import app as serve
from medqua.train.__main__ import app as train


def test_a_run_leaves_what_the_design_names(run_folder: Path):
    metrics = json.loads((run_folder / "metrics.json").read_text())
    test = metrics["test"]
    assert {
        "macro_auroc",
        "macro_auprc",
        "accuracy",
        "all_negative_accuracy",
        "ece",
        "brier",
        "per_label",
    } <= set(test)
    assert set(test["per_label"]) == set(CHEXPERT_NAMES)
    for figures in test["per_label"].values():
        assert figures["auroc"] is not None or figures["reason"]
        assert figures["positives"] >= 0
    assert metrics["untrained"]["macro_auroc"] is not None
    assert metrics["seconds_per_image"] > 0
    assert metrics["trainable_parameters"] > 0
    assert len(metrics["router"]) == 2
    for layer in metrics["router"].values():
        assert 0 <= layer["activation_ratio"] <= 1
        assert {"threshold", "mean_depth"} <= set(layer)
    record = json.loads((run_folder / "run.json").read_text())
    assert record["state"] == "complete"
    assert {"recipe", "versions", "data_hash", "git_commit"} <= set(record)
    assert (run_folder / "bundle" / "bundle.json").is_file()


def test_the_bundle_names_findings_of_genuine_radiographs(
    run_folder: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
):
    files = sorted((shared_data / "dicom").glob("cxr_*.dcm"))
    refused = [
        *sorted((shared_data / "dicom").glob("cr_leg*")),
        *sorted((shared_data / "dicom").glob("cr_teeth*")),
        *sorted((shared_data / "dicom").glob("misc_MR*")),
    ]
    assert len(files) >= 4
    assert len(refused) >= 3
    paths = map(str, (run_folder / "bundle", *files, *refused))
    assert run(serve, ["predict", *paths, "--json"]) == 1
    results = json.loads(capsys.readouterr().out)["results"]
    for result in results[: len(files)]:
        assert len(result["findings"]) == 14
        assert all(0 < finding["probability"] < 1 for finding in result["findings"])
    for result in results[len(files) :]:
        assert result["findings"] is None
        assert result["refusal"]["error"] == "OutOfScopeError"


def test_a_flipped_byte_in_the_bundle_is_told_without_a_traceback(
    run_folder: Path, tmp_path: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
):
    damaged = tmp_path / "bundle"
    for file in (run_folder / "bundle").rglob("*"):
        if file.is_file():
            copy = damaged / file.relative_to(run_folder / "bundle")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    head = damaged / "head.safetensors"
    data = bytearray(head.read_bytes())
    data[-1] ^= 1
    head.write_bytes(data)
    assert run(serve, ["predict", str(damaged), str(shared_data / "dicom/cxr_RG1_J2KI.dcm")]) == 2
    error = capsys.readouterr().err
    assert "head.safetensors" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(("app", "verb"), [(train, "mimic"), (serve, "predict")])
def test_help_has_examples(app: Typer, verb: str, capsys: pytest.CaptureFixture[str]):
    assert run(app, [verb, "--help"]) == 0
    assert "Examples" in capsys.readouterr().out
