"""From images to studies: one answer an examination, where that is what is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int8

from medqua.core.errors import ShapeError
from medqua.train.data.manifest import IGNORED

StudyPool = Literal["mean", "max"]


@dataclass(frozen=True)
class Studies:
    """A split with a row for each study."""

    logits: Float64[np.ndarray, "m l"]
    """`[M, L]`, pooled over a study's images."""

    targets: Int8[np.ndarray, "m l"]
    """`[M, L]`: 1 where any of its images has it, else 0 where any is known not to, else
    `IGNORED`."""

    first: tuple[int, ...]
    """Position of each study's first image: its patient is the study's."""


def pool_studies(
    logits: Float64[np.ndarray, "n l"],
    targets: Int8[np.ndarray, "n l"],
    studies: Sequence[str],
    pool: StudyPool,
    unreadable: Sequence[int] = (),
) -> Studies:
    """Pool the images of each study.

    Args:
        logits: `[N, L]`.
        targets: `[N, L]` of 1, 0 and `IGNORED`.
        studies: The study of each image, N of them.
        pool: Mean or maximum of logits, label by label.
        unreadable: Images that are left out; a study of none but such keeps one, its labels
            ignored.

    Returns:
        Studies, in the order of their first image.

    Raises:
        ShapeError: There are not as many studies as images.
    """
    if len(studies) != len(logits):
        raise ShapeError(f"{len(studies)} studies for {len(logits)} images: needed one for each")
    members: dict[str, list[int]] = {}
    for position, study in enumerate(studies):
        members.setdefault(study, []).append(position)
    left_out = set(unreadable)
    pooled_logits = np.zeros((len(members), logits.shape[1]))
    pooled_targets = np.full((len(members), logits.shape[1]), IGNORED, np.int8)
    for row, positions in enumerate(members.values()):
        kept = [position for position in positions if position not in left_out]
        if not kept:
            continue
        pooled_logits[row] = logits[kept].mean(0) if pool == "mean" else logits[kept].max(0)
        pooled_targets[row] = targets[kept].max(0)  # 1 over 0 over IGNORED, which is -1
    return Studies(pooled_logits, pooled_targets, tuple(p[0] for p in members.values()))
