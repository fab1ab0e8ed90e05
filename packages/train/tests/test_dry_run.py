import json
import shutil
from pathlib import Path

import pytest
import torch

from medqua.core.console import run as run_app
from medqua.core.errors import ConfigError
from medqua.train.__main__ import app
from medqua.train.dry_run import _activations, check_processes, look_ahead
from medqua.train.model import build_model
from medqua.train.processes.distributed import check_devices
from medqua.train.recipe import load_recipe


def snapshot(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_it_tells_what_a_run_would_be_and_writes_nothing(
    small, images, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    before = snapshot(images)
    command = ["folder", "--dry-run", "--json", *small, f"data.root={images}"]
    assert run_app(app, [*command, f"data.cache={tmp_path / 'cache'}"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [split["images"] for split in told["splits"]] == [24, 8, 8]
    positives = sum(split["positives"]["Mass"] for split in told["splits"])
    assert positives == 20  # every other image
    assert told["steps"] == 6  # 24 images in batches of 8, twice
    assert len(told["layers"]) == 2
    model, _ = build_model(load_recipe("folder", [*small, f"data.root={images}"]), 2)
    assert told["trainable"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert snapshot(tmp_path) == set()
    assert snapshot(images) == before


def test_what_would_fail_ends_with_status_2(small, images, tmp_path, capsys):
    root = Path(shutil.copytree(images, tmp_path / "images"))
    for i in range(40):
        (root / f"{i}.png").write_bytes(b"not a picture")
    assert run_app(app, ["folder", "--dry-run", *small, f"data.root={root}"]) == 2
    captured = capsys.readouterr()
    assert "cannot be read" in " ".join(captured.err.split())
    assert "0.png" not in captured.out + captured.err
    assert run_app(app, ["folder", "--dry-run", *small, "data.root=nowhere"]) == 2
    words = ["optim.label_weights={Hernia = 2.0}", f"data.root={images}"]
    assert run_app(app, ["folder", "--dry-run", *small, *words]) == 2
    assert "Hernia" in capsys.readouterr().err


def test_more_processes_than_gpus_are_refused():
    with pytest.raises(ConfigError, match="8 processes on a machine of 2 GPUs"):
        check_devices(8, 2)
    with pytest.raises(ConfigError, match="at least 1"):
        check_processes(0)


def test_the_label_policy_decides_the_counts(small, images, tmp_path):
    root = Path(shutil.copytree(images, tmp_path / "images"))
    table = (root / "labels.csv").read_text().splitlines()
    unsure = [",".join([*line.split(",")[:2], "-1", line.split(",")[3]]) for line in table[1:]]
    (root / "labels.csv").write_text("\n".join([table[0], *unsure]) + "\n")
    for policy, positives, masked in (("ignore", 0, 24), ("ones", 24, 0), ("zeros", 0, 0)):
        keys = [*small, f"data.root={root}", f"data.uncertain={policy}"]
        train = look_ahead(load_recipe("folder", keys)).splits[0]
        assert (train.positives[0], train.ignored[0]) == (positives, masked)


def test_the_estimate_of_activations_is_of_the_right_size(small, images):
    recipe = load_recipe(
        "folder",
        [*small, f"data.root={images}", "backbone.tiny.hidden=64", "backbone.tiny.mlp=256"],
    )
    model, _ = build_model(recipe, 2)
    decoder = model.backbone.base_model.model.model.language_model
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = decoder(inputs_embeds=torch.randn(1, 80, 64, requires_grad=True), use_cache=False)
        measured = sum(size for pointer, size in kept.items() if pointer not in weights)
        del out
    assert 1 / 3 < _activations(model, recipe, 80) / measured < 3
