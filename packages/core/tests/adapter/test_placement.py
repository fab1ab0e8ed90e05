import importlib
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel, PreTrainedModel

from medqua.core.adapter import QuasarConfig, diagnostics, regularisation, update_thresholds
from medqua.core.adapter.layer import QuasarLayer
from medqua.core.adapter.placement import ancestors, choose_blocks, find_decoder_layers
from medqua.core.errors import BackboneError, ConfigError

TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# As deep as the decoder on purpose: the finder must tell them apart by more than their length.
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "patch_size": 14,
    "image_size": 28,
}
QWEN_VISION: dict[str, Any] = {
    "depth": 3,
    "num_heads": 4,
    "patch_size": 14,
    "hidden_size": 32,
    "intermediate_size": 48,
    "out_hidden_size": 32,
}
ROPE: dict[str, Any] = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}

FAMILIES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any], str]] = {
    "qwen2_vl": (
        "Qwen2VLConfig",
        "Qwen2VLForConditionalGeneration",
        {**TEXT, "rope_parameters": ROPE},
        {"depth": 3, "embed_dim": 32, "num_heads": 4, "hidden_size": 32, "mlp_ratio": 2},
        "model.language_model.layers",
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLConfig",
        "Qwen2_5_VLForConditionalGeneration",
        {**TEXT, "rope_parameters": ROPE},
        {**QWEN_VISION, "fullatt_block_indexes": [2]},
        "model.language_model.layers",
    ),
    "qwen3_vl": (
        "Qwen3VLConfig",
        "Qwen3VLForConditionalGeneration",
        {**TEXT, "head_dim": 8, "rope_parameters": ROPE},
        {**QWEN_VISION, "deepstack_visual_indexes": [0]},
        "model.language_model.layers",
    ),
    "llava": (
        "LlavaConfig",
        "LlavaForConditionalGeneration",
        {**TEXT, "model_type": "llama"},
        {**VISION, "model_type": "clip_vision_model"},
        "model.language_model.layers",
    ),
    "gemma3": (
        "Gemma3Config",
        "Gemma3ForConditionalGeneration",
        {**TEXT, "head_dim": 8},
        VISION,
        "model.language_model.layers",
    ),
    "paligemma": (
        "PaliGemmaConfig",
        "PaliGemmaForConditionalGeneration",
        {**TEXT, "model_type": "gemma", "head_dim": 8},
        {**VISION, "model_type": "siglip_vision_model", "projection_dim": 32},
        "model.language_model.layers",
    ),
    "internvl": (
        "InternVLConfig",
        "InternVLForConditionalGeneration",
        {**TEXT, "model_type": "qwen2"},
        {**VISION, "image_size": [28, 28], "patch_size": [14, 14]},
        "model.language_model.layers",
    ),
    "smolvlm": (
        "SmolVLMConfig",
        "SmolVLMForConditionalGeneration",
        {**TEXT, "model_type": "llama"},
        VISION,
        "model.text_model.layers",
    ),
    "idefics3": (
        "Idefics3Config",
        "Idefics3ForConditionalGeneration",
        {**TEXT, "model_type": "llama"},
        VISION,
        "model.text_model.layers",
    ),
}


def build(family: str, device: str = "meta") -> PreTrainedModel:
    config_name, model_name, text, vision, _ = FAMILIES[family]
    module = importlib.import_module("transformers")
    config = getattr(module, config_name)(text_config=text, vision_config=vision)
    torch.manual_seed(0)
    with torch.device(device):
        return getattr(module, model_name)(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_finds_the_decoder_of_each_family(family: str) -> None:
    model = build(family)
    name, layers = find_decoder_layers(model)
    assert name == FAMILIES[family][-1]
    assert len(layers) == 3
    assert layers is model.get_submodule(name)
    # the blocks own the projections that a 32 -> 48 feed-forward of the *text* config has
    assert model.config.get_text_config(decoder=True).num_hidden_layers == len(layers)
    assert "vision" not in type(layers[0]).__name__.lower()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_adapts_and_trains(family: str) -> None:
    model = build(family, "cpu").eval()
    ids = torch.arange(3, 17).reshape(2, 7)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs["attention_mask"][0, :2] = 0
    with torch.no_grad():
        backbone = model(**inputs).logits
    adapted = peft.get_peft_model(model, QuasarConfig(n_qubits=2, max_depth=1, every=2, rank=2))
    with torch.no_grad():
        assert torch.equal(adapted(**inputs).logits, backbone)
    adapted.train()
    (adapted(**inputs).logits.square().mean() + regularisation(adapted)).backward()
    update_thresholds(adapted)
    name = f"{FAMILIES[family][-1]}.1"
    layer = model.get_submodule(name)
    assert isinstance(layer, QuasarLayer)
    # two forwards of twelve tokens that are no padding; floor(0.2 * 12) routed while training
    assert layer.quasar_block["default"].counts.tolist()[:2] == [24, 2]
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)
    assert diagnostics(adapted)[name].threshold is not None


def test_inner_models_are_found_under_their_own_names() -> None:
    model = build("qwen2_5_vl")
    assert find_decoder_layers(model.model)[0] == "language_model.layers"
    assert find_decoder_layers(model.model.language_model)[0] == "layers"


def test_text_only_model() -> None:
    with torch.device("meta"):
        model = LlamaModel(LlamaConfig(**TEXT))
    assert find_decoder_layers(model) == ("layers", model.layers)


@pytest.mark.parametrize(
    ("model", "needed"),
    [(nn.Linear(2, 2), "config"), (build("qwen2_5_vl").model.visual, "embeddings")],
    ids=["no config", "no embeddings"],
)
def test_refuses_what_has_no_decoder(model: nn.Module, needed: str) -> None:
    with pytest.raises(BackboneError, match=needed):
        find_decoder_layers(model)


@pytest.mark.parametrize(
    ("depth", "every", "blocks", "expected"),
    [
        (36, 6, None, [5, 11, 17, 23, 29, 35]),  # K = 6 includes the last of 36
        (28, 6, None, [5, 11, 17, 23]),
        (3, 3, None, [2]),
        (3, 1, None, [0, 1, 2]),
        (36, 6, "last", [35]),
        (2, 6, "last", [1]),
        (10, 6, [10, 1, 3, 3], [0, 2, 9]),
    ],
)
def test_blocks(depth: int, every: int, blocks: Any, expected: list[int]) -> None:
    assert choose_blocks(depth, every, blocks) == expected


@pytest.mark.parametrize(("every", "blocks"), [(7, None), (1, [0]), (1, [7])])
def test_refuses_blocks_outside_the_model(every: int, blocks: Any) -> None:
    with pytest.raises(ConfigError, match="6"):
        choose_blocks(6, every, blocks)


def test_ancestors() -> None:
    assert list(ancestors("model.language_model.layers")) == ["", "model", "model.language_model"]
    assert list(ancestors("layers")) == [""]
