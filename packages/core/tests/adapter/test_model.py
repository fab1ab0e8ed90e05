import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from medqua.core import QuasarConfig, QuasarModel, find_decoder_layers
from medqua.core.adapter import diagnostics, regularisation, update_thresholds
from medqua.core.adapter.layer import QuasarLayer
from medqua.core.errors import ConfigError

pytestmark = pytest.mark.filterwarnings(  # peft reads it while wrapping
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

Build = Callable[..., PreTrainedModel]
Inputs = Callable[..., dict[str, Any]]
LAYERS = "base_model.model.model.language_model.layers"


def small(**changes: Any) -> QuasarConfig:
    return QuasarConfig(**{"n_qubits": 3, "max_depth": 2, "every": 3, "rank": 4, **changes})


def train(model: nn.Module, inputs: dict[str, Any], steps: int = 3) -> None:
    """A few real steps, after which every part of the adapter has moved."""
    model.train()
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    for _ in range(steps):
        loss = model(**inputs, labels=inputs["input_ids"]).loss + regularisation(model)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        update_thresholds(model)
    model.eval()


@torch.no_grad()
def logits(model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    return model(**inputs).logits


@pytest.fixture
def trained(vlm: PreTrainedModel, image_inputs: Inputs) -> PeftModel:
    torch.manual_seed(1)
    model = peft.get_peft_model(vlm, small())
    train(model, image_inputs(2))
    return model


def test_get_peft_model(vlm: PreTrainedModel) -> None:
    model = peft.get_peft_model(vlm, small())
    assert isinstance(model, PeftModel)
    assert isinstance(model.base_model, QuasarModel)
    _, layers = find_decoder_layers(model)
    assert [isinstance(layer, QuasarLayer) for layer in layers] == [False, False, True] * 2
    assert model.peft_config["default"].target_modules == (
        "model.language_model.layers.2",
        "model.language_model.layers.5",
    )
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trainable
    assert all(".quasar_block.default." in name for name in trainable)


def test_parameter_count_of_the_real_sizes() -> None:
    # Qwen2.5-VL-3B: D = 2048, 36 layers, so six adapters; DESIGN.md section 3 says about 0.66 M
    from medqua.core.adapter.layer import QuasarBlock

    with torch.device("meta"):
        block = QuasarBlock(2048, QuasarConfig())
    d, n, r = 2048, 8, 16
    router, shadow, encoder = d + 1 + 1, 2 * r * d, n * d + n
    proj, norm, gamma, theta, policy = n * d + d, 2 * d, 1, 4 * n * 3, 4 + 1 + 3
    expected = router + shadow + encoder + proj + norm + gamma + theta + policy
    assert sum(p.numel() for p in block.parameters()) == expected
    assert 0.6e6 < 6 * expected < 0.7e6


@pytest.mark.parametrize("kind", ["image", "text"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [False, True])
def test_equals_the_backbone_bit_for_bit_at_step_0(
    build_vlm: Build,
    image_inputs: Inputs,
    text_inputs: Inputs,
    kind: str,
    dtype: torch.dtype,
    training: bool,
) -> None:
    inputs = {"image": image_inputs, "text": text_inputs}[kind](3)
    inputs["attention_mask"][0, :2] = 0
    expected = logits(build_vlm(dtype), inputs)
    model = peft.get_peft_model(build_vlm(dtype), small(lora={"r": 2})).train(training)
    assert torch.equal(logits(model, inputs), expected)
    assert all(p.dtype == torch.float32 for n, p in model.named_parameters() if "quasar_block" in n)


def test_disabling_gives_the_backbone_bit_for_bit(
    trained: PeftModel, build_vlm: Build, image_inputs: Inputs
) -> None:
    inputs = image_inputs(3, seed=4)
    expected = logits(build_vlm(), inputs)
    adapted = logits(trained, inputs)
    assert not torch.equal(adapted, expected)
    with trained.disable_adapter():
        assert torch.equal(logits(trained, inputs), expected)
    assert torch.equal(logits(trained, inputs), adapted)


@pytest.mark.parametrize("lora", [None, {"r": 2}, {"r": 2, "target_modules": ["gate_proj"]}])
def test_saving_and_loading_is_bitwise(
    build_vlm: Build, image_inputs: Inputs, tmp_path: Path, lora: dict[str, Any] | None
) -> None:
    torch.manual_seed(2)
    model = peft.get_peft_model(build_vlm(), small(lora=lora, modules_to_save=["lm_head"]))
    train(model, image_inputs(2))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora"] == lora
    again = PeftModel.from_pretrained(build_vlm(), tmp_path)
    inputs = image_inputs(3, seed=7)
    assert torch.equal(logits(again, inputs), logits(model, inputs))
    mine, theirs = model.state_dict(), again.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert any("threshold_logit" in key and mine[key].isfinite() for key in mine)
    renamed = PeftModel.from_pretrained(build_vlm(), tmp_path, adapter_name="other")
    assert torch.equal(logits(renamed, inputs), logits(model, inputs))
    assert diagnostics(renamed) == diagnostics(again)


def test_loading_without_room_for_a_second_copy(
    trained: PeftModel, build_vlm: Build, image_inputs: Inputs, tmp_path: Path
) -> None:
    trained.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(build_vlm(), tmp_path, low_cpu_mem_usage=True)
    inputs = image_inputs(2, seed=3)
    assert torch.equal(logits(again, inputs), logits(trained, inputs))


def test_training_goes_on_after_loading(
    trained: PeftModel, build_vlm: Build, image_inputs: Inputs, tmp_path: Path
) -> None:
    trained.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(build_vlm(), tmp_path, is_trainable=True)
    train(trained, image_inputs(2, seed=5), steps=2)
    train(again, image_inputs(2, seed=5), steps=2)
    mine, theirs = trained.state_dict(), again.state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_several_adapters(
    build_vlm: Build, image_inputs: Inputs, tmp_path: Path, lora: dict[str, Any] | None
) -> None:
    inputs = image_inputs(2, seed=8)
    alone = {}
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        config = small(lora=lora, every=3 if name == "one" else 2)
        model = peft.get_peft_model(build_vlm(), config, adapter_name=name)
        train(model, image_inputs(2, seed=seed))
        model.save_pretrained(tmp_path)
        alone[name] = logits(model, inputs)
    both = PeftModel.from_pretrained(build_vlm(), tmp_path / "one", adapter_name="one")
    both.load_adapter(tmp_path / "two", adapter_name="two")
    assert torch.equal(logits(both, inputs), alone["one"])
    assert set(diagnostics(both)) == {f"model.language_model.layers.{i}" for i in (2, 5)}
    both.set_adapter("two")
    assert torch.equal(logits(both, inputs), alone["two"])
    assert set(diagnostics(both)) == {f"model.language_model.layers.{i}" for i in (1, 3, 5)}
    trainable = {name for name, p in both.named_parameters() if p.requires_grad}
    assert trainable
    assert all(".two." in name for name in trainable)
    both.save_pretrained(tmp_path / "again")
    third = PeftModel.from_pretrained(build_vlm(), tmp_path / "again" / "one")
    assert torch.equal(logits(third, inputs), alone["one"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says which adapter became active
        both.delete_adapter("two")
    assert torch.equal(logits(both, inputs), alone["one"])
    assert not [name for name in both.state_dict() if ".two." in name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        both.delete_adapter("one")
    assert torch.equal(logits(both.base_model.model, inputs), logits(build_vlm(), inputs))


def test_adding_an_adapter_leaves_what_trains_alone(build_vlm: Build) -> None:
    model = peft.get_peft_model(build_vlm(), small(), adapter_name="one")
    model.get_input_embeddings().weight.requires_grad_(True)
    before = {name for name, p in model.named_parameters() if p.requires_grad}
    model.add_adapter("two", small(lora={"r": 2}))
    after = {name for name, p in model.named_parameters() if p.requires_grad}
    assert after == before
    assert any(".two." in name and "lora_A" in name for name in model.state_dict())


def test_lora_lies_in_the_decoder_and_under_the_same_name(build_vlm: Build) -> None:
    model = peft.get_peft_model(build_vlm(), small(lora={"r": 2}), adapter_name="mine")
    lora = [name for name in model.state_dict() if "lora_" in name]
    assert len(lora) == 6 * 4 * 2  # six layers; q, k, v, o; A and B
    assert all(name.startswith(LAYERS) and ".mine." in name for name in lora)
    assert model.active_adapters == ["mine"]


def test_lora_beside_the_adapter_is_lora(build_vlm: Build, image_inputs: Inputs) -> None:
    # With gamma at 0 the adapter is silent, so what is left is PEFT's own LoRA, bit for bit.
    inputs = image_inputs(2)
    ours = peft.get_peft_model(build_vlm(), small(lora={"r": 2, "target_modules": ["q_proj"]}))
    theirs = peft.get_peft_model(build_vlm(), LoraConfig(r=2, target_modules=["q_proj"]))
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, p in theirs.named_parameters():
        if "lora_" in name:
            state[name] = torch.randn(p.shape, generator=generator)
    theirs.load_state_dict(state, strict=False)
    wrapped = {
        name.replace("layers.2.", "layers.2.base_layer.").replace(
            "layers.5.", "layers.5.base_layer."
        ): value
        for name, value in state.items()
    }
    assert not ours.load_state_dict(wrapped, strict=False).unexpected_keys
    assert torch.equal(logits(ours, inputs), logits(theirs, inputs))
    assert not torch.equal(logits(ours, inputs), logits(build_vlm(), inputs))


@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_unloading_gives_the_backbone_back(
    build_vlm: Build, image_inputs: Inputs, lora: dict[str, Any] | None
) -> None:
    inputs = image_inputs(2)
    model = peft.get_peft_model(build_vlm(), small(lora=lora))
    train(model, inputs)
    backbone = model.unload()
    reference = build_vlm()
    assert backbone.state_dict().keys() == reference.state_dict().keys()
    assert torch.equal(logits(backbone, inputs), logits(reference, inputs))
    assert not backbone._forward_pre_hooks
    again = peft.get_peft_model(backbone, small())
    assert torch.equal(logits(again, inputs), logits(reference, inputs))


def test_merging_is_refused_with_a_reason(trained: PeftModel) -> None:
    for verb in (trained.merge_and_unload, trained.merge_adapter):
        with pytest.raises(ConfigError, match="cannot be merged"):
            verb()


def test_copies_are_independent(trained: PeftModel, image_inputs: Inputs) -> None:
    inputs = image_inputs(2, seed=2)
    trained.train()
    trained(**inputs, labels=inputs["input_ids"])  # leaves a graph behind
    trained.eval()
    before = logits(trained, inputs)
    copied = copy.deepcopy(trained)
    train(copied, inputs)
    assert torch.equal(logits(trained, inputs), before)
    assert not torch.equal(logits(copied, inputs), before)


@pytest.mark.parametrize(
    ("changes", "name", "told"),
    [
        ({"every": 7}, "default", "every = 7 is larger than the model's 6"),
        ({"blocks": [7]}, "default", "outside"),
        ({}, "router", "name of a part"),
        ({}, "weight", "name of a part"),
        ({}, "a.b", "dot"),
        ({"every": 7, "lora": {"r": 2}}, "default", "every = 7"),
    ],
)
def test_refused_configurations_leave_the_backbone_alone(
    vlm: PreTrainedModel, changes: dict[str, Any], name: str, told: str
) -> None:
    before = set(vlm.state_dict())
    with pytest.raises(ConfigError, match=told):
        peft.get_peft_model(vlm, small(**changes), adapter_name=name)
    assert set(vlm.state_dict()) == before


def test_last_block(vlm: PreTrainedModel) -> None:
    model = peft.get_peft_model(vlm, small(blocks="last"))
    assert model.peft_config["default"].target_modules == ("model.language_model.layers.5",)


def test_text_only_model() -> None:
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=32,
    )
    model = peft.get_peft_model(LlamaForCausalLM(config), small(every=1))
    ids = torch.arange(10)[None]
    train(model, {"input_ids": ids})
    assert set(diagnostics(model)) == {"model.layers.0", "model.layers.1"}


def test_every_adapter_parameter_trains(build_vlm: Build, image_inputs: Inputs) -> None:
    model = peft.get_peft_model(build_vlm(), small(gamma_init=0.5, xi=-0.01, lora={"r": 2}))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    train(model, image_inputs(4), steps=3)
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    adapter = {k for k, p in model.named_parameters() if p.requires_grad}
    assert adapter <= moved
    assert {k for k in moved if "quasar_block" not in k and "lora_" not in k} == set()
