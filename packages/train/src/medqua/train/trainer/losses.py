"""The task loss: cross-entropy of each label that is known, plain, weighted or focal."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
import torch
from jaxtyping import Float, Float32, Int8
from torch import Tensor
from torch.nn import functional

from medqua.core.errors import ConfigError
from medqua.train.data.manifest import IGNORED
from medqua.train.sections import OptimSection

MOST = 20.0
"""Largest weight that `optim.balance` gives the positives of a label."""


@dataclass(frozen=True)
class TaskLoss:
    """Mean over the known labels of a batch of `w_l a_l (1 - p_t)^gamma (-log p_t)`.

    `p_t` is the probability given to the truth; `gamma` 0 is binary cross-entropy, more is the
    focal loss (Lin et al., ICCV 2017, Eq. 4), which lets easy labels weigh less.
    """

    gamma: float = 0.0
    """Exponent of the focal loss, at least 0."""

    positive_weight: Float32[Tensor, " labels"] | None = None
    """`a_l` of positives, `[L]`; that of negatives is 1."""

    label_weight: Float32[Tensor, " labels"] | None = None
    """`w_l`, `[L]`."""

    @classmethod
    def of(
        cls, optim: OptimSection, labels: Sequence[str], targets: Int8[np.ndarray, "n l"]
    ) -> "TaskLoss":
        """The loss of a recipe.

        Args:
            optim: Its section.
            labels: L names, in the order of logits.
            targets: `[N, L]` of the training split, for `optim.balance`.

        Raises:
            ConfigError: `optim.label_weights` names a label that is not there.
        """
        for name in optim.label_weights:
            if name not in labels:
                near = get_close_matches(name, labels, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(labels)}"
                raise ConfigError(
                    f"optim.label_weights names {name!r}, which the data set has not: {hint}"
                )
        weights = torch.tensor([optim.label_weights.get(name, 1.0) for name in labels])
        return cls(
            optim.gamma if optim.loss == "focal" else 0.0,
            balancing_weight(targets) if optim.balance else None,
            weights if optim.label_weights else None,
        )

    def __call__(
        self,
        logits: Float[Tensor, "batch labels"],
        targets: Float32[Tensor, "batch labels"],
        known: Tensor | float | None = None,
    ) -> Float32[Tensor, ""]:
        """The loss of a batch, or of a part of one.

        Args:
            logits: `[B, L]`.
            targets: `[B, L]` of 1, 0 and `IGNORED`.
            known: What the sum is divided by, where these rows are a part of a batch: known labels
                of all of it. Those of these rows if None.

        Returns:
            A scalar in nats; 0 with a graph when every label is ignored.
        """
        counts = targets != IGNORED
        truth, positive = targets.clamp(min=0), self.positive_weight
        loss = functional.binary_cross_entropy_with_logits(
            logits.float(),
            truth,
            pos_weight=None if positive is None else positive.to(logits.device),
            reduction="none",
        )
        if self.gamma:
            wrong = torch.sigmoid(logits.float() * (1 - 2 * truth))  # 1 - p_t
            loss = loss * wrong**self.gamma
        if self.label_weight is not None:
            loss = loss * self.label_weight.to(logits.device)
        return (loss * counts).sum() / (counts.sum().clamp(min=1) if known is None else known)


def balancing_weight(targets: Int8[np.ndarray, "n l"]) -> Float32[Tensor, " labels"]:
    """Negatives over positives of each label, `[L]`, within 1 and `MOST`."""
    found = torch.from_numpy(targets)
    positives, negatives = (found == 1).sum(0), (found == 0).sum(0)
    return (negatives / positives.clamp(min=1)).clamp(1.0, MOST).float()
