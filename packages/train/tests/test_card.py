import json
from pathlib import Path

import pytest
from rich.console import Console

from medqua.core.console import run as run_app
from medqua.core.errors import ConfigError
from medqua.core.model.bundle import Bundle
from medqua.core.model.manifest import MANIFEST, read_manifest, write_manifest
from medqua.train.__main__ import app
from medqua.train.publish.card import render_card
from medqua.train.publish.push import pack, send
from medqua.train.recipe import load_recipe
from medqua.train.run import train


@pytest.fixture(scope="module")
def finished(small, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with weights of labels and the focal loss."""
    folder = tmp_path_factory.mktemp("carded") / "run"
    keys = ("optim.epochs=1", "optim.loss=focal", "optim.gamma=1.5", "run.trackers=[]")
    keys += ("optim.label_weights={Edema = 3.0}", "data.uncertain=ones", "data.blank=ignore")
    recipe = load_recipe("folder", [*small, *keys, f"data.root={images}"])
    train(recipe, folder, Console(quiet=True))
    return folder


def relicensed(bundle: Path, folder: Path, name: str, licence: str) -> Path:
    """The bundle as if it had been trained on other data."""
    import shutil
    from dataclasses import replace

    shutil.copytree(bundle, folder)
    manifest = read_manifest(folder)
    data = {**manifest.training_data, "name": name}
    write_manifest(folder, replace(manifest, training_data=data, license=licence))
    return folder


def test_the_card_tells_what_was_recorded(finished):
    card = (finished / "bundle" / "README.md").read_text()
    metrics = json.loads((finished / "metrics.json").read_text())
    record = json.loads((finished / "run.json").read_text())
    assert "Not for clinical use" in card
    low, high = metrics["test"]["macro_auroc_ci95"]
    assert f"{metrics['test']['macro_auroc']:.4f} | [{low:.4f}, {high:.4f}]" in card
    assert f"{metrics['untrained']['macro_auroc']:.4f} the model before training" in card
    assert f"{metrics['test']['all_negative_accuracy']:.4f} |" in card
    assert f"{metrics['trainable_parameters']:,} of" in card
    assert record["versions"]["torch"] in card
    assert "`focal` with gamma 1.5, weights Edema 3" in card
    assert "uncertain in training `ones`, in evaluation `ignore`, not mentioned `ignore`" in card
    assert '"n_qubits": 2' in card
    assert render_card(record, metrics) == card  # of the two files alone
    assert Bundle.open(finished / "bundle").card == card


def test_what_decides_the_loss_is_recorded(finished):
    recipe = json.loads((finished / "run.json").read_text())["recipe"]
    assert recipe["optim"]["loss"] == "focal"
    assert recipe["optim"]["gamma"] == 1.5
    assert recipe["optim"]["label_weights"] == {"Edema": 3.0}
    assert (recipe["data"]["uncertain"], recipe["data"]["blank"]) == ("ones", "ignore")


def test_no_path_of_this_machine_is_in_the_card(finished, images):
    card = (finished / "bundle" / "README.md").read_text()
    for secret in (str(images), str(finished), images.parent.name):
        assert secret not in card


def test_a_changed_card_is_found(finished, tmp_path):
    import shutil

    copy = shutil.copytree(finished / "bundle", tmp_path / "bundle")
    (copy / "README.md").write_text("the best model")
    with pytest.raises(Exception, match=r"README\.md"):
        Bundle.verify(copy)


@pytest.mark.parametrize(
    ("name", "licence"),
    [
        ("MIMIC-CXR-JPG 2.1.0", "PhysioNet Credentialed Health Data License 1.5.0: do not pass on"),
        ("MIMIC-CXR-JPG 2.1.0", "my own"),
        ("VinDr-CXR 1.0.0", "PhysioNet Credentialed Health Data License 1.5.0"),
    ],
)
def test_credentialed_data_stays_whatever_the_user_says(finished, tmp_path, name, licence):
    bundle = relicensed(finished / "bundle", tmp_path / "b", name, licence)
    for permitted in (False, True):
        with pytest.raises(ConfigError, match="Credentialed Health Data Use Agreement forbids"):
            pack(bundle, "me/first", permitted=permitted)


def test_phantoms_may_go_and_unknown_terms_only_when_read(finished, tmp_path):
    from medqua.train.publish.licences import SYNTHETIC

    name = "PHANTOMS in the layout of MIMIC-CXR-JPG 2.1.0"
    assert pack(relicensed(finished / "bundle", tmp_path / "p", name, SYNTHETIC), "me/first").files
    with pytest.raises(ConfigError, match="--permitted"):
        pack(finished, "me/first")
    parcel = pack(finished, "me/first", permitted=True)
    assert parcel.folder == finished / "bundle"
    assert {"README.md", MANIFEST, "head.safetensors"} <= set(parcel.files)
    assert parcel.size == sum(p.stat().st_size for p in parcel.folder.rglob("*") if p.is_file())
    with pytest.raises(ConfigError, match="OWNER/NAME"):
        pack(finished, "first", permitted=True)


def test_the_dry_path_lists_files_without_a_network(finished, capsys, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    command = ["push", str(finished), "me/first", "--permitted", "--dry-run", "--json"]
    assert run_app(app, command) == 0
    assert json.loads(capsys.readouterr().out)["url"] is None


def test_a_hub_out_of_reach_is_named(finished):
    from huggingface_hub import HfApi

    parcel = pack(finished, "me/first", permitted=True)
    with pytest.raises(ConfigError, match="hub does not take me/first"):
        send(parcel, private=True, api=HfApi(endpoint="http://127.0.0.1:9", token="none"))
