"""Backbone, adapter, pooling and head: from model inputs to one logit for each finding.

The head reads the decoder's last hidden states. By default it reads the mean over the visual
tokens, and the decoder is causal: a visual token sees the text **before** the image and never the
text after it. `build_inputs` puts the prompt first for that reason. `last_token` reads everything.
"""

import torch
from jaxtyping import Bool, Float, Float32
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from medqua.core.errors import BackboneError, ConfigError, ShapeError

POOLINGS = ("visual_mean", "last_token")
"""What the head reads: the mean over visual tokens, or the last token that is no padding."""

TUNES = ("adapter", "full", "head")
"""What training changes, the head always: the adapter, all of the backbone, or nothing more."""


class MedQuaClassifier(nn.Module):
    """Multi-label classifier on a vision-language model.

    `logits = W pool(h) + b`, with `h` `[B, T, D]` the last hidden states of the inner multimodal
    model. The language head is never computed. `W` and `b` are float32 and zero at the start: an
    untrained model gives every finding probability 0.5, whatever the backbone.

    Args:
        backbone: A model of `load_backbone`, or `peft.get_peft_model` of it.
        n_labels: Number of findings.
        pooling: What the head reads, one of `POOLINGS`.
        tune: Which parameters require gradients, one of `TUNES`.

    Raises:
        ConfigError: Unknown `pooling` or `tune`, no label, or `tune="adapter"` without an adapter.
        BackboneError: The backbone has no image token, or no inner multimodal model.
    """

    def __init__(
        self,
        backbone: PreTrainedModel | PeftModel,
        n_labels: int,
        *,
        pooling: str = "visual_mean",
        tune: str = "adapter",
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ConfigError(f"pooling = {pooling!r}: needed one of {', '.join(POOLINGS)}")
        if n_labels < 1:
            raise ConfigError(f"n_labels = {n_labels}: needed at least one finding")
        self.backbone = backbone
        self.pooling = pooling
        vlm = vision_language_model(backbone)
        self.image_token_id = _image_token_id(vlm)
        self.head = nn.Linear(vlm.config.get_text_config(decoder=True).hidden_size, n_labels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        # by name: sharding puts other objects in the place of parameters
        self._adapter = {name for name, p in backbone.named_parameters() if p.requires_grad}
        if not isinstance(backbone, PeftModel):
            self._adapter = set()
        self.set_tunable(tune)

    def forward(self, **inputs: Tensor) -> Float32[Tensor, "batch labels"]:
        """Score one batch of images.

        Args:
            **inputs: What `build_inputs` returned: tensors by the names of the inner model's
                arguments, on the model's device.

        Returns:
            Logits `[B, n_labels]` float32, in the order of the labels.

        Raises:
            ShapeError: `input_ids`, `attention_mask` or `pixel_values` is missing.
        """
        for name in ("input_ids", "attention_mask", "pixel_values"):
            if name not in inputs:
                raise ShapeError(f"no {name} among the inputs: make them with build_inputs")
        inner = vision_language_model(self.backbone).base_model
        hidden_states = inner(**inputs, use_cache=False).last_hidden_state
        visual = inputs["input_ids"] == self.image_token_id
        pooled = self.pool(hidden_states, visual, inputs["attention_mask"])
        with torch.autocast(pooled.device.type, enabled=False):
            logits: Tensor = self.head(pooled)
        return logits

    def set_tunable(self, tune: str) -> None:
        """Choose which parameters require gradients; the head always does.

        With `"full"` the language head stays frozen unless it shares its weight with the token
        embedding: it takes no part in the forward pass.

        Raises:
            ConfigError: Unknown `tune`, or `"adapter"` on a backbone without one.
        """
        if tune not in TUNES:
            raise ConfigError(f"tune = {tune!r}: needed one of {', '.join(TUNES)}")
        if tune == "adapter" and not self._adapter:
            raise ConfigError(
                "tune = 'adapter' on a backbone without a trainable adapter: wrap it with "
                "peft.get_peft_model first, or choose 'full' or 'head'"
            )
        self.tune = tune
        owned = {id(p) for p in vision_language_model(self.backbone).base_model.parameters()}
        inert = self._inert()
        for name, parameter in self.backbone.named_parameters():
            if name in self._adapter:
                parameter.requires_grad_(tune != "head")
            else:
                whole = tune == "full" and id(parameter) in owned and id(parameter) not in inert
                parameter.requires_grad_(whole)
        self.head.requires_grad_(True)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Group the trainable parameters by their part, for learning rates of their own.

        Returns:
            Lists under `"backbone"`, `"adapter"` and `"head"`; a part without any is absent.
        """
        groups: dict[str, list[nn.Parameter]] = {"backbone": [], "adapter": [], "head": []}
        for name, parameter in self.backbone.named_parameters():
            if parameter.requires_grad:
                part = "adapter" if name in self._adapter else "backbone"
                groups[part].append(parameter)
        groups["head"] = list(self.head.parameters())
        return {part: parameters for part, parameters in groups.items() if parameters}

    def gradient_checkpointing_enable(self) -> None:
        """Recompute the backbone's layers in the backward pass; takes effect in train mode."""
        vision_language_model(self.backbone).activation_checkpointing_enable(
            {"use_reentrant": False}
        )

    def _inert(self) -> set[int]:
        """Adapter parameters that the adapter itself holds fixed: never made trainable here."""
        if not isinstance(self.backbone, PeftModel):
            return set()
        prefix = str(self.backbone.base_model.prefix)
        return {id(p) for name, p in self.backbone.named_parameters() if prefix in name}

    def pool(
        self,
        hidden_states: Float[Tensor, "batch tokens width"],
        visual: Bool[Tensor, "batch tokens"],
        attention_mask: Tensor,
    ) -> Float32[Tensor, "batch width"]:
        """Return what the head reads.

        Args:
            hidden_states: The decoder's last hidden states.
            visual: True at visual tokens.
            attention_mask: 1 or True at tokens that are no padding, `[B, T]`.
        """
        if self.pooling == "last_token":
            steps = torch.arange(visual.shape[1], device=visual.device)
            last = (steps * attention_mask).argmax(dim=1)
            rows = torch.arange(last.shape[0], device=last.device)
            return hidden_states[rows, last].float()
        weight = visual.unsqueeze(-1)  # [B, T, 1]
        count = weight.sum(dim=1).clamp(min=1)
        return (hidden_states.float() * weight).sum(dim=1) / count


def vision_language_model(backbone: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return the transformers model inside, adapter layers injected, PEFT's wrapper taken off.

    Raises:
        BackboneError: What is inside is no transformers model.
    """
    model = backbone.get_base_model() if isinstance(backbone, PeftModel) else backbone
    if not isinstance(model, PreTrainedModel) or model.base_model is model:
        raise BackboneError(
            f"{type(model).__name__} has no inner multimodal model: needed a model of "
            "AutoModelForImageTextToText, as load_backbone returns it"
        )
    return model


def _image_token_id(model: PreTrainedModel) -> int:
    for name in ("image_token_id", "image_token_index"):
        value = getattr(model.config, name, None)
        if isinstance(value, int):
            return value
    raise BackboneError(
        f"{type(model).__name__} names no image token in its config: visual tokens cannot be "
        "found; choose a vision-language model such as Qwen2.5-VL"
    )
