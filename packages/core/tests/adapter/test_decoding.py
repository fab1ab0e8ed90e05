"""Padding, batching, caches: nothing around a token may change what the adapter does to it."""

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from medqua.core.adapter import (
    QuasarConfig,
    diagnostics,
    regularisation,
    reset_diagnostics,
    update_thresholds,
)
from medqua.core.adapter.layer import QuasarLayer
from medqua.core.errors import ConfigError

pytestmark = pytest.mark.filterwarnings(  # peft reads it while wrapping
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

Build = Callable[..., PreTrainedModel]
Inputs = Callable[..., dict[str, Any]]
SPECIAL = [60, 61, 62, 63]


def trained(model: PreTrainedModel, inputs: dict[str, Any], **changes: Any) -> PeftModel:
    torch.manual_seed(1)
    config = QuasarConfig(
        **{"n_qubits": 3, "max_depth": 2, "every": 3, "rank": 4, "gamma_init": 0.5, **changes}
    )
    adapted = peft.get_peft_model(model, config).train()
    optimiser = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], lr=3e-2)
    for _ in range(3):
        loss = adapted(**inputs, labels=inputs["input_ids"]).loss + regularisation(adapted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        update_thresholds(adapted)
    reset_diagnostics(adapted)
    return adapted.eval()


@pytest.fixture(params=["signed", "normalised"])
def model(vlm: PreTrainedModel, image_inputs: Inputs, request: pytest.FixtureRequest) -> PeftModel:
    return trained(vlm, image_inputs(4), entropy=request.param)


def pad(inputs: dict[str, Any], left: int, right: int) -> dict[str, Any]:
    """The same prompts with padding around them."""
    padded = dict(inputs)
    for name, value in (("input_ids", 0), ("attention_mask", 0), ("mm_token_type_ids", 0)):
        if name in inputs:
            padded[name] = torch.nn.functional.pad(inputs[name], (left, right), value=value)
    return padded


@torch.no_grad()
@pytest.mark.parametrize("kind", ["image", "text"])
@pytest.mark.parametrize(("left", "right"), [(5, 0), (0, 5), (2, 3)])
def test_padding_changes_nothing(
    model: PeftModel,
    image_inputs: Inputs,
    text_inputs: Inputs,
    kind: str,
    left: int,
    right: int,
) -> None:
    inputs = {"image": image_inputs, "text": text_inputs}[kind](3, seed=5)
    tokens = inputs["input_ids"].shape[1]
    plain = model(**inputs).logits
    ratios = diagnostics(model)
    reset_diagnostics(model)
    padded = model(**pad(inputs, left, right)).logits[:, left : left + tokens]
    torch.testing.assert_close(padded, plain, atol=2e-4, rtol=2e-4)
    assert diagnostics(model) == ratios  # padding is not counted
    assert all(0 < d.activation_ratio < 1 for d in ratios.values() if d.activation_ratio)


@torch.no_grad()
def test_batching_changes_nothing(model: PeftModel, image_inputs: Inputs) -> None:
    inputs = image_inputs(4, seed=5)
    together = model(**inputs).logits
    for row in range(4):
        alone = {name: value[row : row + 1] for name, value in inputs.items()}
        alone["pixel_values"] = inputs["pixel_values"][16 * row : 16 * row + 16]
        torch.testing.assert_close(model(**alone).logits[0], together[row], atol=2e-4, rtol=2e-4)


@torch.no_grad()
def test_inner_model_gives_the_hidden_states_of_the_whole(
    model: PeftModel, image_inputs: Inputs
) -> None:
    inputs = pad(image_inputs(2, seed=6), 3, 0)
    whole = model.get_base_model()
    hidden = whole.base_model(**inputs, use_cache=False).last_hidden_state
    assert torch.equal(whole.lm_head(hidden), model(**inputs).logits)


@pytest.mark.parametrize("kind", ["image", "text"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("route", ["all", "visual"])
def test_generate_with_and_without_cache_agree(
    vlm: PreTrainedModel,
    image_inputs: Inputs,
    text_inputs: Inputs,
    kind: str,
    cache: str,
    route: str,
) -> None:
    model = trained(vlm, image_inputs(4), route=route)
    inputs = pad({"image": image_inputs, "text": text_inputs}[kind](3, seed=5), 3, 0)
    settings = {
        "max_new_tokens": 6,
        "do_sample": False,
        "suppress_tokens": SPECIAL,
        "output_logits": True,
        "return_dict_in_generate": True,
        "eos_token_id": None,
    }
    plain = model.generate(**inputs, **settings, use_cache=False)
    cached = model.generate(**inputs, **settings, cache_implementation=cache, disable_compile=True)
    assert torch.equal(plain.sequences, cached.sequences)
    torch.testing.assert_close(
        torch.stack(plain.logits), torch.stack(cached.logits), atol=5e-4, rtol=5e-4
    )
    with model.disable_adapter():
        backbone = model.generate(**inputs, **settings)
    assert not torch.equal(torch.stack(backbone.logits), torch.stack(cached.logits))


@torch.no_grad()
def test_visual_route(vlm: PreTrainedModel, image_inputs: Inputs, text_inputs: Inputs) -> None:
    config = QuasarConfig(n_qubits=2, every=3, route="visual", target_ratio=0.5)
    model = peft.get_peft_model(vlm, config).train()
    model(**pad(image_inputs(2, seed=3), 2, 0))
    assert {d.activation_ratio for d in diagnostics(model).values()} == {4 / 8}
    layer = model.get_base_model().model.language_model.layers[2]
    assert layer.quasar_block["default"].counts.tolist()[:2] == [8, 4]  # 2 x 4 visual tokens
    reset_diagnostics(model)
    model(**text_inputs(2))
    assert {d.activation_ratio for d in diagnostics(model).values()} == {None}
    with pytest.raises(ConfigError, match="input_ids"):
        model.get_base_model().model.language_model(inputs_embeds=torch.randn(1, 4, 32))


def test_gradient_checkpointing_gives_the_same_step(build_vlm: Build, image_inputs: Inputs) -> None:
    inputs = image_inputs(3, seed=2)
    results = []
    for checkpointing in (False, True):
        model = trained(build_vlm(), image_inputs(4))
        if checkpointing:
            model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
        model.train()
        before = {n: b.clone() for n, b in model.named_buffers() if n.endswith("router.steps")}
        loss = model(**inputs, labels=inputs["input_ids"]).loss + regularisation(model)
        loss.backward()
        update_thresholds(model)
        after = {n: b for n, b in model.named_buffers() if n.endswith("router.steps")}
        assert all(after[n] == before[n] + 1 for n in before)  # once, though layers ran twice
        counts = [
            layer.quasar_block["default"].counts.tolist()
            for layer in model.modules()
            if isinstance(layer, QuasarLayer)
        ]
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        buffers = {n: b.clone() for n, b in model.named_buffers() if "router" in n}
        results.append((loss.detach(), counts, gradients, buffers))
    (loss, counts, gradients, buffers), (loss_2, counts_2, gradients_2, buffers_2) = results
    assert torch.equal(loss, loss_2)
    assert counts == counts_2
    assert gradients.keys() == gradients_2.keys()
    for name in gradients:
        torch.testing.assert_close(gradients[name], gradients_2[name], rtol=1e-5, atol=1e-7)
    assert all(torch.equal(buffers[name], buffers_2[name]) for name in buffers)


def test_regularisation(vlm: PreTrainedModel, image_inputs: Inputs) -> None:
    inputs = image_inputs(3)
    plain = regularisation(vlm)
    assert plain.item() == 0
    assert not plain.requires_grad
    model = trained(vlm, inputs, eta=2.0, xi=0.5, proportion="soft")
    with torch.no_grad():
        model(**inputs)
    assert not regularisation(model).requires_grad
    model.generate(**inputs, max_new_tokens=2, suppress_tokens=SPECIAL)
    assert regularisation(model).item() == 0
    model.train()
    model(**inputs)
    blocks = [
        layer.active_blocks()[0] for layer in model.modules() if isinstance(layer, QuasarLayer)
    ]
    expected = []
    for block in blocks:
        g = block.routed.gate.detach().double().flatten()
        entropy = -(g * g.log() + (1 - g) * (1 - g).log()).mean()
        expected.append(2.0 * (g.mean() - 0.2) ** 2 + 0.5 * entropy)
    total = regularisation(model)
    assert total.item() == pytest.approx((sum(expected) / 2).item(), rel=1e-5)
    (total * 1.0).backward()
    assert all(block.router.scorer.weight.grad.abs().sum() > 0 for block in blocks)
    with model.disable_adapter():
        assert regularisation(model).item() == 0


def test_fixed_ratio_leaves_equation_10_out(vlm: PreTrainedModel, image_inputs: Inputs) -> None:
    model = trained(vlm, image_inputs(4), routing="topk")
    model.train()
    model(**image_inputs(4))
    assert regularisation(model).item() == 0
    found = diagnostics(model).values()
    assert {d.threshold for d in found} == {None}
    assert {d.activation_ratio for d in found} == {9 / 48}  # floor(0.2 * 48) of 48 tokens


def test_diagnostics_of_a_fresh_model(vlm: PreTrainedModel) -> None:
    model = peft.get_peft_model(vlm, QuasarConfig(n_qubits=2, every=3))
    for found in diagnostics(model).values():
        assert (found.activation_ratio, found.threshold, found.mean_depth) == (None, None, None)


def test_lambda_hat_reaches_its_target_in_200_steps() -> None:
    torch.manual_seed(0)
    backbone = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=32,
        )
    )
    config = QuasarConfig(n_qubits=2, max_depth=1, every=1, rank=2, target_ratio=0.3)
    model = peft.get_peft_model(backbone, config).train()
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(200):
        if step == 150:
            reset_diagnostics(model)
        ids = torch.randint(0, 32, (4, 16))
        loss = model(input_ids=ids, labels=ids).loss + regularisation(model)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        update_thresholds(model)
    (found,) = diagnostics(model).values()
    assert found.activation_ratio == pytest.approx(0.3, abs=0.03)
    reset_diagnostics(model)
    with torch.no_grad():
        model.eval()(input_ids=torch.randint(0, 32, (64, 16)))
    (found,) = diagnostics(model).values()
    assert found.activation_ratio == pytest.approx(0.3, abs=0.03)
