import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from medqua.core.adapter.tokens import TokenHooks, TokenMasks, align, current_masks
from medqua.core.errors import ShapeError


class Spy(nn.Module):
    """A decoder layer that notes the masks it could see, aligned to its tokens."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.seen: list[TokenMasks] = []

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        masks, shape = current_masks(), hidden_states.shape[:2]
        self.seen.append(TokenMasks(align(masks.real, *shape), align(masks.visual, *shape)))
        return self.layer(hidden_states, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.layer, name)


def spy_on(model: PreTrainedModel, layers: nn.ModuleList) -> Spy:
    spy = Spy(layers[0])
    layers[0] = spy
    model.hooks = TokenHooks(model)
    return spy


@pytest.fixture
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


IDS = torch.tensor([[0, 0, 5, 6, 7], [4, 5, 6, 7, 8]])
REAL = IDS != 0


def test_align() -> None:
    mask = torch.tensor([[False, False, True, True]])
    assert align(mask, 1, 4).tolist() == mask.tolist()
    assert align(mask, 1, 2).tolist() == [[True, True]]  # the last T columns
    assert align(mask, 1, 6).tolist() == [[True, True, False, False, True, True]]
    assert align(None, 1, 4) is None
    with pytest.raises(ShapeError, match="batch 1"):
        align(mask, 2, 4)


@pytest.mark.parametrize("entrance", ["whole", "inner"])
def test_visual_and_padding_masks_from_every_entrance(
    vlm: PreTrainedModel, image_inputs: Callable[..., dict[str, Any]], entrance: str
) -> None:
    spy = spy_on(vlm, vlm.model.language_model.layers)
    inputs = image_inputs(2)
    inputs["attention_mask"][0, :2] = 0
    {"whole": vlm, "inner": vlm.model}[entrance](**inputs)
    (masks,) = spy.seen
    assert masks.real.tolist() == inputs["attention_mask"].bool().tolist()
    assert masks.visual.tolist() == (inputs["input_ids"] == 60).tolist()
    assert current_masks() == TokenMasks()


def test_text_decoder_alone_knows_no_visual_tokens(vlm: PreTrainedModel) -> None:
    spy = spy_on(vlm, vlm.model.language_model.layers)
    text = vlm.model.language_model
    text(inputs_embeds=torch.randn(2, 5, 32), attention_mask=REAL.long())
    (masks,) = spy.seen
    assert masks.real.tolist() == REAL.tolist()
    assert masks.visual is None


def test_positional_arguments(llama: LlamaForCausalLM) -> None:
    spy = spy_on(llama, llama.model.layers)
    llama(IDS, REAL.long())
    assert spy.seen[0].real.tolist() == REAL.tolist()


def test_no_mask_means_nobody_said_padding(llama: LlamaForCausalLM) -> None:
    spy = spy_on(llama, llama.model.layers)
    llama(input_ids=IDS)
    assert spy.seen[0].real is None


@pytest.mark.parametrize("additive", [False, True])
def test_padding_from_a_finished_causal_mask(llama: LlamaForCausalLM, additive: bool) -> None:
    spy = spy_on(llama, llama.model.layers)
    causal = torch.ones(5, 5).tril().bool()
    mask = causal[None, None] & REAL[:, None, None, :]  # [B, 1, T, T]
    if additive:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    llama(input_ids=IDS, attention_mask=mask)
    assert spy.seen[0].real.tolist() == REAL.tolist()


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_steps_of_generate(llama: LlamaForCausalLM, cache: str) -> None:
    spy = spy_on(llama, llama.model.layers)
    llama.generate(
        input_ids=IDS,
        attention_mask=REAL.long(),
        max_new_tokens=3,
        do_sample=False,
        cache_implementation=cache,
        disable_compile=True,
    )
    assert spy.seen[0].real.tolist() == REAL.tolist()
    assert [masks.real.tolist() for masks in spy.seen[1:]] == [[[True], [True]]] * 2


def test_masks_end_with_the_forward_even_when_it_fails(llama: LlamaForCausalLM) -> None:
    spy = spy_on(llama, llama.model.layers)
    with pytest.raises(IndexError):
        llama(input_ids=torch.tensor([[99]]), attention_mask=torch.zeros(1, 1))
    assert current_masks() == TokenMasks()
    llama(input_ids=IDS)
    assert spy.seen[-1].real is None


def test_threads_do_not_see_each_other(llama: LlamaForCausalLM) -> None:
    seen: dict[int, list[list[bool]]] = {}

    class Waits(Spy):
        def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            barrier.wait(timeout=60)
            masks = current_masks()
            barrier.wait(timeout=60)
            seen[threading.get_ident()] = masks.real.tolist()
            return self.layer(hidden_states, *args, **kwargs)

    barrier = threading.Barrier(2)
    llama.model.layers[0] = Waits(llama.model.layers[0])
    llama.hooks = TokenHooks(llama)
    calls = [
        threading.Thread(target=llama, kwargs={"input_ids": IDS, "attention_mask": mask})
        for mask in (REAL.long(), torch.ones(2, 5))
    ]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    assert sorted(seen.values()) == [REAL.tolist(), [[True] * 5] * 2]


def test_removed_hooks_leave_nothing(llama: LlamaForCausalLM) -> None:
    spy = spy_on(llama, llama.model.layers)
    llama.hooks.remove()
    llama(input_ids=IDS, attention_mask=REAL.long())
    assert spy.seen[0].real is None
    assert not llama._forward_pre_hooks
