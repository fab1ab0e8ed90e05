"""The frozen prefix of the backbone, computed once for each image and read back in every epoch.

Below the first decoder layer that is adapted or trained, a frozen backbone answers an image that
is not augmented with the same hidden states in every epoch, for every seed and every arm. They
are computed once, the whole model's own way, and kept as rows `[T, D]` of a memory-mapped file;
training then starts from them. What is kept is bound to what it was made from (weights, images,
prompt, `ImageSpec`) by the name of its folder, and each row to its checksum, verified whenever it
is read. Arms and seeds with the same frozen layers share it; processes wait for the one that
makes it.

states/KEY/prefix.json       what it was made from; written last
states/KEY/train.npy         [N, T, D] float32, or bfloat16 as int16
states/KEY/train.rows.npz    CRC-32 of each row, and which images could be read
"""

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medqua.core.adapter import QuasarLayer, find_decoder_layers
from medqua.core.errors import DataError
from medqua.core.model.classifier import MedQuaClassifier, vision_language_model
from medqua.train.data.dataset import Collator, RadiographDataset, Sample
from medqua.train.record import read_json, write_json

ROW_INPUTS = ("input_ids", "attention_mask", "mm_token_type_ids")
"""Model inputs that are the same in every row of every batch: one prompt, one image size."""

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""Largest difference of pooled hidden states, over their largest value, at which the states are
taken for the whole model's: other batch sizes sum in another order."""


@dataclass(frozen=True)
class Prefix:
    """What of a classifier never changes: everything below a decoder layer."""

    layers: int
    """Decoder layers that are skipped, from the first; 0 still skips the vision tower."""

    row: Mapping[str, Tensor]
    """The inputs of `ROW_INPUTS`, one row `[1, T]` each."""

    positions: Tensor
    """Position ids as the decoder gets them, `[A, 1, T]` for its A axes."""


def frozen_layers(classifier: MedQuaClassifier) -> int | str:
    """How many decoder layers never change, from the first; or why there is no prefix.

    The own computation of a layer that carries a Quasar block belongs to the prefix: the block
    reads its output.
    """
    model = vision_language_model(classifier.backbone)
    _, layers = find_decoder_layers(model)
    inside = {id(p) for layer in layers for p in layer.parameters()}
    if any(p.requires_grad and id(p) not in inside for p in model.parameters()):
        return "the backbone is trained"
    for name, module in model.named_modules():
        rate = getattr(module, "p", 0.0) if isinstance(module, nn.Dropout) else 0.0
        if "quasar_" not in name and "lora_" not in name and rate:
            return f"{name} drops out"
    config = model.config.get_text_config(decoder=True)
    if getattr(config, "attention_dropout", 0.0):
        return "the backbone's attention drops out"
    for index, layer in enumerate(layers):
        adapted = isinstance(layer, QuasarLayer)
        own = layer.base_layer if isinstance(layer, QuasarLayer) else layer
        if any(p.requires_grad for p in own.parameters()) or _holds_adapter(own):
            return index
        if adapted:
            return index + 1
    return len(layers)


class PrefixDataset(RadiographDataset):
    """A split whose images are hidden states `[T, D]`.

    Args:
        whole: The split that they were computed from.
        folder: Folder of the states.
        split: Its name.

    Raises:
        DataError: The states are of another number of images, or cannot be read.
    """

    def __init__(self, whole: RadiographDataset, folder: Path, split: str) -> None:
        super().__init__(
            whole.images,
            whole.targets,
            whole.store,
            whole.spec,
            seed=whole.seed,
            skip_unreadable=whole.skip_unreadable,
        )
        self.path = folder / f"{split}.npy"
        try:
            self.states = np.load(self.path, mmap_mode="r")
            with np.load(folder / f"{split}.rows.npz") as rows:
                self.sums, self.readable = rows["crc32"], rows["readable"]
        except (OSError, ValueError, KeyError, zlib.error) as error:
            raise DataError(_damaged(self.path, str(error))) from error
        if len(self.states) != len(whole) or len(self.sums) != len(whole):
            raise DataError(_damaged(self.path, f"{len(self.states)} rows, needed {len(whole)}"))

    def __getitem__(self, index: int) -> Sample:
        row = np.ascontiguousarray(self.states[index])
        if zlib.crc32(row.data) != self.sums[index]:
            raise DataError(_damaged(self.path, f"row {index} differs from its checksum"))
        readable = bool(self.readable[index])
        labels = self.targets[index] if readable else np.full_like(self.targets[index], -1)
        return Sample(image=row, labels=labels, index=index, readable=readable)

    def preload(self, threads: int, advance: Callable[[int], None] = lambda _: None) -> None:
        """Nothing to decode: the rows are mapped."""
        advance(len(self))

    def unreadable(self) -> list[str]:
        """Names of images that could not be read when the states were computed."""
        return [self.images[index] for index in np.flatnonzero(~self.readable)]


@dataclass(frozen=True)
class PrefixCollator(Collator):
    """Hidden states to one batch, in the place of pixels."""

    row: Mapping[str, Tensor] = field(default_factory=dict)
    """The inputs that are the same in every row, `[1, T]` each."""

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Make a batch: `pixel_values` are the states `[B, T, D]`; see `skipping`."""
        states = torch.from_numpy(np.stack([sample["image"] for sample in samples]))
        if states.dtype == torch.int16:
            states = states.view(torch.bfloat16)
        labels = np.stack([sample["labels"] for sample in samples]).astype(np.float32)
        repeated = {name: one.expand(len(samples), -1).clone() for name, one in self.row.items()}
        return repeated | {
            "pixel_values": states,
            "labels": torch.from_numpy(labels),
            "index": torch.tensor([sample["index"] for sample in samples]),
            "readable": torch.tensor([sample["readable"] for sample in samples]),
        }


@contextmanager
def skipping(classifier: MedQuaClassifier, prefix: Prefix) -> Iterator[None]:
    """Meanwhile the classifier takes hidden states as `pixel_values` and starts from them."""
    model = vision_language_model(classifier.backbone)

    def enter(_: nn.Module, args: tuple[Any, ...], told: dict[str, Any]) -> Any:
        states = told["pixel_values"]
        axes, _one, tokens = prefix.positions.shape
        kept = {k: v for k, v in told.items() if k not in ("input_ids", "pixel_values")}
        positions = prefix.positions.to(states.device).expand(axes, len(states), tokens)
        return args, {**kept, "inputs_embeds": states, "position_ids": positions}

    skipped = _own_layers(model)[: prefix.layers]
    handle = model.base_model.register_forward_pre_hook(enter, with_kwargs=True)
    for layer in skipped:
        setattr(layer, "forward", _same)  # noqa: B010  # on this instance alone
    try:
        yield
    finally:
        handle.remove()
        for layer in skipped:
            del layer.forward


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
    template = _template(classifier, collator, next(iter(splits.values())).size)
    if isinstance(template, str):
        return template
    prefix = Prefix(layers, *template)
    own = folder / _key(classifier, prefix, splits, collator, made_from)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{own}.lock"):
        if not (own / "prefix.json").is_file():
            _write(classifier, prefix, splits, collator, own, batch_size, advance)
    kept: dict[str, RadiographDataset] = {
        split: PrefixDataset(dataset, own, split) for split, dataset in splits.items()
    }
    read_json(own / "prefix.json")
    fast = PrefixCollator(collator.processor, collator.prompt, prefix.row)
    wrong = _differs(classifier, prefix, splits["validate"], kept["validate"], collator, fast)
    return wrong or (prefix, kept, fast)


class _CapturedError(Exception):
    """Ends a forward as soon as the hidden states are known."""


@torch.no_grad()
def _states(
    classifier: MedQuaClassifier, inputs: Mapping[str, Tensor], layers: int
) -> tuple[Tensor, dict[str, Any]]:
    """Hidden states below the first layer that changes, and what the decoder was called with."""
    model = vision_language_model(classifier.backbone)
    own = _own_layers(model)
    found: list[Tensor] = []
    told: dict[str, Any] = {}
    decoder = model.get_submodule(find_decoder_layers(model)[0].rpartition(".")[0])

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(args[0] if args else kwargs["hidden_states"])
        raise _CapturedError

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)
        raise _CapturedError

    handles = [
        decoder.register_forward_pre_hook(lambda _, __, k: told.update(k), with_kwargs=True),
        own[layers - 1].register_forward_hook(after)
        if layers
        else own[0].register_forward_pre_hook(before, with_kwargs=True),
    ]
    was_training = classifier.training
    classifier.eval()
    try:
        classifier(**inputs)
    except _CapturedError:
        pass
    finally:
        classifier.train(was_training)
        for handle in handles:
            handle.remove()
    return found[0], told


def _template(
    classifier: MedQuaClassifier, collator: Collator, size: int
) -> tuple[dict[str, Tensor], Tensor] | str:
    """What all rows share, from two blanks; or why they share it not."""
    blank = np.zeros((size, size), np.float32)
    labels = np.zeros(classifier.head.out_features, np.int8)
    batch = collator([Sample(image=blank, labels=labels, index=0, readable=True)] * 2)
    inputs = _inputs(batch, classifier)
    if any(name not in inputs for name in ROW_INPUTS):
        return "the backbone's processor makes other inputs than Qwen's"
    positions = _states(classifier, inputs, 0)[1].get("position_ids")
    if not isinstance(positions, Tensor) or positions.dim() != 3:
        return "the backbone's decoder is given no positions on several axes"
    return {name: batch[name][:1] for name in ROW_INPUTS}, positions[:, :1].cpu()


def _write(
    classifier: MedQuaClassifier,
    prefix: Prefix,
    splits: Mapping[str, RadiographDataset],
    collator: Collator,
    own: Path,
    batch_size: int,
    advance: Callable[[int], None],
) -> None:
    """Compute the states of all splits; what is not finished is thrown away next time."""
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True)
    shape: dict[str, list[int]] = {}
    for split, dataset in splits.items():
        loader: DataLoader[Sample] = DataLoader(dataset, batch_size=batch_size, collate_fn=collator)
        rows: np.memmap[Any, Any] | None = None
        sums = np.zeros(len(dataset), np.uint32)
        readable = np.ones(len(dataset), bool)
        for batch in loader:
            states = _as_numpy(_states(classifier, _inputs(batch, classifier), prefix.layers)[0])
            if rows is None:
                whole = (len(dataset), *states.shape[1:])
                path = own / f"{split}.npy"
                rows = cast(Any, np.lib.format.open_memmap(path, "w+", states.dtype, whole))
            index = batch["index"].numpy()
            rows[index] = states
            sums[index] = [zlib.crc32(row.data) for row in states]
            readable[index] = batch["readable"].numpy()
            advance(len(index))
        if rows is not None:
            shape[split] = list(rows.shape)
            rows.flush()
        np.savez(own / f"{split}.rows.npz", crc32=sums, readable=readable)
    write_json(own / "prefix.json", {"layers": prefix.layers, "shapes": shape})


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
        classifier(**_inputs(collator([whole[i] for i in chosen]), classifier))
        with skipping(classifier, prefix):
            classifier(**_inputs(fast([kept[i] for i in chosen]), classifier))
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
    below = [p for layer in _own_layers(model)[: prefix.layers] for p in layer.parameters()]
    digest = hashlib.sha256()
    for parameter in [*outside, *below]:
        digest.update(str((tuple(parameter.shape), parameter.dtype)).encode())
        digest.update(_as_numpy(parameter.detach()).tobytes())
    told = {
        "layers": prefix.layers,
        "prompt": collator.prompt,
        "row": {name: one.tolist() for name, one in prefix.row.items()},
        "images": {split: dataset.images for split, dataset in splits.items()},
        "made_from": made_from,
    }
    digest.update(json.dumps(told, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:24]


def _own_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder's own layers, without what adapts them."""
    _, layers = find_decoder_layers(model)
    return [layer.base_layer if isinstance(layer, QuasarLayer) else layer for layer in layers]


def _holds_adapter(module: nn.Module) -> bool:
    """Whether PEFT changed anything inside."""
    return any("lora_" in name for name, _ in module.named_modules())


def _inputs(batch: Mapping[str, Tensor], classifier: MedQuaClassifier) -> dict[str, Tensor]:
    """The model's own inputs among a batch, on its device."""
    device = next(classifier.parameters()).device
    beside = ("labels", "index", "readable")
    return {name: value.to(device) for name, value in batch.items() if name not in beside}


def _as_numpy(states: Tensor) -> npt.NDArray[Any]:
    """float32, or the bits of bfloat16 as int16."""
    states = states.contiguous().cpu()
    return (states.view(torch.int16) if states.dtype == torch.bfloat16 else states).numpy()


def _same(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    """A decoder layer whose answer is known already."""
    return hidden_states


def _damaged(path: Path, why: str) -> str:
    return f"{path}: {why}. Remove the folder {path.parent.name}; it is computed anew"
