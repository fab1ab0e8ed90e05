"""The torch modules that are traced: the model cut at its adapters, and the model in one piece.

They hold the bundle's own modules and call the bundle's own functions wherever these can be
traced; written anew are the vision tower's forward (the original asks the host for window sizes)
and the order in which things are called.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medqua.core.adapter.layer import QuasarBlock, QuasarLayer
from medqua.core.errors import BackboneError, ConfigError
from medqua.core.model.classifier import MedQuaClassifier, vision_language_model
from medqua.core.quantum.bottleneck import VariationalBottleneck
from medqua.core.quantum.exact.fourier import split
from medqua.core.quantum.exact.table import HeisenbergTable
from medqua.core.vision.patches import PatchSpec
from medqua.serve.inference.geometry import DecoderTables, VisionTables

FAMILY = "qwen2_5_vl"
"""The one family of backbones whose vision tower is written here."""


class VisionGraph(nn.Module):
    """Patches to visual tokens, for a batch of images of one size.

    The patches stand in windows, `[B, W * S, C]`, from the first block to the last: attention
    within windows reshapes, attention over the image does not. Empty slots are masked as keys and
    left out at the end.
    """

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower
        self.unit = int(tower.spatial_merge_unit)
        self.whole = frozenset(tower.fullatt_block_indexes)

    def forward(
        self,
        pixel_values: Tensor,
        window_order: Tensor,
        window_mask: Tensor,
        position_ids: Tensor,
        unit_slot: Tensor,
    ) -> Tensor:
        """Return visual tokens `[B, U, D]` in the order of the units; see `geometry`."""
        batch, patches, width = pixel_values.shape
        tower, order = self.tower, window_order.reshape(-1)
        # a convolution whose stride is its kernel is a matrix product, and more exact as one
        filters = tower.patch_embed.proj.weight.reshape(-1, width)
        x = functional.linear(pixel_values.reshape(-1, width).to(filters.dtype), filters)
        x = x.reshape(batch, patches // self.unit, self.unit * x.shape[-1])
        x = x.index_select(1, order).reshape(batch, window_mask.numel(), -1)
        angles = []
        for table in tower.rotary_pos_emb(x, position_ids):
            units = table.float().reshape(-1, self.unit * table.shape[-1])
            angles.append(units.index_select(0, order).reshape(window_mask.numel(), 1, -1))
        mask = torch.zeros(window_mask.shape, device=x.device)
        mask = mask.masked_fill(~window_mask, -torch.inf)
        for number, block in enumerate(tower.blocks):
            bias = mask.reshape(1, -1) if number in self.whole else mask
            x = x + self._attend(block.attn, block.norm1(x), angles, bias)
            x = x + block.mlp(block.norm2(x))
        merged: Tensor = tower.merger(x.reshape(-1, x.shape[-1]))
        return merged.reshape(batch, -1, merged.shape[-1]).index_select(1, unit_slot)

    @staticmethod
    def _attend(attention: Any, x: Tensor, angles: Sequence[Tensor], bias: Tensor) -> Tensor:
        """Attend within each row of `bias` `[windows, slots]`, which is 0 or -inf."""
        batch, slots, width = x.shape
        heads, (cosine, sine) = attention.num_heads, angles
        qkv = attention.qkv(x).reshape(batch, slots, 3, heads, width // heads)
        query, key, value = qkv.unbind(2)
        windows = []
        for part in (_rotate(query, cosine, sine), _rotate(key, cosine, sine), value):
            cut = part.reshape(-1, bias.shape[1], heads, width // heads)
            windows.append(cut.transpose(1, 2))
        query, key, value = windows  # [B W, heads, S, C / heads]
        scores = torch.matmul(query, key.transpose(2, 3)).float() * attention.scaling
        scores = scores.reshape(batch, -1, heads, *scores.shape[2:]) + bias[:, None, None]
        weights = scores.softmax(-1).to(value.dtype).flatten(0, 1)
        mixed = torch.matmul(weights, value).transpose(1, 2).reshape(batch, slots, width)
        out: Tensor = attention.proj(mixed)
        return out


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding of halves, in float32."""
    single = x.float()
    first, second = single.chunk(2, -1)
    return (single * cosine + torch.cat((-second, first), -1) * sine).to(x.dtype)


class Stage(nn.Module):
    """Decoder layers between two adapters.

    The first stage begins with the prompt's and the image's embeddings, every other with the
    fusion of the adapter before it; the last ends with pooling and head, every other with what the
    adapter asks of the bottleneck.
    """

    def __init__(
        self,
        classifier: MedQuaClassifier,
        layers: Sequence[Any],
        before: QuasarBlock | None,
        after: QuasarBlock | None,
        prompt: Tensor | None,
    ) -> None:
        super().__init__()
        decoder: Any = vision_language_model(classifier.backbone).base_model
        self.layers = nn.ModuleList(layers)
        self.rotary = decoder.language_model.rotary_emb
        self.before, self.after = before, after
        self.norm = decoder.language_model.norm if after is None else None
        self.head = classifier.head if after is None else None
        self.pooling = classifier.pool
        self.visual_only = after is not None and after.config.route == "visual"
        if prompt is not None:
            self.register_buffer("prompt", prompt)

    def embed(self, visual: Tensor, source: Tensor) -> Tensor:
        """Return `[B, T, D]`: the prompt's embeddings with the visual tokens among them."""
        prompt = self.get_buffer("prompt")
        rows = torch.cat((prompt.expand(visual.shape[0], -1, -1), visual), 1)
        index = source.unsqueeze(-1).expand(-1, -1, rows.shape[-1])
        return rows.gather(1, index)

    def resume(
        self, hidden: Tensor, gate: Tensor, shadow: Tensor, index: Tensor, z: Tensor
    ) -> Tensor:
        """Return H' of Eq. 9: the adapter's contribution added to where the last stage ended."""
        assert self.before is not None
        fused = self.before.fuse(hidden.float(), gate, shadow, index, z)
        return hidden + fused.to(hidden.dtype)

    def decode(
        self, hidden: Tensor, source: Tensor, mask: Tensor, position_ids: Tensor, prompt: int
    ) -> tuple[Tensor, ...]:
        """Run the layers, then the adapter's first half, or pooling and head.

        Returns:
            `(h, gate, shadow, index, angles, depth)`, or `(logits,)`.
        """
        if len(self.layers):
            steps = torch.arange(hidden.shape[1], device=hidden.device)
            seen = (steps[:, None] >= steps) & mask[:, None] | (steps[:, None] == steps)
            bias = torch.zeros(seen.shape, dtype=hidden.dtype, device=hidden.device)
            bias = bias.masked_fill(~seen, -torch.inf).unsqueeze(1)
            angles = self.rotary(hidden, position_ids)
            for layer in self.layers:
                out = layer(hidden, attention_mask=bias, position_embeddings=angles)
                hidden = out[0] if isinstance(out, tuple) else out
        visual = source >= prompt
        if self.after is None:
            assert self.norm is not None
            assert self.head is not None
            pooled = self.pooling(self.norm(hidden), visual & mask, mask)
            return (self.head(pooled),)
        x = hidden.float()
        routed = self.after.router(x, visual & mask if self.visual_only else mask)
        chosen = self.after.select(x, routed.mask)
        shadow = self.after.shadow(x)
        return hidden, routed.gate, shadow, chosen.places, chosen.angles, chosen.depth


class FirstStage(nn.Module):
    """A `Stage` as it is traced when it is the first."""

    def __init__(self, stage: Stage, prompt: int) -> None:
        super().__init__()
        self.stage, self.prompt = stage, prompt

    def forward(
        self, visual: Tensor, source: Tensor, mask: Tensor, position_ids: Tensor
    ) -> tuple[Tensor, ...]:
        """Embed and decode."""
        hidden = self.stage.embed(visual, source)
        return self.stage.decode(hidden, source, mask, position_ids, self.prompt)


class LaterStage(nn.Module):
    """A `Stage` as it is traced when an adapter stands before it."""

    def __init__(self, stage: Stage, prompt: int) -> None:
        super().__init__()
        self.stage, self.prompt = stage, prompt

    def forward(
        self,
        h_in: Tensor,
        gate_in: Tensor,
        shadow_in: Tensor,
        index_in: Tensor,
        z: Tensor,
        source: Tensor,
        mask: Tensor,
        position_ids: Tensor,
    ) -> tuple[Tensor, ...]:
        """Fuse and decode."""
        hidden = self.stage.resume(h_in, gate_in, shadow_in, index_in, z)
        return self.stage.decode(hidden, source, mask, position_ids, self.prompt)


class TableBottleneck(nn.Module):
    """The circuit as its Fourier table, all depths in one matrix product.

    `<Z_i> = F1^T C_i F2`: `docs/bottleneck.md` derives it. Exact, with the noise that the
    bottleneck was trained with and without its shots.
    """

    def __init__(self, circuit: VariationalBottleneck) -> None:
        super().__init__()
        n = circuit.ansatz.n_qubits
        self.n, self.first, self.depths = n, split(n), circuit.ansatz.max_depth + 1
        make, theta = HeisenbergTable(circuit.ansatz, circuit.noise), circuit.theta.detach()
        tables = torch.stack([make(theta, d, torch.float64) for d in range(self.depths)])
        axes = tables.reshape(self.depths, n, 3**self.first, -1).mT  # [depths, n, 3^last, 3^first]
        self.register_buffer("table", axes.reshape(-1, 3**self.first).T.float().contiguous())

    def forward(self, angles: Tensor, depth: Tensor) -> Tensor:
        """Return <Z_i> `[N, n]` of angles `[N, n]` at depths `[N]`."""
        basis = torch.stack((torch.ones_like(angles), angles.cos(), angles.sin()), -1)
        table = self.get_buffer("table")
        last = 3 ** (self.n - self.first)
        partial = _products(basis[:, : self.first]) @ table  # [N, depths n 3^last]
        tokens = partial.shape[0]  # may be 0: no axis is left to be inferred
        partial = partial.reshape(tokens, self.depths, self.n * last)
        chosen = depth.unsqueeze(1).unsqueeze(1).expand(tokens, 1, self.n * last)
        picked = partial.gather(1, chosen).reshape(tokens, self.n, last)
        return (picked * _products(basis[:, self.first :]).unsqueeze(1)).sum(-1)


def _products(basis: Tensor) -> Tensor:
    """Return the products of (1, cos, sin) over qubits, `[N, 3^k]`, the first the slowest digit."""
    if not basis.shape[1]:
        return basis.new_ones(basis.shape[0], 1)
    result = basis[:, 0]
    for q in range(1, basis.shape[1]):
        pairs = result.unsqueeze(2) * basis[:, q].unsqueeze(1)
        result = pairs.reshape(pairs.shape[0], 3 ** (q + 1))
    return result


class SingleGraph(nn.Module):
    """Images of one size to logits, probabilities and routes: nothing outside is needed."""

    def __init__(
        self,
        vision: VisionGraph,
        stages: Sequence[Stage],
        patches: PatchSpec,
        tables: tuple[VisionTables, DecoderTables],
        temperatures: Sequence[float],
    ) -> None:
        super().__init__()
        self.vision, self.stages, self.patches = vision, nn.ModuleList(stages), patches
        self.prompt = stages[0].get_buffer("prompt").shape[0]
        circuits = [stage.after.bottleneck for stage in stages if stage.after is not None]
        self.bottlenecks = nn.ModuleList(
            [TableBottleneck(c) if isinstance(c, VariationalBottleneck) else c for c in circuits]
        )
        for name, value in (tables[0].feeds() | {"places": tables[1].position_ids}).items():
            self.register_buffer(name, torch.from_numpy(value))
        self.register_buffer("source", torch.from_numpy(tables[1].source))
        self.register_buffer("temperatures", torch.tensor(temperatures))
        self.register_buffer("mean", torch.tensor(patches.mean).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(patches.std).reshape(-1, 1, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return logits and probabilities `[B, L]` and, with adapters, routes `[B, adapters, T]`.

        Args:
            image: Grey images `[B, H, W]` float32 in [0, 1].
        """
        batch, told = image.shape[0], self.get_buffer
        tables = ("window_order", "window_mask", "position_ids", "unit_slot")
        visual = self.vision(self.cut(image), *[told(name) for name in tables])
        source = told("source").expand(batch, -1)
        places = told("places").expand(-1, batch, -1)
        mask = torch.ones_like(source, dtype=torch.bool)
        stages: list[Any] = list(self.stages)
        hidden = stages[0].embed(visual, source)
        routes: list[Tensor] = []
        pairs = zip(stages[:-1], stages[1:], self.bottlenecks, strict=True)
        for stage, after, bottleneck in pairs:
            h, gate, shadow, index, angles, depth = stage.decode(
                hidden, source, mask, places, self.prompt
            )
            hidden = after.resume(h, gate, shadow, index, bottleneck(angles, depth))
            flat = torch.zeros_like(gate).reshape(-1)
            ones = torch.ones_like(depth, dtype=flat.dtype)
            routes.append(flat.index_copy(0, index, ones).reshape(gate.shape) > 0)
        (logits,) = stages[-1].decode(hidden, source, mask, places, self.prompt)
        chances = (logits / told("temperatures")).sigmoid()
        return (logits, chances, torch.stack(routes, 1)) if routes else (logits, chances)

    def cut(self, image: Tensor) -> Tensor:
        """Cut and normalise, as `medqua.core.vision.patches.cut` does."""
        batch, height, width = image.shape
        patch, merge = self.patches.patch, self.patches.merge
        rows, columns = self.patches.grid(int(height), int(width))
        grey = image.reshape(batch, rows // merge, merge, patch, columns // merge, merge, patch)
        grey = grey.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, -1, 1, 1, patch * patch)
        scaled = (grey - self.get_buffer("mean")) / self.get_buffer("std")
        whole = scaled.expand(-1, -1, -1, self.patches.temporal, -1)
        return whole.reshape(batch, rows * columns, -1)


def stages_of(classifier: MedQuaClassifier, prompt_ids: Sequence[int]) -> list[Stage]:
    """Cut a classifier at its adapters.

    Raises:
        BackboneError: A family whose vision tower is not known here.
        ConfigError: More adapters than one on a layer, or a routing that looks at the batch.
    """
    vlm = vision_language_model(classifier.backbone)
    family = vlm.config.model_type
    if family != FAMILY:
        raise BackboneError(f"the backbone is a {family!r} model: export knows {FAMILY!r} only")
    vlm.set_attn_implementation("eager")
    decoder: Any = vlm.base_model.language_model
    cuts: list[tuple[list[Any], QuasarBlock | None]] = [([], None)]
    for layer in decoder.layers:
        blocks = layer.active_blocks() if isinstance(layer, QuasarLayer) else []
        cuts[-1][0].append(layer.base_layer if isinstance(layer, QuasarLayer) else layer)
        if len(blocks) > 1:
            raise ConfigError(f"{len(blocks)} active adapters on a layer: export takes one")
        if blocks:
            _check(blocks[0])
            cuts[-1] = (cuts[-1][0], blocks[0])
            cuts.append(([], None))
    ids = torch.tensor(prompt_ids)
    prompt = decoder.embed_tokens(ids).detach()
    befores = [None, *(block for _, block in cuts)]
    return [
        Stage(classifier, layers, before, after, prompt if before is None else None)
        for (layers, after), before in zip(cuts, befores, strict=False)
    ]


def _check(block: QuasarBlock) -> None:
    routing = block.config.routing
    if routing != "ema":
        raise ConfigError(
            f"the adapter routes by {routing!r}, over the batch: one patient's result would depend "
            "on another's image; train with routing='ema' to serve it"
        )
