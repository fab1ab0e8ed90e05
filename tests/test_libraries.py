"""What we take from other libraries by name is there, and is used, in the installed releases.

An overridden method that its library no longer calls, or an attribute that it no longer reads,
raises nothing: training would go on in another way.
"""

import inspect
from types import FunctionType
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from accelerate.optimizer import AcceleratedOptimizer
from peft.tuners.lora import Linear, LoraConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn
from transformers import CONFIG_MAPPING, Qwen2_5_VLConfig, Trainer, TrainerCallback

from medqua.core.adapter.layer import QuasarLayer, _device_of
from medqua.core.adapter.model import QuasarModel
from medqua.core.adapter.tokens import _visual_token_ids
from medqua.core.model import load_backbone
from medqua.train.reports.trainer import ReportTrainer
from medqua.train.trainer.trainer import MedQuaTrainer, _Steps

TRAINER = {
    "_clip_grad_norm",
    "_defer_fsdp_gradient_reduction",
    "_get_num_items_in_batch",
    "_load_best_model",
    "_load_from_checkpoint",
    "_load_optimizer_and_scheduler",
    "_save_checkpoint",
    "_sync_replicated_trainable_parameters",
    "compute_loss",
    "create_optimizer",
    "evaluate",
    "get_train_dataloader",
    "log",
}
TUNER = {
    "_check_merge_allowed",
    "_check_target_module_exists",
    "_create_and_replace",
    "_post_injection_hook",
    "_prepare_adapter_config",
    "_remove_adapter_name_from_key",
    "_replace_module",
    "_unload_and_optionally_merge",
    "delete_adapter",
    "inject_adapter",
    "set_adapter",
}
CALLBACK = {
    "on_epoch_begin",
    "on_evaluate",
    "on_optimizer_step",
    "on_step_end",
    "on_train_begin",
}


def overridden(ours: type, theirs: type) -> set[str]:
    """Methods of ours that are theirs too."""
    kinds = (FunctionType, staticmethod, classmethod)
    methods = {name for name, found in vars(ours).items() if isinstance(found, kinds)}
    return {name for name in methods if hasattr(theirs, name) and not name.startswith("__")}


@pytest.mark.parametrize(
    ("ours", "theirs", "names"),
    [
        (MedQuaTrainer, Trainer, TRAINER),
        (ReportTrainer, Trainer, {"_get_num_items_in_batch", "compute_loss", "evaluate"}),
        (_Steps, TrainerCallback, CALLBACK),
        (QuasarModel, BaseTuner, TUNER),
    ],
)
def test_overridden_methods(ours: type, theirs: type, names: set[str]) -> None:
    assert overridden(ours, theirs) == names
    for name in names:
        expected = list(inspect.signature(getattr(theirs, name)).parameters)
        own = list(inspect.signature(getattr(ours, name)).parameters)
        assert [n for n in own if n != "_"] == [n for n in expected if n != "kwargs"], name


@pytest.mark.parametrize("name", sorted(n for n in TRAINER if n.startswith("_")))
def test_the_trainer_calls_them(name: str) -> None:
    assert f"self.{name}" in inspect.getsource(Trainer)


@pytest.mark.parametrize(
    "name", ["is_distributed_loading_by_transformers", "model_accepts_loss_kwargs"]
)
def test_the_trainer_reads_what_we_set(name: str) -> None:
    source = inspect.getsource(Trainer)
    assert source.count(f"self.{name}") > source.count(f"self.{name} =")


def test_disabling_the_layers_of_every_tuner() -> None:
    layers: list[BaseTunerLayer] = [
        QuasarLayer(nn.Linear(2, 2), "layers.0"),
        Linear(nn.Linear(2, 2), "default", LoraConfig(), r=1),
    ]
    for layer in layers:
        assert not layer.disable_adapters
        layer._disable_adapters = True
        assert layer.disable_adapters


def test_accelerate() -> None:
    layer = nn.Linear(2, 2)
    add_hook_to_module(layer, AlignDevicesHook(execution_device="meta"))
    assert _device_of(layer) == torch.device("meta")
    Accelerator(cpu=True)
    optimiser = torch.optim.SGD(layer.parameters(), lr=1.0)
    assert AcceleratedOptimizer(optimiser).optimizer is optimiser


def test_bitsandbytes() -> None:
    from bitsandbytes.nn import Linear4bit

    assert hasattr(Linear4bit(64, 64), "support_avx512bf16_for_cpu")


def test_the_shipped_backbone() -> None:
    backbone = load_backbone(seed=0)
    model: Any = backbone.model
    tower = model.base_model.visual
    assert isinstance(tower.patch_embed.proj.weight, torch.Tensor)  # the exact patches of parity
    assert isinstance(tower.blocks, nn.ModuleList)  # units of sharding
    assert isinstance(backbone.processor.image_token, str)
    assert backbone.processor.image_token_id == model.config.image_token_id
    text = model.config.get_text_config(decoder=True)
    assert text.attention_dropout == 0.0  # looked at before hidden states are kept
    assert nn.Dropout(0.25).p == 0.25


@pytest.mark.parametrize(
    "family",
    ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava", "gemma3", "paligemma", "internvl", "smolvlm",
     "idefics3"],
)  # fmt: skip
def test_configs_name_their_visual_tokens(family: str) -> None:
    model = nn.Module()
    model.config = CONFIG_MAPPING[family]()
    assert _visual_token_ids(model)


def test_configs_name_the_image_and_the_video_token() -> None:
    model = nn.Module()
    model.config = Qwen2_5_VLConfig(image_token_id=5, video_token_id=7)
    assert _visual_token_ids(model) == [5, 7]
