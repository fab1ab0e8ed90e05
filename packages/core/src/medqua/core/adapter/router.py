"""The entropy router: which tokens go through the quantum bottleneck (section 3.2, Eq. 3-6)."""

import math
from fractions import Fraction
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Int64, Shaped
from torch import Tensor, nn
from torch.nn import functional

from medqua.core.adapter.config import Entropy, Relaxation, Routing, Scope, one_of
from medqua.core.adapter.ranks import best_over_ranks, several
from medqua.core.adapter.tokens import align
from medqua.core.errors import ConfigError, ShapeError


class Routed(NamedTuple):
    """What the router decided about each token. Inactive tokens have gate 0 and are not routed."""

    gate: Float32[Tensor, "batch tokens"]
    """g of Eq. 5 in [0, 1], or the Gumbel-sigmoid in training."""
    mask: Bool[Tensor, "batch tokens"]
    """m: the token goes through the bottleneck."""
    straight_through: Float32[Tensor, "batch tokens"]
    """g_hard: the values of m with the gradient of g."""
    logits: Float32[Tensor, "batch tokens"]
    """l of Eq. 5."""
    active: Bool[Tensor, "batch tokens"]
    """Tokens that may be routed: neither padding nor excluded."""


class EntropyRouter(nn.Module):
    """Token-wise gates and a sparse binary route (Eq. 3-6).

    `s = Linear(H)`, `p = H / (|H|_2 + eps)`, `Ent = -sum_d p_d log(|p_d| + eps)`,
    `l = (s + Ent) / tau_r`, `g = sigmoid(l)`; then `m = 1[g >= theta]` on active tokens.

    Everything is computed in float32 whatever the dtype of `H`, and tokens are ranked on `l`, which
    does not saturate as `g` does; equal logits are ranked by position. For the same reason theta is
    kept and averaged as a logit: `1[g >= theta]` and `1[l >= logit(theta)]` are one route.

    **Training.** Until theta is known the exact `k = floor(lambda* N_active)` best tokens are
    routed. `theta_dyn`, the least of the k best logits, is gathered over the forwards since the
    last optimiser step, and `update_threshold` moves theta (Eq. 6): outside the forward, so that
    recomputing a forward changes nothing. With `across_ranks` the batch that k is counted over is
    that of all ranks: every rank then has to run the same training forwards.

    **Evaluation.** theta is frozen, so a token's route depends on that token alone. Before any
    training step theta is infinite: nothing is routed and all tokens keep the classical path.

    Args:
        hidden_size: D, width of the hidden states.
        target_ratio: lambda*, in [0, 1].
        entropy: Ent(H) as printed (`signed`), `normalised`, or `none`.
        scope: Count k over the `batch` or over each `sample`.
        routing: `ema`, or the ablations `topk` and `random`: the exact k in evaluation too.
        relaxation: `ste`, or `gumbel` gates in training.
        ema_decay: alpha of Eq. 6.
        threshold_range: (theta_min, theta_max) in units of the gate.
        temperature: tau_r at the start.
        gumbel: Temperature at step 0, its floor, and its rate of decay per optimiser step.
        epsilon: Added to norms and inside logarithms (Eq. 4).

    Raises:
        ConfigError: A target outside of [0, 1], or an unknown choice.
    """

    threshold_logit: Tensor
    """logit(theta), float32 scalar; +inf before the first training step."""
    steps: Tensor
    """Optimiser steps so far, int64 scalar."""

    def __init__(
        self,
        hidden_size: int,
        *,
        target_ratio: float = 0.2,
        entropy: str = "signed",
        scope: str = "batch",
        routing: str = "ema",
        relaxation: str = "ste",
        ema_decay: float = 0.9,
        threshold_range: tuple[float, float] = (0.0, 1.0),
        temperature: float = 1.0,
        gumbel: tuple[float, float, float] = (1.0, 0.1, 1e-3),
        epsilon: float = 1e-6,
    ) -> None:
        super().__init__()
        if not 0.0 <= target_ratio <= 1.0:
            raise ConfigError(f"target_ratio = {target_ratio}: needed 0 to 1")
        one_of("entropy", entropy, Entropy)
        one_of("scope", scope, Scope)
        one_of("routing", routing, Routing)
        one_of("relaxation", relaxation, Relaxation)
        self.hidden_size = hidden_size
        self.target_ratio = target_ratio
        self.entropy = entropy
        self.scope = scope
        self.routing = routing
        self.relaxation = relaxation
        self.ema_decay = ema_decay
        self.bounds = (_logit(threshold_range[0]), _logit(threshold_range[1]))
        self.gumbel = gumbel
        self.epsilon = epsilon
        self.across_ranks = False
        self._share = Fraction(target_ratio).limit_denominator(1_000_000)
        self.scorer = nn.Linear(hidden_size, 1)
        self.raw_temperature = nn.Parameter(torch.tensor(math.log(math.expm1(temperature))))
        self.register_buffer("threshold_logit", torch.tensor(math.inf))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._gathered: Tensor | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start from the entropy alone: a scorer of zero, unless there is no entropy to rank by."""
        nn.init.zeros_(self.scorer.bias)
        if self.entropy == "none":
            nn.init.normal_(self.scorer.weight, std=self.hidden_size**-0.5)
        else:
            nn.init.zeros_(self.scorer.weight)

    @property
    def temperature(self) -> Float32[Tensor, ""]:
        """tau_r of Eq. 5: softplus of the learned parameter."""
        return functional.softplus(self.raw_temperature)

    @property
    def threshold(self) -> Float32[Tensor, ""]:
        """Theta in units of the gate; 1 before the first training step (nothing is routed)."""
        return self.threshold_logit.sigmoid()

    def logits(self, hidden_states: Float[Tensor, "batch tokens hidden"]) -> Tensor:
        """L of Eq. 5, float32 `[B, T]`.

        Raises:
            ShapeError: The last dimension of `hidden_states` is not D.
        """
        if hidden_states.shape[-1] != self.hidden_size:
            raise ShapeError(
                f"hidden_states has width {hidden_states.shape[-1]}, the router was built for "
                f"{self.hidden_size}: is this the backbone that the adapter was made for?"
            )
        with torch.autocast(hidden_states.device.type, enabled=False):
            x = hidden_states.float()
            logits: Tensor = (self.scorer(x).squeeze(-1) + self._entropy(x)) / self.temperature
            return logits

    def forward(
        self,
        hidden_states: Float[Tensor, "batch tokens hidden"],
        active: Shaped[Tensor, "rows keys"] | None = None,
    ) -> Routed:
        """Route one batch.

        Args:
            hidden_states: H `[B, T, D]`, any floating dtype.
            active: Which tokens may be routed, `[B, T]`; a mask of another length is aligned from
                the right. None means all.

        Returns:
            Gates, route and logits, `[B, T]` each, on the device of `hidden_states`.

        Raises:
            ShapeError: A width other than D, or a mask of another batch.
        """
        logits = self.logits(hidden_states)
        active = align(active, *logits.shape)
        if active is None:
            active = torch.ones_like(logits, dtype=torch.bool)
        gate = self._relaxed(logits).masked_fill(~active, 0.0)
        mask = self._route(logits.detach(), active)
        straight_through = gate + (mask.float() - gate).detach()
        return Routed(gate, mask, straight_through.masked_fill(~active, 0.0), logits, active)

    def take_statistic(self) -> Float32[Tensor, "2"]:
        """Sums since the last call over training forwards: (N_active theta_dyn, N_active).

        theta_dyn is in logits; a batch with k = 0 counts nothing. Ranks add theirs up.
        """
        gathered, self._gathered = self._gathered, None
        return torch.zeros(2, device=self.steps.device) if gathered is None else gathered

    @torch.no_grad()
    def update_threshold(self, statistic: Float32[Tensor, "2"]) -> None:
        """Move theta by Eq. 6 and count one optimiser step.

        The first statistic becomes theta itself; an empty one leaves theta where it is.

        Args:
            statistic: What `take_statistic` gathered, summed over all ranks.
        """
        total, weight = statistic.unbind()
        dynamic = (total / weight).clamp(*self.bounds)
        moved = self.ema_decay * self.threshold_logit + (1 - self.ema_decay) * dynamic
        moved = torch.where(self.threshold_logit.isinf(), dynamic, moved)
        self.threshold_logit.copy_(torch.where(weight > 0, moved, self.threshold_logit))
        self.steps += 1

    def _entropy(self, x: Float32[Tensor, "batch tokens hidden"]) -> Tensor | float:
        """Ent(H) of Eq. 4, `[B, T]`."""
        if self.entropy == "none":
            return 0.0
        p: Tensor = x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + self.epsilon)
        if self.entropy == "normalised":
            p = p.square()
        weighed: Tensor = p * (p.abs() + self.epsilon).log()
        return -weighed.sum(-1) / (math.log(self.hidden_size) if self.entropy != "signed" else 1.0)

    def _relaxed(self, logits: Float32[Tensor, "batch tokens"]) -> Float32[Tensor, "batch tokens"]:
        """g; in training with `gumbel`, sigmoid((l + difference of two Gumbels) / tau)."""
        if self.relaxation == "ste" or not self.training:
            return logits.sigmoid()
        start, floor, decay = self.gumbel
        annealed = (start * torch.exp(-decay * self.steps)).clamp(min=floor)
        uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
        return ((logits + uniform.logit()) / annealed).sigmoid()

    def _route(
        self, logits: Float32[Tensor, "batch tokens"], active: Bool[Tensor, "batch tokens"]
    ) -> Bool[Tensor, "batch tokens"]:
        if self.routing == "random":
            return self._best(torch.rand_like(logits), active)[0]
        if self.routing == "topk":
            return self._best(logits, active)[0]
        above = (logits >= self.threshold_logit) & active
        if not self.training:
            return above
        exact, statistic = self._best(logits, active)
        self._gathered = statistic if self._gathered is None else self._gathered + statistic
        return torch.where(self.threshold_logit.isinf(), exact, above)

    def _best(
        self, scores: Float32[Tensor, "batch tokens"], active: Bool[Tensor, "batch tokens"]
    ) -> tuple[Bool[Tensor, "batch tokens"], Float32[Tensor, "2"]]:
        """The exact k best active tokens, earlier positions first among equals; no host sync.

        Returns:
            The mask, and (N theta_dyn, N) summed over the groups that k is counted in.
        """
        if self.across_ranks and self.scope == "batch" and self.training and several():
            mask, kth, k = best_over_ranks(
                scores, active, self._share.numerator, self._share.denominator
            )
            weight = torch.where((k > 0) & kth.isfinite(), active.sum(), 0).float()
            return mask, torch.stack([weight * kth.nan_to_num(neginf=0.0), weight])
        group = scores.shape if self.scope == "sample" else (1, scores.numel())
        ranked = scores.masked_fill(~active, -math.inf).nan_to_num(nan=-math.inf).reshape(group)
        n_active: Int64[Tensor, " groups"] = active.reshape(group).sum(-1)
        k = n_active * self._share.numerator // self._share.denominator
        best, order = ranked.sort(dim=-1, descending=True, stable=True)
        places = torch.arange(group[1], device=scores.device).expand(group)
        rank = torch.empty_like(order).scatter_(1, order, places)
        mask = (rank < k.unsqueeze(1)).reshape(scores.shape) & active
        if not scores.numel():
            return mask, scores.new_zeros(2)
        least = best.gather(1, (k - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
        weight = torch.where((k > 0) & least.isfinite(), n_active, 0).float()
        return mask, torch.stack([(weight * least.nan_to_num(neginf=0.0)).sum(), weight.sum()])


def _logit(gate: float) -> float:
    """The logit of a gate in [0, 1]; infinite at its ends."""
    if gate in (0.0, 1.0):
        return math.inf if gate else -math.inf
    return math.log(gate) - math.log1p(-gate)
