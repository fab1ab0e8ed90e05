"""Hidden states on disk, one row an image, each with its checksum."""

import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from medqua.core.errors import DataError
from medqua.core.model.classifier import MedQuaClassifier
from medqua.train.data.dataset import Collator, RadiographDataset, Sample
from medqua.train.data.manifest import IGNORED
from medqua.train.prefix.cut import Prefix, model_inputs, states_of
from medqua.train.record import write_json


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
            labels=whole.labels,
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
        labels = self.targets[index] if readable else np.full_like(self.targets[index], IGNORED)
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


def write_states(
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
            inputs = model_inputs(batch, classifier)
            states = as_numpy(states_of(classifier, inputs, prefix.layers)[0])
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


def as_numpy(states: Tensor) -> npt.NDArray[Any]:
    """float32, or the bits of bfloat16 as int16."""
    states = states.contiguous().cpu()
    return (states.view(torch.int16) if states.dtype == torch.bfloat16 else states).numpy()


def _damaged(path: Path, why: str) -> str:
    return f"{path}: {why}. Remove the folder {path.parent.name}; it is computed anew"
