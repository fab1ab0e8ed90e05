"""What the exported graphs are told beside pixels: index tables made from grid sizes, in numpy.

A graph of fixed shapes could hold these as constants; graphs for any image size take them as
inputs. All follow from the number of patches down and across, so that nothing of the torch model
is needed to make them.

Vision tower (one image size a batch; U units of `merge**2` neighbouring patches each):

    window_order  [W, K] int64   unit at each slot of each window; empty slots repeat unit 0
    window_mask   [W, S] bool    the patch at a slot is real, S = K * merge**2
    position_ids  [N, 2] int64   row and column of every patch, in the order of the patches
    unit_slot     [U]    int64   slot of each unit in the windows laid out flat: the way back

Decoder (T tokens: text before the image, visual tokens, text after it):

    source        [B, T] int64   row of (prompt's embeddings, then visual tokens) at each place
    mask          [B, T] bool    the token is no padding
    position_ids  [3, B, T] int64  temporal, row and column position of M-RoPE
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from medqua.core.errors import BundleError
from medqua.core.shapes import Bool, Int64


@dataclass(frozen=True)
class Geometry:
    """Sizes that the index tables depend on, beside the grid."""

    merge: int
    """Patches along each side of the square that becomes one visual token."""
    window: int
    """Visual tokens along each side of an attention window; 0 where every block sees the whole
    image."""
    before: int
    """Tokens of the prompt that stand before the image."""
    after: int
    """Tokens of the prompt that stand after it."""

    def to_dict(self) -> dict[str, int]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Geometry":
        """Build from `to_dict`'s result.

        Raises:
            BundleError: Other keys, or values that are no sizes.
        """
        names = {field.name for field in fields(cls)}
        sound = set(data) == names and all(type(v) is int and v >= 0 for v in data.values())
        if not sound or not data["merge"]:
            raise BundleError(f"geometry is {dict(data)}: needed whole numbers for {sorted(names)}")
        return cls(**data)


@dataclass(frozen=True, eq=False)
class VisionTables:
    """Index inputs of the vision tower."""

    window_order: Int64[np.ndarray, "windows units"]
    """Unit at each slot of each window."""
    window_mask: Bool[np.ndarray, "windows slots"]
    """Whether the patch at a slot is real."""
    position_ids: Int64[np.ndarray, "patches 2"]
    """Row and column of every patch."""
    unit_slot: Int64[np.ndarray, " units_all"]
    """Where each unit went."""

    def feeds(self) -> dict[str, np.ndarray]:
        """Return the tables by the names of the graph's inputs."""
        return dict(vars(self))


@dataclass(frozen=True, eq=False)
class DecoderTables:
    """Index inputs of the decoder."""

    source: Int64[np.ndarray, "batch tokens"]
    """Row of (prompt's embeddings, visual tokens) at each place."""
    mask: Bool[np.ndarray, "batch tokens"]
    """Whether the token is no padding."""
    position_ids: Int64[np.ndarray, "3 batch tokens"]
    """Positions of M-RoPE."""

    def feeds(self) -> dict[str, np.ndarray]:
        """Return the tables by the names of the graph's inputs."""
        return dict(vars(self))


def vision_tables(rows: int, columns: int, geometry: Geometry) -> VisionTables:
    """Return the index inputs of the vision tower for one grid.

    Args:
        rows: Patches down; a multiple of `geometry.merge`.
        columns: Patches across; likewise.
        geometry: The model's sizes.
    """
    merge = geometry.merge
    down, across = rows // merge, columns // merge
    units = np.arange(down * across, dtype=np.int64).reshape(down, across)
    side = geometry.window or max(down, across)
    windows = [
        units[i : i + side, j : j + side].ravel()
        for i in range(0, down, side)
        for j in range(0, across, side)
    ]
    longest = max(map(len, windows))
    order = np.zeros((len(windows), longest), np.int64)
    real = np.zeros((len(windows), longest), np.bool_)
    for k, window in enumerate(windows):
        order[k, : len(window)] = window
        real[k, : len(window)] = True
    unit_slot = np.empty(units.size, np.int64)
    unit_slot[order[real]] = np.flatnonzero(real)
    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1)
    blocks = grid.reshape(down, merge, across, merge, 2).transpose(0, 2, 1, 3, 4)
    return VisionTables(
        order, real.repeat(merge**2, axis=1), blocks.reshape(-1, 2).astype(np.int64), unit_slot
    )


def decoder_tables(batch: int, rows: int, columns: int, geometry: Geometry) -> DecoderTables:
    """Return the index inputs of the decoder for a batch of one grid.

    Text counts on by one; the visual tokens of an image share a temporal position and have their
    row and column beside it; text after the image goes on behind the longer side.

    Args:
        batch: Images.
        rows: Patches down.
        columns: Patches across.
        geometry: The model's sizes.
    """
    before, after = geometry.before, geometry.after
    down, across = rows // geometry.merge, columns // geometry.merge
    visual = np.stack(
        [
            np.full(down * across, before),
            before + np.repeat(np.arange(down), across),
            before + np.tile(np.arange(across), down),
        ]
    )
    rest = before + max(down, across) + np.arange(after)
    positions = np.concatenate(
        [np.tile(np.arange(before), (3, 1)), visual, np.tile(rest, (3, 1))], 1
    )
    text = before + after
    source = np.concatenate(
        [np.arange(before), text + np.arange(down * across), np.arange(before, text)]
    )
    tokens = len(source)
    return DecoderTables(
        np.broadcast_to(source.astype(np.int64), (batch, tokens)).copy(),
        np.ones((batch, tokens), np.bool_),
        np.broadcast_to(positions.astype(np.int64)[:, None], (3, batch, tokens)).copy(),
    )
