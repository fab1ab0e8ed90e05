"""Padding, batching, caches: nothing around a token may change what the adapter does to it."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    StaticCache,
)

from medqua.core.adapter import (
    QuasarConfig,
    diagnostics,
    regularisation,
    reset_diagnostics,
    update_thresholds,
)
from medqua.core.adapter.layer import QuasarLayer
from medqua.core.adapter.router import EntropyRouter
from medqua.core.errors import ConfigError, ShapeError

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


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=64,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def counts(model: PeftModel) -> list[list[int]]:
    """Of each adapted layer: active tokens, routed tokens, their depths added up."""
    blocks = (
        layer.active_blocks()[0] for layer in model.modules() if isinstance(layer, QuasarLayer)
    )
    return [block.counts.tolist() for block in blocks]


@functools.cache
def routed_llama() -> tuple[PeftModel, torch.Tensor]:
    """A decoder that routes the upper half of this prompt's tokens, and the prompt."""
    ids = torch.randint(3, 60, (10,), generator=torch.Generator().manual_seed(3))
    config = QuasarConfig(n_qubits=2, max_depth=1, every=1, target_ratio=0.5, scope="sample")
    model = peft.get_peft_model(tiny_llama(), config).train()
    model(input_ids=ids[None])
    update_thresholds(model)
    for module in model.modules():
        if isinstance(module, EntropyRouter):
            module.threshold_logit -= 1e-4  # not on a token
    return model.eval(), ids


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


def test_route_visual_without_a_way_to_tell_visual_tokens(text_inputs: Inputs) -> None:
    model = peft.get_peft_model(tiny_llama(), QuasarConfig(n_qubits=2, every=1, route="visual"))
    with pytest.raises(ConfigError, match=r"no mm_token_type_ids.*image_token_id.*route='all'"):
        model(**text_inputs(1))
    types = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ShapeError, match="4 tokens and the decoder has 10"):
        model.get_base_model()(**text_inputs(1), mm_token_type_ids=types)


@torch.no_grad()
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_padding_alone_is_refused(model: PeftModel, text_inputs: Inputs, cache: str) -> None:
    inputs = text_inputs(2)
    inputs["attention_mask"][0] = 0
    model(**inputs)  # one row may be
    inputs["attention_mask"][1] = 0
    with pytest.raises(ShapeError, match=r"every token is padding.*needed.*2-D mask"):
        model(**inputs)
    with pytest.raises(ShapeError, match="every token is padding"):
        model.generate(**inputs, max_new_tokens=2, cache_implementation=cache, disable_compile=True)
    with model.disable_adapter():
        model(**inputs)


def test_continuous_batching() -> None:
    model, ids = routed_llama()
    backbone = model.get_base_model()
    prompts = [ids[:4], ids, ids[2:9]]
    ways = {
        "max_new_tokens": 4,
        "min_new_tokens": 4,
        "do_sample": False,
        "suppress_tokens": SPECIAL,
    }
    alone, expected = [], torch.zeros(2, 2, dtype=torch.long)
    for prompt in prompts:
        reset_diagnostics(model)
        mask = torch.ones_like(prompt)[None]
        done = model.generate(prompt[None], attention_mask=mask, **ways)
        alone.append(done[0, len(prompt) :].tolist())
        expected += torch.tensor(counts(model))[:, :2]
    reset_diagnostics(model)
    config = GenerationConfig(**ways, eos_token_id=-1, pad_token_id=0)
    done = backbone.generate_batch([prompt.tolist() for prompt in prompts], config)
    assert [done[name].generated_tokens for name in sorted(done)] == alone
    assert torch.tensor(counts(model))[:, :2].tolist() == expected.tolist()


@torch.no_grad()
@settings(max_examples=15)
@given(left=st.lists(st.integers(0, 6), min_size=3, max_size=3), cached=st.booleans())
def test_left_padding_never_changes_routes(left: list[int], cached: bool) -> None:
    model, ids = routed_llama()
    widest = max(left)
    padded = torch.stack([torch.nn.functional.pad(ids, (n, widest - n)) for n in left])
    mask = torch.stack([torch.arange(10 + widest).sub(n).clamp(-1, 10) for n in left])
    mask = ((mask >= 0) & (mask < 10)).long()
    reset_diagnostics(model)
    model(input_ids=ids[None], attention_mask=torch.ones(1, 10, dtype=torch.long))
    alone = counts(model)
    assert all(0 < routed < active for active, routed, _ in alone)
    reset_diagnostics(model)
    cache = {"use_cache": cached}
    if cached:
        name = "cache" if "cache" in inspect.signature(LlamaForCausalLM.forward).parameters else ""
        static = StaticCache(config=model.get_base_model().config, max_cache_len=20)
        cache[name or "past_key_values"] = static
    model(input_ids=padded, attention_mask=mask, **cache)
    assert counts(model) == [[3 * number for number in layer] for layer in alone]


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
