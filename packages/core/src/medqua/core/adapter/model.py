"""The Quasar adapter as a PEFT tuner: inject, save, load, switch, disable, unload."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

import torch
from peft import PeftConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTuner, delete_adapter, set_adapter
from peft.utils import register_peft_method
from peft.utils.peft_types import PeftType
from torch import nn

from medqua.core.adapter.config import Bottleneck, QuasarConfig, lora_config
from medqua.core.adapter.layer import MERGE_REFUSED, QuasarBlock, QuasarLayer
from medqua.core.adapter.objective import update_thresholds
from medqua.core.adapter.placement import choose_blocks, find_decoder_layers
from medqua.core.adapter.registration import NAME, add_peft_type
from medqua.core.adapter.tokens import TokenHooks
from medqua.core.errors import BackboneError, ConfigError


class QuasarModel(BaseTuner):
    """A model whose chosen decoder layers carry the Quasar adapter.

    Made by `peft.get_peft_model(vlm, QuasarConfig(...))` for any Hugging Face vision-language or
    language model whose decoder layers `find_decoder_layers` finds. PEFT's verbs work on it:
    `save_pretrained` and `from_pretrained` (bit for bit, thresholds included), `disable_adapter`
    (bit for bit the backbone), `add_adapter`, `set_adapter`, `delete_adapter`, `modules_to_save`,
    `unload`. Merging is refused.

    LoRA named in the configuration lives under the same adapter name: it is saved, loaded,
    switched, disabled and deleted together with the adapter.

    Args:
        model: The model to adapt, changed in place.
        peft_config: One configuration, or configurations by adapter name.
        adapter_name: Name of the first adapter.
        low_cpu_mem_usage: Create weights on the meta device, to be replaced by loaded ones.
        state_dict: Keys that tell where LoRA and the adapter go; unused by `get_peft_model`.

    Raises:
        BackboneError: No decoder layers were found.
        ConfigError: `every` or `blocks` do not fit the model, or the adapter's name is taken by
            one of its own parts.
    """

    prefix = "quasar_"
    tuner_layer_cls = QuasarLayer
    _token_hooks: TokenHooks | None = None

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Attach an adapter, and LoRA beside it where the configuration says so."""
        config = _quasar(self.peft_config[adapter_name])
        self._place(config)
        _check_name(adapter_name)
        if config.lora is not None:
            self._inject_lora(config, adapter_name, low_cpu_mem_usage)
        super().inject_adapter(
            model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict
        )

    def update_thresholds(self) -> None:
        """Move the thresholds by Eq. 6: once after each optimiser step, on every rank."""
        update_thresholds(self.model)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Make an adapter, and its LoRA, the active one."""
        set_adapter(self.model, adapter_name, inference_mode=inference_mode)
        self.active_adapter = adapter_name

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter and its LoRA.

        When it was the only active one, the first by name of those left becomes active, on all
        layers: PEFT asks the first layer, which may never have had another.
        """
        active = [name for name in self.active_adapters if name != adapter_name]
        super().delete_adapter(adapter_name)
        delete_adapter(self.model, adapter_name, prefix="lora_", layer_cls=LoraLayer)
        self.set_adapter(active or sorted(self.peft_config)[:1])

    def _prepare_adapter_config(
        self, peft_config: PeftConfig, model_config: dict[str, Any]
    ) -> PeftConfig:
        config = _quasar(peft_config)
        config.target_modules = self._place(config)
        return config

    def _place(self, config: QuasarConfig) -> tuple[str, ...]:
        """Qualified names of the decoder layers that this configuration adapts."""
        name, layers = find_decoder_layers(self.model)
        chosen = choose_blocks(len(layers), config.every, config.blocks)
        return tuple(f"{name}.{index}" for index in chosen)

    @staticmethod
    def _check_target_module_exists(peft_config: PeftConfig, key: str) -> bool:
        return key in (_quasar(peft_config).target_modules or ())

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = target if isinstance(target, QuasarLayer) else QuasarLayer(target, current_key)
        layer.add_block(adapter_name, _hidden_size(self.model), _quasar(peft_config))
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        if isinstance(new_module, QuasarLayer):
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)

    def _post_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        if self._token_hooks is not None:  # another adapter was there before
            self._token_hooks.remove()
        self._token_hooks = TokenHooks(model)

    def _check_merge_allowed(self) -> None:
        raise ConfigError(MERGE_REFUSED)

    def _unload_and_optionally_merge(  # type: ignore[override]  # PEFT says None, returns a model
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        if merge:
            self._check_merge_allowed()
        _, layers = find_decoder_layers(self.model)
        for index, layer in enumerate(layers):
            if isinstance(layer, QuasarLayer):
                layers[index] = layer.base_layer
        if self._token_hooks is not None:
            self._token_hooks.remove()
        super()._unload_and_optionally_merge(merge=False, progressbar=progressbar)
        backbone: nn.Module = self.model
        return backbone

    def _inject_lora(self, config: QuasarConfig, adapter_name: str, low_cpu_mem: bool) -> None:
        """Let PEFT put LoRA under the same name, out of sight of the adapter.

        PEFT skips everything inside layers that are adapted already, and takes the configurations
        that it finds on the model for its own: both are put aside meanwhile.
        """
        lora = lora_config(self.model, config.lora or {})
        lora.inference_mode = config.inference_mode
        trainable = [(p, p.requires_grad) for p in self.model.parameters()]
        adapted = any(isinstance(module, QuasarLayer) for module in self.model.modules())
        with _bare(self.model):
            inject_adapter_in_model(
                lora, self.model, adapter_name=adapter_name, low_cpu_mem_usage=low_cpu_mem
            )
        if adapted:
            for parameter, requires_grad in trainable:
                parameter.requires_grad_(requires_grad)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        ours = f".quasar_block.{adapter_name}."
        if ours in key:
            return key.replace(ours, ".quasar_block.", 1)
        # LoRA inside an adapted layer: which layers are adapted may differ where it is loaded.
        plain: str = super()._remove_adapter_name_from_key(key, adapter_name)
        return re.sub(r"(\.\d+)\.base_layer\.(?=.*\.lora_)", r"\1.", plain)


@contextmanager
def _bare(model: nn.Module) -> Iterator[None]:
    """Meanwhile, `model` has its own decoder layers and no PEFT configurations."""
    _, layers = find_decoder_layers(model)
    adapted = {index: layer for index, layer in enumerate(layers) if isinstance(layer, QuasarLayer)}
    configs = model.__dict__.pop("peft_config", None)
    for index, layer in adapted.items():
        layers[index] = layer.base_layer
    try:
        yield
    finally:
        for index, layer in adapted.items():
            layers[index] = layer
        model.__dict__.pop("peft_config", None)
        if configs is not None:
            model.peft_config = configs


def _quasar(config: PeftConfig) -> QuasarConfig:
    if not isinstance(config, QuasarConfig):
        raise ConfigError(
            f"got a {type(config).__name__} for a Quasar model; needed a QuasarConfig (LoRA beside "
            "it goes into its field lora)"
        )
    return config


def _hidden_size(model: nn.Module) -> int:
    """D of the decoder."""
    config: Any = model.config
    size = getattr(config.get_text_config(decoder=True), "hidden_size", None)
    if not isinstance(size, int):
        raise BackboneError(f"the text config of {type(model).__name__} tells no hidden_size")
    return size


def _check_name(adapter_name: str) -> None:
    """Refuse names that PEFT would mistake for a part of the adapter when it saves."""
    parts = {"quasar_block"}
    for bottleneck in get_args(Bottleneck):
        config = QuasarConfig(n_qubits=2, max_depth=1, engine="dense", bottleneck=bottleneck)
        with torch.device("meta"):
            block = QuasarBlock(4, config)
        parts |= {part for name in block.state_dict() for part in name.split(".")}
    if adapter_name in parts or "." in adapter_name:
        raise ConfigError(
            f"adapter name {adapter_name!r} is the name of a part of the adapter, or has a dot; "
            f"needed another than {', '.join(sorted(parts))}"
        )


def _register() -> None:
    """Make `peft` know the method; a second import changes nothing."""
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    peft_type: PeftType = add_peft_type()
    if peft_type not in PEFT_TYPE_TO_TUNER_MAPPING:
        register_peft_method(
            name=NAME.lower(),
            config_cls=QuasarConfig,
            model_cls=QuasarModel,
            prefix=QuasarModel.prefix,
        )


_register()
