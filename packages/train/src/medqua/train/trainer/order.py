"""The order of training images: a matter of seed and epoch, whatever the number of processes."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochOrder(Sampler[list[int]]):
    """The micro-batches of one process, epoch by epoch.

    An epoch is a permutation drawn from (seed, epoch), cut into global batches; the last one is
    filled from the epoch's own beginning. So every optimiser step is of exactly `batch_size`
    images, the same ones however many processes share it, and no process waits for another.

    Args:
        n_images: Images of the training split.
        batch_size: Images of one optimiser step, over all processes.
        micro_batch_size: Images of one forward in one process.
        seed: Seed of the run.
        rank: This process.
        world_size: Number of processes.
    """

    def __init__(
        self,
        n_images: int,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.n_images = n_images
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    @property
    def steps(self) -> int:
        """Optimiser steps of an epoch."""
        return -(-self.n_images // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Order the images for an epoch, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.batch_size // (self.micro_batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.n_images)
        filled = np.resize(order, self.steps * self.batch_size)
        shared = filled.reshape(len(self), self.world_size, self.micro_batch_size)
        return iter(shared[:, self.rank].tolist())
