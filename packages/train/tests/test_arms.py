import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from rich.console import Console

from medqua.core.console import run
from medqua.core.errors import BackboneError, ConfigError
from medqua.core.model.bundle import Bundle
from medqua.train.__main__ import app
from medqua.train.experiment.arms import ARMS, Arm, find_arm, label_count
from medqua.train.model import build_model, count_parameters, count_trainable
from medqua.train.recipe import Recipe, build_recipe, load_recipe, shipped_recipes
from medqua.train.run import train
from medqua.train.trainer.arguments import parameter_groups

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # peft reads it in `open`
)

NAMES = [arm.name for arm in ARMS]
ONE_STEP = (
    *("optim.max_steps=1", "evaluation.plots=false", "evaluation.bootstrap=0"),
    *("evaluation.untrained=false", "run.trackers=[]"),
)
DRAWS = {"random_router", "random_router_mlp", "shots"}
"""Arms whose evaluation draws random numbers."""


@pytest.fixture(scope="module")
def recipe_of(small: tuple[str, ...]) -> Callable[..., Recipe]:
    return lambda arm, *more: load_recipe("folder", [*small, *find_arm(arm).overrides, *more])


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        nested = isinstance(value, dict)
        found |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found


def test_arms_come_in_the_order_of_the_report() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert NAMES[:6] == ["zero_shot", "linear_probe", "sft", "lora", "medqua", "medqua_lora"]
    kinds = [arm.kind for arm in ARMS]
    assert kinds == sorted(kinds, key=["comparison", "ablation", "control"].index)


@pytest.mark.parametrize("arm", ARMS, ids=NAMES)
@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_arm_of_every_recipe_is_valid(arm: Arm, name: str) -> None:
    recipe = load_recipe(name, arm.overrides)
    assert build_recipe(recipe.to_dict()) == recipe
    set_by_arm = {override.partition("=")[0] for override in arm.overrides}
    now, plain = flat(recipe.to_dict()), flat(load_recipe(name).to_dict())
    changed = {key for key in now | plain if now.get(key) != plain.get(key)}
    assert {key for key in changed if not any(key in own for own in set_by_arm)} == set()


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm.kind != "comparison"], ids=str)
def test_ablations_and_controls_differ_from_medqua_in_their_own_keys_alone(arm: Arm) -> None:
    now = flat(load_recipe("mimic", arm.overrides).to_dict())
    medqua = flat(load_recipe("mimic", find_arm("medqua").overrides).to_dict())
    differ = {key for key in now | medqua if now.get(key) != medqua.get(key)}
    assert differ
    assert all(key.startswith("adapter.") for key in differ)
    assert len({key.removeprefix("adapter.").partition(".")[0] for key in differ}) <= 2


def test_overrides_after_an_arm_change_it() -> None:
    noise = find_arm("noise").overrides
    recipe = load_recipe("mimic", [*noise, "adapter.noise.two_qubit=0.01"])
    assert recipe.adapter.noise == {"one_qubit": 1.6e-3, "two_qubit": 0.01, "readout": 3.8e-2}
    recipe = load_recipe("mimic", [*find_arm("lora").overrides, "adapter.lora.r=4"])
    assert recipe.adapter.lora == {"r": 4, "lora_alpha": 16}


def test_an_unknown_arm_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'linear_probe'"):
        find_arm("linear-probe")
    with pytest.raises(ConfigError, match="zero_shot, linear_probe"):
        find_arm("x")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["backbone.adapter=lora"], r"without adapter\.lora"),
        (["backbone.adapter=none", "adapter.lora.r=4"], r"leave adapter\.lora out"),
        (["backbone.adapter=none", "backbone.tune=adapter"], "there is none to train"),
        (["head.kind=answers"], "nothing is trained"),
        (["head.kind=answers", "backbone.adapter=none", "backbone.tune=full"], "nothing is train"),
        (["head.question=Any?"], r"needed \{finding\}"),
        (["backbone.adapter=lorra"], "did you mean 'lora'"),
        (["adapter.lora.r=many"], r"lora\.r = 'many': needed a whole number"),
        (["adapter.bottleneck=mlp", "adapter.shots=9"], "there is no circuit"),
    ],
)
def test_contradictions_are_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_recipe("mimic", overrides)


def test_what_each_comparison_trains(recipe_of: Callable[..., Recipe]) -> None:
    parts = {}
    for name in ("linear_probe", "sft", "lora", "medqua", "medqua_lora"):
        model, _ = build_model(recipe_of(name), 2)
        parts[name] = set(model.parameter_groups())
        trained = [n for n, p in model.backbone.named_parameters() if p.requires_grad]
        lora = [n for n in trained if ".lora_" in n]
        quasar = [n for n in trained if ".quasar_block." in n]
        assert len(lora) == ("lora" in name) * 2 * 4 * 2  # two layers; q, k, v, o; A and B
        assert all(".language_model.layers." in n for n in lora)
        assert bool(quasar) is ("medqua" in name)
        if name != "sft":
            assert len(lora) + len(quasar) == len(trained)
    assert parts["linear_probe"] == {"head"}
    assert parts["sft"] == {"backbone", "head"}
    assert parts["lora"] == parts["medqua"] == parts["medqua_lora"] == {"adapter", "head"}


def test_what_stands_in_the_circuits_place_is_trained_as_it_is(
    recipe_of: Callable[..., Recipe],
) -> None:
    for arm, tensors in (("medqua", 1), ("mlp", 4), ("fourier_features", 2), ("frozen_circuit", 0)):
        recipe = recipe_of(arm, "optim.theta=0.125", "adapter.every=2")
        model, _ = build_model(recipe, 2)
        groups = [g for g in parameter_groups(model, recipe) if g["lr"] == 0.125]
        assert [len(g["params"]) for g in groups] == [tensors] * (tensors > 0)
        assert all(g["weight_decay"] == 0 for g in groups)


@pytest.mark.parametrize("arm", NAMES)
def test_a_step_of_every_arm(
    arm: str, recipe_of: Callable[..., Recipe], images: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(arm, *ONE_STEP, f"data.root={images}")
    metrics = train(recipe, tmp_path / "run", Console(quiet=True))
    assert metrics["test"]["images"] == 8
    assert metrics["trainable_parameters"] == count_trainable(recipe, 2)
    routed = "quasar" in find_arm(arm).overrides[0]
    assert bool(metrics["router"]) is routed
    assert (metrics["classical_only"] is not None) is routed
    if arm == "zero_shot":
        assert not (tmp_path / "run" / "bundle").exists()
        assert metrics["trainable_parameters"] == metrics["steps"] == 0
        return
    assert metrics["steps"] == 1
    bundle = Bundle.open(tmp_path / "run" / "bundle")
    model, _ = build_model(recipe, 2)
    assert bundle.classifier.state_dict().keys() == model.state_dict().keys()
    rows = pl.read_parquet(tmp_path / "run" / "predictions.parquet")
    rows = rows.filter(pl.col("split") == "test")
    found = bundle.predict([images / name for name in rows["image"]])
    served = [findings["Mass"].probability for findings in found]
    tolerance = 0.1 if arm in DRAWS else 1e-5
    assert served == pytest.approx(rows["Mass probability"].to_list(), abs=tolerance)


def test_the_same_arm_and_seed_give_the_same_numbers(
    recipe_of: Callable[..., Recipe], images: Path, tmp_path: Path
) -> None:
    recipe = recipe_of("shots", *ONE_STEP, f"data.root={images}")
    for name in ("a", "b"):
        train(recipe, tmp_path / name, Console(quiet=True))
    tables = [pl.read_parquet(tmp_path / name / "predictions.parquet") for name in ("a", "b")]
    assert tables[0].equals(tables[1])


def test_parameters_are_counted_from_a_configuration_alone(tmp_path: Path, small: Any) -> None:
    source, _ = build_model(load_recipe("folder", [*small, "backbone.adapter=none"]), 2)
    source.backbone.config.save_pretrained(tmp_path)
    for arm in ("sft", "lora", "noise", "fourier_features"):
        keys = [*small, *find_arm(arm).overrides]
        recipe = load_recipe("folder", [*keys, f"backbone.source={tmp_path}"])
        whole, _ = build_model(load_recipe("folder", keys), 2)
        assert count_trainable(recipe, 2) == count_parameters(whole)[0]
    nowhere = load_recipe("folder", [*small, "backbone.adapter=none", "backbone.source=./nowhere"])
    with pytest.raises(BackboneError, match=r"no config\.json"):
        count_trainable(nowhere, 2)


def test_labels_are_counted_as_far_as_a_recipe_tells() -> None:
    assert label_count(load_recipe("mimic", ["data.labels=Edema,Fracture"])) == 2
    assert label_count(load_recipe("chestmnist")) == label_count(load_recipe("folder")) == 14


def test_the_table_of_arms(small: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [key for key in small if not key.startswith(("backbone.tune", "data."))]
    assert run(app, ["arms", "--json", *overrides]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == NAMES
    counts = {row["name"]: row["trainable_parameters"] for row in rows}
    assert counts["zero_shot"] == 0 < counts["linear_probe"] < counts["medqua"] < counts["sft"]
    assert counts["medqua_lora"] - counts["medqua"] == counts["lora"] - counts["linear_probe"]


def test_an_arm_on_the_command_line(
    small: tuple[str, ...], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [*(key for key in small if key != "backbone.tune=full"), *ONE_STEP]
    folder = tmp_path / "run"
    arguments = ["folder", "--arm", "lora", "--json", "--output", str(folder), *keys]
    assert run(app, [*arguments, f"data.root={images}", "adapter.lora.r=2"]) == 0
    recipe = json.loads((folder / "run.json").read_text())["recipe"]
    assert recipe["backbone"]["adapter"] == "lora"
    assert recipe["adapter"]["lora"]["r"] == 2
    assert "Training LoRA and the head; the backbone is frozen" in capsys.readouterr().err
    assert run(app, ["folder", "--arm", "loras"]) == 2
    assert "did you mean 'lora'" in " ".join(capsys.readouterr().err.split())


def test_a_frozen_circuit_stays_as_it_was_drawn(
    recipe_of: Callable[..., Recipe], images: Path, tmp_path: Path
) -> None:
    recipe = recipe_of("frozen_circuit", *ONE_STEP, f"data.root={images}")
    train(recipe, tmp_path / "run", Console(quiet=True))
    drawn, _ = build_model(recipe, 2)
    opened = Bundle.open(tmp_path / "run" / "bundle").classifier.state_dict()
    names = [name for name in opened if name.endswith("bottleneck.theta")]
    assert len(names) == 2
    assert all(torch.equal(opened[name], drawn.state_dict()[name]) for name in names)
