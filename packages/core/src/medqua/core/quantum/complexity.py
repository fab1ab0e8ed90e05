"""How deep a circuit a token gets: the complexity signal of Eq. 2 and the policy that reads it."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from medqua.core.errors import ConfigError, ShapeError


def complexity_signal(x: Float[Tensor, "*tokens features"]) -> Float[Tensor, "*tokens 4"]:
    r"""Return s(x) = [mean, variance, entropy, kurtosis] of each token (Eq. 2).

    Variance is the population's; entropy is in nats on `p_j = |x_j| / sum_k |x_k|`; kurtosis is
    the excess over a Gaussian's. A zero vector has entropy 0, a constant one kurtosis 0. Entropy
    and kurtosis do not depend on the scale of `x`.

    Args:
        x: Hidden states, `[..., D]`, any float dtype; worked on in float32, or float64 if given.

    Returns:
        `[..., 4]` in float32, or float64 if `x` is.
    """
    x = x if x.dtype == torch.float64 else x.float()
    tiny = torch.finfo(x.dtype).tiny
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).square().mean(-1)
    largest = x.detach().abs().amax(-1, keepdim=True)
    unit = x / torch.where(largest > 0, largest, 1.0)  # no overflow in x ** 4
    total = unit.abs().sum(-1, keepdim=True)
    p = unit.abs() / torch.where(total > 0, total, 1.0)
    entropy = -(p * p.clamp_min(tiny).log()).sum(-1)
    centred = unit - unit.mean(-1, keepdim=True)
    second = centred.square().mean(-1)
    spread = second > 1e-10  # of a vector whose largest entry is 1: below is rounding
    ratio = centred.pow(4).mean(-1) / torch.where(spread, second, 1.0).square()
    return torch.stack((mean[..., 0], variance, entropy, torch.where(spread, ratio - 3.0, 0.0)), -1)


class DepthPolicy(nn.Module):
    """Chooses each token's depth in 0..max_depth from its complexity signal (Eq. 2).

    The four numbers are brought to one scale (signed logarithms of mean, variance and kurtosis;
    entropy relative to that of a Gaussian vector of the same length, for which all four are near
    0), standardised by `shift` and `scale`, and weighed into one score. An ordinal head puts the
    score on the scale of depths by cumulative logits, `P(depth >= k) = sigmoid(score - cut_k)`
    with increasing cuts; the depth is the median of that distribution. As printed, heavier tails
    and higher entropy start with positive weights; unequal ones, since the two oppose each other.

    A token's depth depends on that token alone, in training and in evaluation.

    Args:
        max_depth: Largest depth, at least 1.
        mode: `adaptive` as above; `fixed` gives every token `fixed_depth`, has no parameters.
        fixed_depth: Depth of the mode `fixed`; `max_depth` by default.

    Raises:
        ConfigError: `max_depth` below 1, an unknown mode, or a `fixed_depth` that is out of range
            or given beside `adaptive`.
    """

    shift: Tensor
    """`[4]`, centre of the rescaled signal; 0 until `fit`."""

    scale: Tensor
    """`[4]`, spread of the rescaled signal; 1 until `fit`."""

    def __init__(
        self,
        max_depth: int,
        mode: str = "adaptive",
        fixed_depth: int | None = None,
    ) -> None:
        super().__init__()
        if max_depth < 1:
            raise ConfigError(f"max_depth is {max_depth}: it must be at least 1")
        if mode not in ("adaptive", "fixed"):
            raise ConfigError(f"depth mode is {mode!r}: choose 'adaptive' or 'fixed'")
        if fixed_depth is not None and mode != "fixed":
            raise ConfigError(f"fixed_depth is {fixed_depth} but the depth mode is {mode!r}")
        if fixed_depth is not None and not 0 <= fixed_depth <= max_depth:
            raise ConfigError(f"fixed_depth is {fixed_depth}: it must be in 0..{max_depth}")
        self.max_depth = max_depth
        self.mode = mode
        self.fixed_depth = max_depth if fixed_depth is None else fixed_depth
        if mode == "adaptive":
            self.weight = nn.Parameter(torch.tensor((0.0, 0.0, 0.5, 1.5)))
            self.first_cut = nn.Parameter(torch.tensor(-0.5 * (max_depth - 1)))
            self.steps = nn.Parameter(torch.full((max_depth - 1,), math.log(math.expm1(1.0))))
            self.register_buffer("shift", torch.zeros(4))
            self.register_buffer("scale", torch.ones(4))

    def forward(self, hidden: Tensor) -> tuple[Int[Tensor, " tokens"], Float[Tensor, " tokens"]]:
        """Return each token's depth and the probability that it had, with its gradient.

        Use the probability straight through, `z * (p + (1 - p).detach())`: the value is z, and
        the gradient of what the depth did to the loss reaches the policy.

        Args:
            hidden: Hidden states of the routed tokens, `[tokens, D]`, D at least 2.

        Returns:
            Depth, int64 `[tokens]`, in 0..max_depth; probability, `[tokens]`, in float32 or, if
            `hidden` is, float64.

        Raises:
            ShapeError: `hidden` is not a matrix of at least two features.
        """
        if hidden.ndim != 2 or hidden.shape[1] < 2:
            raise ShapeError(
                f"hidden is of shape {list(hidden.shape)}: the depth policy needs [tokens, D]"
            )
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        if self.mode == "fixed":
            depth = torch.full_like(hidden[:, 0], self.fixed_depth, dtype=torch.int64)
            return depth, torch.ones_like(hidden[:, 0], dtype=dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            signal = (self.rescaled(hidden) - self.shift.to(dtype)) / self.scale.to(dtype)
            score = (signal * self.weight.to(dtype)).sum(-1, keepdim=True)
            steps = functional.softplus(self.steps.to(dtype)).cumsum(0)
            cuts = self.first_cut.to(dtype) + functional.pad(steps, (1, 0))
            above = torch.sigmoid(score - cuts)  # [tokens, max_depth]: P(depth >= k), k = 1..
            depth = (above > 0.5).sum(-1)
            bounds = functional.pad(functional.pad(above, (1, 0), value=1.0), (0, 1))
            chosen = bounds.gather(1, depth[:, None]) - bounds.gather(1, depth[:, None] + 1)
        return depth, chosen[:, 0]

    def rescaled(self, hidden: Float[Tensor, "tokens features"]) -> Float[Tensor, "tokens 4"]:
        """Return the complexity signal on one scale: a standard Gaussian vector is near 0."""
        mean, variance, entropy, kurtosis = complexity_signal(hidden).unbind(-1)
        excess = entropy - math.log(hidden.shape[-1]) + GAUSSIAN_DEFICIT
        return torch.stack((mean.asinh(), (variance + 1e-6).log(), excess, kurtosis.asinh()), -1)

    @torch.no_grad()
    def fit(self, hidden: Float[Tensor, "tokens features"]) -> None:
        """Set `shift` and `scale` from sample tokens, so that depths spread over those.

        Call it once before training, outside `forward`, with the same tokens on every rank.

        Args:
            hidden: Hidden states, `[tokens, D]`, at least two tokens.
        """
        if self.mode == "adaptive":
            scale, shift = torch.std_mean(self.rescaled(hidden), 0)
            self.shift.copy_(shift)
            self.scale.copy_(scale.clamp_min(1e-3))

    def extra_repr(self) -> str:
        """Show the mode."""
        fixed = f", fixed_depth={self.fixed_depth}" if self.mode == "fixed" else ""
        return f"max_depth={self.max_depth}, mode={self.mode!r}{fixed}"


GAUSSIAN_DEFICIT = 0.5 * (math.log(math.pi) - 0.5772156649015329)
"""`log D - H` of a long Gaussian vector (nats): `E|x| log|x| / E|x| - log E|x|`."""
