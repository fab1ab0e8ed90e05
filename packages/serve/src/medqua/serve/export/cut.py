"""A bundle to the graphs of an export: what is traced, with which examples and dynamic axes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from medqua.core.adapter.layer import QuasarBlock, QuasarLayer
from medqua.core.errors import BackboneError
from medqua.core.model.bundle import Bundle
from medqua.core.model.classifier import vision_language_model
from medqua.core.quantum.bottleneck import VariationalBottleneck
from medqua.core.vision.patches import PatchSpec, cut
from medqua.core.vision.processor import QwenProcessor, build_inputs, patch_spec
from medqua.serve.export.files import Traceable, halve
from medqua.serve.export.graphs import (
    FAMILY,
    FirstStage,
    LaterStage,
    SingleGraph,
    Stage,
    VisionGraph,
    stages_of,
)
from medqua.serve.inference.geometry import Geometry, decoder_tables, vision_tables
from medqua.serve.inference.manifest import AdapterSpec

LARGEST_TABLE = 10
"""Most qubits whose table goes into a graph: 3^10 numbers for each qubit and depth."""

ASKED = ("h", "gate", "shadow", "index", "angles", "depth")
"""Outputs of a stage that ends at an adapter."""

_EXAMPLES = 3
"""Images in the batch that is traced: an axis of length 1 would be taken for a constant."""


@dataclass(frozen=True, eq=False)
class CutModel:
    """A model cut at its adapters, with what is known of it."""

    vision: VisionGraph
    """The vision tower."""
    stages: list[Stage]
    """The decoder between adapters."""
    patches: PatchSpec
    """How an image is cut."""
    geometry: Geometry
    """What the index inputs follow from."""
    prompt: int
    """Tokens of the prompt."""
    adapters: list[AdapterSpec]
    """The bottlenecks between stages."""
    weights: dict[str, Tensor]
    """Their parameters, by `"<number>.<name>"`."""


def cut_model(bundle: Bundle, precision: str) -> CutModel:
    """Cut a bundle's model, in place: LoRA is merged and, for `fp16`, weights are halved.

    Raises:
        BackboneError: A family of backbones that export does not know.
        ConfigError: An adapter that cannot be served.
    """
    classifier = bundle.classifier.eval()
    vlm: Any = vision_language_model(classifier.backbone)
    if vlm.config.model_type != FAMILY or not isinstance(bundle.backbone.processor, QwenProcessor):
        raise BackboneError(
            f"the backbone is a {vlm.config.model_type!r} model: export knows {FAMILY!r} only; "
            "serve the bundle itself"
        )
    for module in classifier.modules():
        if isinstance(module, LoraLayer) and not isinstance(module, QuasarBlock):
            module.merge()
    classifier.requires_grad_(False)
    if precision == "fp16":
        halve(classifier.backbone)
    patches = patch_spec(bundle.backbone.processor.image_processor)
    ids, before = _prompt(bundle, patches)
    stages = stages_of(classifier, ids)
    tower = vlm.base_model.visual
    windowed = len(tower.blocks) > len(set(tower.fullatt_block_indexes))
    side = tower.window_size // patches.patch // patches.merge if windowed else 0
    names = [
        name for name, m in vlm.named_modules() if isinstance(m, QuasarLayer) and m.active_blocks()
    ]
    blocks = [stage.after for stage in stages if stage.after is not None]
    weights = {
        f"{number}.{name}": value.detach().contiguous()
        for number, block in enumerate(blocks)
        for name, value in block.bottleneck.state_dict().items()
    }
    return CutModel(
        VisionGraph(tower),
        stages,
        patches,
        Geometry(patches.merge, side, before, len(ids) - before),
        len(ids),
        [_adapter(name, block) for name, block in zip(names, blocks, strict=True)],
        weights,
    )


def example_size(bundle: Bundle, model: CutModel) -> tuple[int, int]:
    """Return height and width of an image to trace with: three windows, two of them cut short.

    Unequal sides, so that no axis is taken for another.
    """
    factor = model.patches.patch * model.patches.merge
    side = model.geometry.window or 3
    down, across = side + 1, side + 2
    while down * across * factor**2 < model.patches.least:
        down, across = down + 1, across + 1
    return down * factor, across * factor


@torch.no_grad()
def traceables(bundle: Bundle, model: CutModel) -> Iterator[tuple[str, Traceable]]:
    """Yield the graphs of the segmented layout, by the names of their files."""
    height, width = example_size(bundle, model)
    random = np.random.default_rng(0)
    batch = random.random((_EXAMPLES, height, width), dtype=np.float32)
    grid = model.patches.grid(height, width)
    tables = vision_tables(*grid, model.geometry)
    inputs = _tensors({"pixel_values": cut(batch, model.patches), **tables.feeds()})
    axes: dict[str, dict[int, str]] = {
        "pixel_values": {0: "batch", 1: "patches"},
        "window_order": {0: "windows", 1: "window_units"},
        "window_mask": {0: "windows", 1: "window_patches"},
        "position_ids": {0: "patches"},
        "unit_slot": {0: "units"},
    }
    if not model.geometry.window:
        del axes["window_order"][0], axes["window_mask"][0]
    yield "vision.onnx", Traceable(model.vision, inputs, ["visual"], axes)
    decoder = _tensors(decoder_tables(_EXAMPLES, *grid, model.geometry).feeds())
    both = {0: "batch", 1: "tokens"}
    shared = {"source": both, "mask": both, "position_ids": {1: "batch", 2: "tokens"}}
    feeds = {"visual": model.vision(**inputs), **decoder}
    axes = {"visual": {0: "batch", 1: "units"}, **shared}
    for number, stage in enumerate(model.stages):
        kind = LaterStage if number else FirstStage
        traced = kind(stage, model.prompt).eval()
        names = ASKED if stage.after is not None else ("logits",)
        # `decode` of a stage without layers takes no notice of positions
        yield f"stage_{number}.onnx", Traceable(traced, feeds, names, axes)
        if stage.after is None:
            break
        hidden, gate, shadow, _, angles, _ = traced(**feeds)
        index = torch.arange(0, gate.numel(), 4)  # whatever the example routes: an axis of its own
        z = torch.zeros(len(index), angles.shape[1])
        feeds = {"h_in": hidden, "gate_in": gate, "shadow_in": shadow, "index_in": index, "z": z}
        feeds |= decoder
        axes = dict.fromkeys(("h_in", "gate_in", "shadow_in"), both) | shared
        axes |= {"index_in": {0: "routed"}, "z": {0: "routed"}}


def why_no_single(bundle: Bundle, model: CutModel) -> str:
    """Return why a model has no single-file graph; empty where it has one."""
    if bundle.image.size is None:
        return "the bundle reads images of any size, and the graph holds the tables of one"
    largest = max((a.n_qubits for a in model.adapters if a.kind == "circuit"), default=0)
    if largest > LARGEST_TABLE:
        return f"the table of {largest} qubits is too large; up to {LARGEST_TABLE} fit"
    return ""


@torch.no_grad()
def single_traceable(bundle: Bundle, model: CutModel, temperatures: Sequence[float]) -> Traceable:
    """Return the single-file graph of a model that has one."""
    size = bundle.image.size
    assert size is not None
    grid = model.patches.grid(size, size)
    tables = vision_tables(*grid, model.geometry), decoder_tables(1, *grid, model.geometry)
    graph = SingleGraph(model.vision, model.stages, model.patches, tables, temperatures).eval()
    random = np.random.default_rng(0)
    image = torch.from_numpy(random.random((_EXAMPLES, size, size), dtype=np.float32))
    outputs = ["logits", "probabilities"] + ["routes"] * bool(model.adapters)
    return Traceable(graph, {"image": image}, outputs, {"image": {0: "batch"}})


def _prompt(bundle: Bundle, patches: PatchSpec) -> tuple[list[int], int]:
    """Return the prompt's tokens without the image's, and how many of them stand before it."""
    side = patches.patch * patches.merge
    while side * side < patches.least:
        side += patches.patch * patches.merge
    image = np.zeros((side, side), np.float32)
    processor, token = bundle.backbone.processor, bundle.classifier.image_token_id
    inputs = build_inputs(processor, [image], bundle.prompt, image_first=bundle.image_first)
    ids: list[int] = inputs["input_ids"][0].tolist()
    return [i for i in ids if i != token], ids.index(token)


def _adapter(layer: str, block: QuasarBlock) -> AdapterSpec:
    config, bottleneck = block.config, block.bottleneck
    if isinstance(bottleneck, VariationalBottleneck):
        noise = None if config.noise is None else dict(config.noise)
        sizes = config.n_qubits, config.max_depth
        return AdapterSpec(layer, "circuit", *sizes, config.entangler, noise)
    return AdapterSpec(
        layer, config.bottleneck, config.n_qubits, config.max_depth, config.entangler, None
    )


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
