import copy
import inspect
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import (
    Cache,
    DynamicCache,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    StaticCache,
)
from transformers.masking_utils import create_masks_for_generate

from medqua.core.adapter.tokens import TokenHooks, TokenMasks, align, current_masks
from medqua.core.errors import BackboneError, ShapeError


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


def cache_argument(model: PreTrainedModel) -> str:
    """What this release calls the KV cache."""
    names = inspect.signature(model.forward).parameters
    return "cache" if "cache" in names else "past_key_values"


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


TINY = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}


def decoder(kind: str) -> PreTrainedModel:
    """Two layers: of full attention, of windows of four tokens (`-sliding`), or one of each."""
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**TINY)).eval()
    if kind == "mistral-sliding":
        return MistralForCausalLM(MistralConfig(**TINY, sliding_window=4)).eval()
    layers = ["sliding_attention", "full_attention" if kind == "gemma" else "sliding_attention"]
    config = Gemma3TextConfig(**TINY, head_dim=8, sliding_window=4, layer_types=layers)
    return Gemma3ForCausalLM(config).eval()


SLIDING = ["mistral-sliding", "gemma", "gemma-sliding"]


def generated(model: PreTrainedModel, spy: Spy, left: int, **settings: Any) -> list[Any]:
    """What the spy saw as real, call by call, of two prompts of which one has `left` paddings."""
    ids = torch.randint(3, 30, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :left] = ids[0, :left] = 0
    spy.seen.clear()
    model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=3,
        min_new_tokens=3,
        disable_compile=True,
        **settings,
    )
    return [masks.real for masks in spy.seen]


@pytest.mark.parametrize("kind", SLIDING)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("chunk", [None, 5])
def test_windows_shorter_than_the_prompt(kind: str, cache: str, chunk: int | None) -> None:
    model = decoder(kind)
    spy = spy_on(model, model.model.layers)
    more = {} if chunk is None else {"prefill_chunk_size": chunk}
    seen = generated(model, spy, 3, cache_implementation=cache, **more)
    expected = torch.ones(2, 11, dtype=torch.bool)
    expected[0, :3] = False
    assert torch.equal(torch.cat(seen, 1), expected)
    assert [part.shape[1] for part in seen] == ([9, 1, 1] if chunk is None else [5, 4, 1, 1])


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize(
    ("way", "rows", "tokens"),
    [({"num_beams": 3}, 6, 11), ({"do_sample": True, "num_return_sequences": 2}, 4, 11)],
)
def test_rows_that_generate_multiplies(
    llama: LlamaForCausalLM, cache: str, way: dict[str, Any], rows: int, tokens: int
) -> None:
    spy = spy_on(llama, llama.model.layers)
    seen = torch.cat(generated(llama, spy, 4, cache_implementation=cache, **way), 1)
    assert seen.shape == (rows, tokens)
    assert (~seen).sum(1).tolist() == [4] * (rows // 2) + [0] * (rows // 2)
    assert seen[:, 4:].all()


def test_guessed_tokens(llama: LlamaForCausalLM) -> None:
    spy = spy_on(llama, llama.model.layers)
    ids = torch.tensor([[0, 0, 5, 6, 7, 5, 6, 7, 5, 6]])
    llama.generate(
        ids, attention_mask=(ids != 0).long(), max_new_tokens=6, prompt_lookup_num_tokens=3
    )
    lengths = [masks.real.shape[1] for masks in spy.seen]
    assert lengths[0] > 10 or max(lengths[1:]) > 1  # guesses were tried
    first, *rest = (masks.real[0].tolist() for masks in spy.seen)
    assert first == [False, False] + [True] * (len(first) - 2)
    assert all(map(all, rest))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", *SLIDING])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])  # bool and additive masks
def test_finished_masks_of_ones_own_step_by_step(kind: str, cache: str, attention: str) -> None:
    model = decoder(kind)
    model.set_attn_implementation(attention)
    spy = spy_on(model, model.model.layers)
    real = torch.tensor([[0, 0, 1, 1, 1, 1, 0, 1, 1, 1], [1] * 10])  # a hole on the right too
    ids = torch.randint(3, 30, real.shape)
    name = cache_argument(model)
    keys = DynamicCache(config=model.config)
    if cache == "static":
        keys = StaticCache(config=model.config, max_cache_len=12)
    for begin, end in ((0, 5), (5, 8), (8, 9), (9, 10)):
        mask = create_masks_for_generate(
            config=model.config,
            inputs_embeds=torch.empty(2, end - begin, 0),
            attention_mask=real[:, :end],
            position_ids=torch.arange(begin, end).expand(2, -1),
            **{name: keys},
        )
        model(input_ids=ids[:, begin:end], attention_mask=mask, **{name: keys})
        assert spy.seen[-1].real.tolist() == real[:, begin:end].bool().tolist()


class Renamed(LlamaForCausalLM):
    """The next release: the KV cache arrives under a name that nobody knows yet."""

    def forward(self, *args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        known = cache_argument(LlamaForCausalLM)
        if "kv" in kwargs:
            kwargs[known] = kwargs.pop("kv")
        return super().forward(*args, attention_mask=attention_mask, **kwargs)

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        return {"kv" if isinstance(v, Cache) else name: v for name, v in inputs.items()}


@pytest.mark.parametrize("noted", [True, False])
def test_the_next_name_of_the_cache(llama: LlamaForCausalLM, noted: bool) -> None:
    model = Renamed(llama.config).eval()
    spy = spy_on(model, model.model.layers)
    if not noted:  # nor does generate ask what it used to ask
        del model.prepare_inputs_for_generation
    seen = generated(model, spy, 4, cache_implementation="static")
    assert torch.cat(seen, 1).sum(1).tolist() == [7, 11]


def test_a_mask_that_does_not_fit_the_cache(llama: LlamaForCausalLM) -> None:
    spy_on(llama, llama.model.layers)
    mask = torch.ones(2, 1, 5, 8, dtype=torch.bool)
    with pytest.raises(ShapeError, match=r"\(2, 1, 5, 8\).*no KV cache.*needed.*2-D mask"):
        llama(input_ids=IDS, attention_mask=mask)
    gemma = decoder("gemma")
    spy_on(gemma, gemma.model.layers)
    opaque = {"full_attention": object(), "sliding_attention": object()}
    with pytest.raises(ShapeError, match="object"):
        gemma(input_ids=IDS, attention_mask=opaque)


def test_a_finished_mask_serves_one_forward(llama: LlamaForCausalLM) -> None:
    spy = spy_on(llama, llama.model.layers)
    name, cache = cache_argument(llama), StaticCache(config=llama.config, max_cache_len=8)
    inputs = llama.prepare_inputs_for_generation(IDS, attention_mask=REAL.long(), **{name: cache})
    mask = inputs["attention_mask"].clone()  # not the one that was noted
    mask[1, :, 1, 1] = False
    llama(**{**inputs, "attention_mask": mask})
    expected = REAL.clone()
    expected[1, 1] = False
    assert spy.seen[-1].real.tolist() == expected.tolist()


def test_the_model_must_take_an_attention_mask(llama: LlamaForCausalLM) -> None:
    class Other(LlamaForCausalLM):
        def forward(self, input_ids: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
            raise NotImplementedError

    model = Other(llama.config)
    model.model.forward = model.forward
    with pytest.raises(BackboneError, match=r"Other takes an attention_mask.*needed"):
        TokenHooks(model)


@torch.no_grad()
@settings(max_examples=25)
@given(
    left=st.lists(st.integers(0, 8), min_size=2, max_size=2),
    room=st.integers(0, 5),
    kind=st.sampled_from(["llama", *SLIDING]),
)
def test_a_finished_mask_tells_what_its_2d_mask_told(left: list[int], room: int, kind: str) -> None:
    model = decoder(kind)
    real = torch.arange(9) >= torch.tensor(left)[:, None]
    cache = StaticCache(config=model.config, max_cache_len=9 + room)
    inputs = model.prepare_inputs_for_generation(
        torch.ones(2, 9, dtype=torch.long),
        attention_mask=real.long(),
        **{cache_argument(model): cache},
    )
    spy = spy_on(model, model.model.layers)  # which did not see it being made
    model(**inputs)
    seen = spy.seen[0].real
    assert (torch.ones_like(real) if seen is None else seen).tolist() == real.tolist()


def test_copies_prepare_for_themselves(llama: LlamaForCausalLM) -> None:
    spy_on(llama, llama.model.layers)
    for copied in (copy.deepcopy(llama), pickle.loads(pickle.dumps(llama))):
        assert copied.prepare_inputs_for_generation.__wrapped__.__self__ is copied
        seen = generated(copied, copied.model.layers[0], 2, cache_implementation="static")
        assert torch.cat(seen, 1).sum(1).tolist() == [9, 11]
        copied.hooks.remove()
        assert "prepare_inputs_for_generation" not in vars(copied)
    assert llama.prepare_inputs_for_generation.__wrapped__.__self__ is llama
