"""Manifest rows as samples, and samples as batches.

Reading is `medqua.core.vision.image.read_image` and batching is
`medqua.core.vision.processor.build_inputs`: the two functions that serving calls.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from jaxtyping import Int8
from torch import Tensor
from torch.utils.data import Dataset
from transformers import ProcessorMixin

from medqua.core.errors import ConfigError, ImageError, ShapeError
from medqua.core.vision.image import ImageSpec, read_image
from medqua.core.vision.processor import build_inputs
from medqua.train.data.augmentation import Augmentation
from medqua.train.data.cache import CachedImages
from medqua.train.data.cache.build import unreadable
from medqua.train.data.images import ImageStore
from medqua.train.data.levels import Levels, compact, expand
from medqua.train.data.manifest import IGNORED


class Sample(TypedDict):
    """One image and what is known of it."""

    image: npt.NDArray[np.float32]
    """`[H, W]` in [0, 1]."""
    labels: npt.NDArray[np.int8]
    """`[L]` of 1, 0 and `IGNORED`."""
    index: int
    """Position in the split."""
    readable: bool
    """False for a blank that stands in for an image that could not be read."""


class RadiographDataset(Dataset[Sample]):
    """The images of one split.

    Args:
        images: Their names in the manifest, N of them.
        targets: `[N, L]` int8 of 1, 0 and `IGNORED`, from a `LabelPolicy`.
        store: Where they are.
        spec: How they are read; its `size` is needed, batches are of one size.
        augmentation: Changes for training.
        seed: Seed of the augmentation.
        skip_unreadable: Put a blank with every label ignored in the place of an image that cannot
            be read, so that it weighs nothing in the loss or a metric, instead of raising.
        keep: Keep decoded images in memory (see `preload`).
        cache: The same images, decoded already; the store is asked only for those that were
            unreadable then.
        labels: L names, in the order of the targets' columns, where they matter.

    Raises:
        ConfigError: `spec.size` is None.
        ShapeError: `targets` is not of as many rows as there are images.
    """

    def __init__(
        self,
        images: Sequence[str],
        targets: Int8[np.ndarray, "n l"],
        store: ImageStore,
        spec: ImageSpec,
        *,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        skip_unreadable: bool = False,
        keep: bool = False,
        cache: CachedImages | None = None,
        labels: Sequence[str] = (),
    ) -> None:
        if spec.size is None:
            raise ConfigError("image.size is not given: batches need images of one size")
        if len(images) != len(targets):
            raise ShapeError(f"{len(images)} images with {len(targets)} rows of targets")
        if cache is not None and len(cache) != len(images):
            raise ShapeError(f"{len(images)} images with {len(cache)} in the cache")
        self.images = list(images)
        self.targets = targets
        self.labels = tuple(labels) or tuple(str(i) for i in range(targets.shape[1]))
        self.store = store
        self.spec = spec
        self.size = spec.size
        self.augmentation = augmentation or Augmentation()
        self.seed = seed
        self.skip_unreadable = skip_unreadable
        self.cache = cache
        # shared, so that data-loader workers that outlive an epoch see the next one
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._kept: dict[int, Levels | None] = {}
        self._keep = keep

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        image = self.read(index)
        if image is None:
            blank = np.zeros((self.size, self.size), np.float32)
            ignored = np.full(self.targets.shape[1], IGNORED, np.int8)
            return Sample(image=blank, labels=ignored, index=index, readable=False)
        changed = self.augmentation.apply(image, self.seed, self.epoch, index)
        return Sample(image=changed, labels=self.targets[index], index=index, readable=True)

    @property
    def epoch(self) -> int:
        """The epoch that augmentation draws for, from 0."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Make augmentation draw for another epoch, in the workers of a running loader too.

        Call it before an epoch's first batch is asked for; workers read ahead.

        Args:
            epoch: Number of the epoch, from 0.
        """
        self._epoch.fill_(epoch)

    def read(self, index: int) -> npt.NDArray[np.float32] | None:
        """One image as it is served, `[size, size]` float32; None if unreadable and skipped.

        Raises:
            UnreadableImageError: It cannot be read, or is no frontal chest radiograph, and the
                recipe does not allow to skip it.
        """
        if index in self._kept:
            kept = self._kept[index]
            return None if kept is None else expand(kept)
        image = self.cache.read(index) if self.cache is not None else None
        if image is None:
            image = self._decoded(self.images[index])
        if self._keep:
            self._kept[index] = None if image is None else compact(image)
        return image

    def _decoded(self, name: str) -> npt.NDArray[np.float32] | None:
        """One image, read from its source."""
        try:
            return read_image(self.store.open(name), self.spec, trusted=True)
        except ImageError as error:
            if not self.skip_unreadable:
                raise unreadable(name, error) from error
            return None

    def preload(self, threads: int, advance: Callable[[int], None] = lambda _: None) -> None:
        """Read every image into memory, so that epochs cost no decoding and bad files show now.

        They are kept in as few bits as hold them exactly (`medqua.train.data.levels`).

        Args:
            threads: Threads that read.
            advance: Called with the number of images read since its last call.
        """
        self._keep = True
        with ThreadPoolExecutor(max(threads, 1)) as pool:
            try:
                for _ in pool.map(self.read, range(len(self))):
                    advance(1)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def unreadable(self) -> list[str]:
        """Names of the images found unreadable among those kept in memory."""
        return [self.images[index] for index, kept in sorted(self._kept.items()) if kept is None]


@dataclass(frozen=True)
class Collator:
    """Samples to one batch of model inputs, with `labels`, `index` and `readable` beside them."""

    processor: ProcessorMixin
    """The backbone's processor."""

    prompt: str
    """Text before the image, the same in every row."""

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Make a batch.

        Returns:
            What `build_inputs` returns, `labels` `[B, L]` float32 of 1, 0 and `IGNORED`,
            `index` `[B]` int64 and `readable` `[B]` bool.
        """
        inputs = build_inputs(self.processor, [sample["image"] for sample in samples], self.prompt)
        labels = np.stack([sample["labels"] for sample in samples]).astype(np.float32)
        return inputs | {
            "labels": torch.from_numpy(labels),
            "index": torch.tensor([sample["index"] for sample in samples]),
            "readable": torch.tensor([sample["readable"] for sample in samples]),
        }


def image_names(rows: pl.DataFrame) -> list[str]:
    """The image column of manifest rows."""
    return [str(name) for name in rows["image"]]
