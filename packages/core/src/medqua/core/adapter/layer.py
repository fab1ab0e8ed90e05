"""The Quasar layer: a decoder layer followed by the dual path of section 3.3 (Eq. 7-9)."""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Int64
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from medqua.core.adapter.config import QuasarConfig
from medqua.core.adapter.controls import (
    ClassicalBottleneck,
    FourierBottleneck,
    MLPBottleneck,
    freeze,
)
from medqua.core.adapter.router import EntropyRouter, Routed
from medqua.core.adapter.shadow import ClassicalShadow
from medqua.core.adapter.tokens import align, current_masks
from medqua.core.errors import ConfigError, ShapeError
from medqua.core.quantum.bottleneck import VariationalBottleneck
from medqua.core.quantum.complexity import DepthPolicy
from medqua.core.quantum.noise import NoiseModel


class Selected(NamedTuple):
    """The routed tokens of a batch, as the bottleneck is asked about them."""

    places: Int64[Tensor, " n"]
    """Their places in the batch laid out flat, `[B T]`."""
    angles: Float32[Tensor, "n qubits"]
    """phi (radian)."""
    depth: Int64[Tensor, " n"]
    """Circuit layers of each, 0..L_max."""
    probability: Float32[Tensor, " n"]
    """Probability that the policy gave that depth."""


class QuasarBlock(nn.Module):
    """One adapter on one decoder layer: `H' = H + gamma F` (Eq. 8-9).

    Router -> { gather, bottleneck, Linear(n_q -> D), scatter | shadow } -> fusion:
    `g^ = (1 - eps) g + eps`, `F = LN(Drop(g^ H_q + (1 - g^) H_cls))`.

    Parameters and arithmetic are float32 whatever the backbone's dtype, and stay so under
    `model.to(torch.bfloat16)`; only `gamma F` is cast to the dtype of H. Nothing here asks the
    host for a token: the one synchronisation is the number of selected tokens. The whole graph
    runs when that number is 0, so that every rank of a distributed run reduces the same gradients.

    Args:
        hidden_size: D, width of the hidden states.
        config: The adapter's configuration.
    """

    def __init__(self, hidden_size: int, config: QuasarConfig) -> None:
        super().__init__()
        self.config = config
        self.router = EntropyRouter(
            hidden_size,
            target_ratio=config.target_ratio,
            entropy=config.entropy,
            scope=config.scope,
            routing=config.routing,
            relaxation=config.relaxation,
            ema_decay=config.ema_decay,
            threshold_range=config.threshold_range,
            temperature=config.temperature,
            gumbel=(config.gumbel_temperature, config.gumbel_floor, config.gumbel_decay),
        )
        self.shadow = ClassicalShadow(
            hidden_size, rank=config.rank, alpha=config.alpha, dropout=config.dropout
        )
        self.encoder = nn.Linear(hidden_size, config.n_qubits)
        self.depth = DepthPolicy(config.max_depth, mode=config.depth)
        self.bottleneck = _bottleneck(config)
        self.proj = nn.Linear(config.n_qubits, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.gamma = nn.Parameter(torch.tensor(float(config.gamma_init)))
        self.quantum = True  # whether selected tokens go through the bottleneck: `classical_only`
        self.routed: Routed | None = None
        self.counts: Tensor | None = None
        self._signals: Tensor | None = None
        self._first_step = True

    def forward(
        self, hidden_states: Float[Tensor, "batch tokens hidden"]
    ) -> Float[Tensor, "batch tokens hidden"]:
        """Return `gamma F`, of the shape and dtype of `hidden_states`.

        Raises:
            ConfigError: `route="visual"`, and nothing tells which tokens are visual.
            ShapeError: A mask of another batch, one that does not tell padding, or one by which
                every token is padding.
        """
        with torch.autocast(hidden_states.device.type, enabled=False):
            x = hidden_states.float()
            routed = self.router(x, self._active(x))
            if not self.quantum:
                routed = routed._replace(mask=torch.zeros_like(routed.mask))
            selected = self.select(x, routed.mask)
            if not len(selected.places):
                _refuse_padding_alone(current_masks().real)
            self._gather_signals(x, selected.places)
            z = self.bottleneck(selected.angles, selected.depth)  # [N, n_q]
            # Forward z at the chosen depth; the gradient of the choice goes to its probability.
            z = z * (selected.probability + (1 - selected.probability).detach()).unsqueeze(-1)
            fused = self.fuse(x, routed.gate, self.shadow(x), selected.places, z)
        # Kept for Eq. 10-11 while training only, so that inference holds no graph.
        self.routed = routed if self.training and torch.is_grad_enabled() else None
        self._count(routed, selected.depth)
        return fused.to(hidden_states.dtype)

    def select(
        self, x: Float32[Tensor, "batch tokens hidden"], mask: Bool[Tensor, "batch tokens"]
    ) -> Selected:
        """Gather the routed tokens and say what the bottleneck is asked about each (Eq. 2, 8)."""
        flat = x.reshape(-1, x.shape[-1])  # [B T, D]
        index = mask.reshape(-1).nonzero().squeeze(1)  # [N]
        tokens = flat.index_select(0, index)  # [N, D]
        depth, probability = self.depth(tokens)
        return Selected(index, self._angles(tokens), depth, probability)

    def fuse(
        self,
        x: Float32[Tensor, "batch tokens hidden"],
        gate: Float32[Tensor, "batch tokens"],
        shadow: Float32[Tensor, "batch tokens hidden"],
        index: Int64[Tensor, " n"],
        z: Float32[Tensor, "n qubits"],
    ) -> Float32[Tensor, "batch tokens hidden"]:
        """Return `gamma F` (Eq. 8-9): z of the selected tokens put back, 0 elsewhere, and mixed.

        Args:
            x: H, whose scale is the unit of gamma where the residual is `relative`.
            gate: g of every token.
            shadow: H_cls of Eq. 7.
            index: Places of the selected tokens in the batch laid out flat.
            z: Their expectation values.
        """
        flat = shadow.new_zeros(shadow.shape).reshape(-1, shadow.shape[-1])
        quantum = flat.index_copy(0, index, self.proj(z)).reshape(shadow.shape)
        weight = ((1 - self.config.epsilon) * gate + self.config.epsilon).unsqueeze(-1)
        mixed = weight * quantum + (1 - weight) * shadow
        fused: Tensor = self.gamma * self.norm(self.dropout(mixed))
        if self.config.residual == "relative":
            fused = fused * x.detach().square().mean(-1, keepdim=True).sqrt()
        return fused

    def _angles(self, selected: Float32[Tensor, "n hidden"]) -> Float32[Tensor, "n qubits"]:
        """The angles phi = clip(Linear(x), -pi, pi), in radians."""
        if self.config.encoding == "rms":
            mean_square = selected.square().mean(-1, keepdim=True)
            selected = selected * torch.rsqrt(mean_square + 1e-12)
        angles: Tensor = self.encoder(selected)
        return angles.clamp(-math.pi, math.pi)

    def take_statistics(self) -> Float32[Tensor, "11"]:
        """What `update` needs of the training forwards since the last call; ranks add theirs up.

        The router's two sums, then the count of selected tokens, the sums of their complexity
        signals and of the squares of those (before the first optimiser step only).
        """
        signals, self._signals = self._signals, None
        if signals is None:
            signals = torch.zeros(9, device=self.router.steps.device)
        return torch.cat([self.router.take_statistic(), signals])

    @torch.no_grad()
    def update(self, statistics: Float32[Tensor, "11"]) -> None:
        """Move the threshold (Eq. 6); at the first step also standardise the depth policy.

        The policy reads logarithms of moments (Eq. 2), whose location and spread differ between
        backbones and layers: without this every token of a real backbone gets the same depth.
        """
        if self.config.depth == "adaptive":
            count, total, squares = statistics[2], statistics[3:7], statistics[7:11]
            mean = total / count
            deviation = (squares / count - mean.square()).clamp(min=1e-6).sqrt()
            usable = (self.router.steps == 0) & (count > 1)
            self.depth.shift.copy_(torch.where(usable, mean, self.depth.shift))
            self.depth.scale.copy_(torch.where(usable, deviation, self.depth.scale))
        self.router.update_threshold(statistics[:2])
        self._first_step = False

    @torch.no_grad()
    def _gather_signals(
        self, x: Float32[Tensor, "batch tokens hidden"], index: Int64[Tensor, " n"]
    ) -> None:
        if not (self.training and self._first_step and self.config.depth == "adaptive"):
            return
        signals = self.depth.rescaled(x.reshape(-1, x.shape[-1]).index_select(0, index))
        count = torch.full((1,), len(index), dtype=torch.float32, device=signals.device)
        sums = torch.cat([count, signals.sum(0), signals.square().sum(0)])
        self._signals = sums if self._signals is None else self._signals + sums

    def _active(
        self, x: Float32[Tensor, "batch tokens hidden"]
    ) -> Bool[Tensor, "batch tokens"] | None:
        batch, tokens, _ = x.shape
        masks = current_masks()
        real = align(masks.real, batch, tokens)
        if self.config.route == "all":
            return real
        visual = align(masks.visual, batch, tokens)
        if masks.visual is None or visual is None:
            raise ConfigError(
                "route='visual', but nothing tells which tokens are visual: no mm_token_type_ids "
                "reached the model, and no input_ids, or its config names no image_token_id. Pass "
                "them through the whole model, or choose route='all'"
            )
        if masks.visual.shape[1] < tokens:
            raise ShapeError(
                f"route='visual', but input_ids or mm_token_type_ids tell of "
                f"{masks.visual.shape[1]} tokens and the decoder has {tokens}; needed the same: "
                "pass them for every token, or choose route='all'"
            )
        return visual if real is None else visual & real

    @torch.no_grad()
    def _count(self, routed: Routed, depth: Int64[Tensor, " n"]) -> None:
        """Add up (active tokens, routed tokens, their depths) where the tensors are: no sync."""
        sums = torch.stack([routed.active.sum(), routed.mask.sum(), depth.sum()])
        self.counts = sums if self.counts is None else self.counts.to(sums.device) + sums

    def _apply(self, fn: Any, recurse: bool = True) -> "QuasarBlock":
        """Move with the model, but never to half precision: routes would change."""

        def keep_single(tensor: Tensor) -> Tensor:
            moved: Tensor = fn(tensor)
            halved = moved.dtype in (torch.float16, torch.bfloat16)
            return tensor.to(moved.device) if halved else moved

        super()._apply(keep_single, recurse)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave the last forward's graph behind."""
        return {**self.__dict__, "routed": None}


def _bottleneck(config: QuasarConfig) -> VariationalBottleneck | ClassicalBottleneck:
    """The circuit, or what stands in its place."""
    if config.bottleneck == "mlp":
        return MLPBottleneck(config.n_qubits, config.max_depth)
    if config.bottleneck == "fourier_features":
        return FourierBottleneck(config.n_qubits, config.max_depth)
    circuit = VariationalBottleneck(
        config.n_qubits,
        config.max_depth,
        entangler=config.entangler,
        engine=config.engine,
        noise=None if config.noise is None else NoiseModel.from_dict(config.noise),
        shots=config.shots,
        seed=config.seed,
        target=config.target,
    )
    return circuit if config.train_circuit else freeze(circuit)


class QuasarLayer(nn.Module, BaseTunerLayer):
    """A decoder layer with the adapters attached to it, by name.

    The decoder layer runs unchanged; the residuals of the active adapters are added to its hidden
    states. A plain module on purpose: with gradient checkpointing the decoder layer inside is
    recomputed and the adapter runs once. Attributes that it lacks are the decoder layer's.

    Args:
        base_layer: The decoder layer; returns hidden states, alone or first in a tuple.
        layer_name: Its qualified name in the backbone, which diagnostics go by.
    """

    adapter_layer_names = ("quasar_block",)
    other_param_names = ()

    def __init__(self, base_layer: nn.Module, layer_name: str) -> None:
        super().__init__()
        self.layer_name = layer_name
        self.base_layer = base_layer
        self.quasar_block = nn.ModuleDict()
        self._disable_adapters = False
        self._active_adapter: str | list[str] = []
        self.merged_adapters: list[str] = []

    def add_block(self, adapter_name: str, hidden_size: int, config: QuasarConfig) -> None:
        """Attach a new adapter, on the device of the decoder layer."""
        block = QuasarBlock(hidden_size, config)
        if not block.gamma.is_meta:  # PEFT loads into empty weights with low_cpu_mem_usage
            block.to(_device_of(self.base_layer))
        block.train(self.base_layer.training)
        self.quasar_block[adapter_name] = block

    def active_blocks(self) -> list[QuasarBlock]:
        """The blocks that take part in the forward pass."""
        if self.disable_adapters:
            return []
        blocks = (self.quasar_block[n] for n in self.active_adapters if n in self.quasar_block)
        return [block for block in blocks if isinstance(block, QuasarBlock)]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the decoder layer, then add `gamma F` to its hidden states."""
        output = self.base_layer(*args, **kwargs)
        hidden_states = output[0] if isinstance(output, tuple) else output
        adapted = hidden_states
        for block in self.active_blocks():
            adapted = adapted + block(hidden_states)
        return (adapted, *output[1:]) if isinstance(output, tuple) else adapted

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse: see `QuasarModel`."""
        raise ConfigError(MERGE_REFUSED)

    def __getattr__(self, name: str) -> Any:
        """Fall back on the decoder layer, whose attributes the model around it reads."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)


MERGE_REFUSED = (
    "a Quasar adapter cannot be merged into the backbone: it routes tokens and measures a circuit, "
    "which no weight matrix expresses. Keep the adapter attached, or call unload() to get the "
    "backbone back without it"
)


def _refuse_padding_alone(real: Tensor | None) -> None:
    """Refuse a mask without a real token: then a mask was misread or is not that of these inputs.

    Asked only where nothing was routed, so that it costs no synchronisation elsewhere.
    """
    if real is not None and not real.any():
        raise ShapeError(
            f"every token is padding by the attention_mask of this forward (read as "
            f"{list(real.shape)}), so that nothing can be routed; needed at least one real token: "
            "pass the 2-D mask [batch, tokens] of these inputs, 1 where a token is real, and drop "
            "columns that are padding in every row"
        )


def _device_of(module: nn.Module) -> torch.device:
    """Where a decoder layer runs, also when its weights are offloaded."""
    hook = getattr(module, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    if device is not None:
        return torch.device(device)
    return next((p.device for p in module.parameters()), torch.device("cpu"))
