"""Kept hidden states, found or computed, and checked against the whole model."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from medqua.core.adapter import find_decoder_layers
from medqua.core.model.classifier import MedQuaClassifier, vision_language_model
from medqua.train.data.dataset import Collator, RadiographDataset
from medqua.train.prefix.cut import (
    Prefix,
    frozen_layers,
    model_inputs,
    own_layers,
    skipping,
    template,
)
from medqua.train.prefix.states import PrefixCollator, PrefixDataset, as_numpy, write_states
from medqua.train.record import read_json

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""Largest difference of pooled hidden states, over their largest value, at which the states are
taken for the whole model's: other batch sizes sum in another order."""


def prepare(
    classifier: MedQuaClassifier,
    splits: Mapping[str, RadiographDataset],
    collator: Collator,
    folder: Path,
    made_from: Mapping[str, Any],
    *,
    batch_size: int,
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[Prefix, dict[str, RadiographDataset], PrefixCollator] | str:
    """Compute, or find, the hidden states of all splits.

    Args:
        classifier: On its device.
        splits: Train, validate, test; none of them augmented.
        collator: Images to batches.
        folder: Where states are kept, one folder inside for each prefix.
        made_from: What decides the pixels: data section, image spec, manifest fingerprint.
        batch_size: Images of one forward.
        advance: Called with the number of images done.

    Returns:
        The prefix, the splits and the collator to train with inside `skipping`; or, in words, why
        the whole model is needed.

    Raises:
        DataError: States on disk are damaged, or an image cannot be read.
    """
    layers = frozen_layers(classifier)
    if isinstance(layers, str):
        return layers
    if any(dataset.augmentation.active for dataset in splits.values()):
        return "training images are augmented"
    shared = template(classifier, collator, next(iter(splits.values())).size)
    if isinstance(shared, str):
        return shared
    prefix = Prefix(layers, *shared)
    own = folder / _key(classifier, prefix, splits, collator, made_from)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{own}.lock"):
        if not (own / "prefix.json").is_file():
            write_states(classifier, prefix, splits, collator, own, batch_size, advance)
    kept: dict[str, RadiographDataset] = {
        split: PrefixDataset(dataset, own, split) for split, dataset in splits.items()
    }
    read_json(own / "prefix.json")
    fast = PrefixCollator(collator.processor, collator.prompt, prefix.row)
    wrong = _differs(classifier, prefix, splits["validate"], kept["validate"], collator, fast)
    return wrong or (prefix, kept, fast)


@torch.no_grad()
def _differs(
    classifier: MedQuaClassifier,
    prefix: Prefix,
    whole: RadiographDataset,
    kept: RadiographDataset,
    collator: Collator,
    fast: PrefixCollator,
) -> str:
    """Why the states are not the whole model's, tried on two images; empty if they are."""
    pooled: list[Tensor] = []
    chosen = range(min(2, len(whole)))
    handle = classifier.head.register_forward_pre_hook(lambda _, args: pooled.append(args[0]))
    was_training = classifier.training
    classifier.eval()
    adapters = [module for module in classifier.modules() if isinstance(module, BaseTunerLayer)]
    try:
        for module in adapters:  # they may draw random numbers: routes, shots
            module._disable_adapters = True
        classifier(**model_inputs(collator([whole[i] for i in chosen]), classifier))
        with skipping(classifier, prefix):
            classifier(**model_inputs(fast([kept[i] for i in chosen]), classifier))
    finally:
        for module in adapters:
            module._disable_adapters = False
        handle.remove()
        classifier.train(was_training)
    gap = float((pooled[0] - pooled[1]).abs().max() / pooled[0].abs().max().clamp(min=1e-12))
    dtype = next(vision_language_model(classifier.backbone).parameters()).dtype
    if gap <= TOLERANCE.get(dtype, 1e-5):
        return ""
    return f"kept states give other hidden states than the whole model (by {gap:.1e} of theirs)"


def _key(
    classifier: MedQuaClassifier,
    prefix: Prefix,
    splits: Mapping[str, RadiographDataset],
    collator: Collator,
    made_from: Mapping[str, Any],
) -> str:
    """Name of the states: what they depend on, hashed."""
    model = vision_language_model(classifier.backbone)
    inside = {id(p) for p in find_decoder_layers(model)[1].parameters()}
    outside = [p for p in model.base_model.parameters() if id(p) not in inside]
    below = [p for layer in own_layers(model)[: prefix.layers] for p in layer.parameters()]
    digest = hashlib.sha256()
    for parameter in [*outside, *below]:
        digest.update(str((tuple(parameter.shape), parameter.dtype)).encode())
        digest.update(as_numpy(parameter.detach()).tobytes())
    told = {
        "layers": prefix.layers,
        "prompt": collator.prompt,
        "row": {name: one.tolist() for name, one in prefix.row.items()},
        "images": {split: dataset.images for split, dataset in splits.items()},
        "made_from": made_from,
    }
    digest.update(json.dumps(told, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:24]
