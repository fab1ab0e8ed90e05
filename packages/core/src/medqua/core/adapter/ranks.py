"""One batch that lies on several ranks: its best tokens and its sums, without gathering tokens.

The k best of all ranks are found by radix selection: float32 scores are read as 32-bit keys of the
same order, and four all-reduced histograms of 256 bins give the k-th key byte by byte. What is
sent does not grow with tokens or ranks, nothing waits for the host, and the result is exact.
"""

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

SIGN = 0x80000000
"""The sign bit of a float32, and the key of 0.0."""


def several() -> bool:
    """Whether the default process group has more than one rank."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_ranks(local: Float32[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    """Sum over ranks, with W times the gradient of this rank's part, W ranks in all.

    DDP and FSDP average gradients over ranks: of W times its own part, that is the gradient of the
    sum.
    """
    if not several():
        return local
    total = local.detach().clone()
    dist.all_reduce(total)
    scaled = local * dist.get_world_size()
    return scaled + (total - scaled).detach()


@torch.no_grad()
def best_over_ranks(
    scores: Float32[Tensor, "batch tokens"],
    active: Bool[Tensor, "batch tokens"],
    numerator: int,
    denominator: int,
) -> tuple[Bool[Tensor, "batch tokens"], Float32[Tensor, ""], Int64[Tensor, ""]]:
    """The exact `k = floor(N numerator / denominator)` best active tokens of all ranks.

    Every rank must call it, with as many tokens as it has. Among equal scores the lower rank comes
    first, then the earlier position; NaN comes last.

    Args:
        scores: This rank's part of the batch.
        active: Which of its tokens count.
        numerator: Of the share that is taken.
        denominator: Of the share that is taken.

    Returns:
        The mask of this rank's tokens, the least score taken (-inf if none is), and k. The last two
        are equal on all ranks.
    """
    taking = active.reshape(-1)
    n_active = taking.sum()
    dist.all_reduce(n_active)
    k = n_active * numerator // denominator
    keys = _keys(scores.reshape(-1))
    prefix, missing = torch.zeros_like(k), k.clone()
    among = taking
    for shift in (24, 16, 8, 0):
        digits = (keys >> shift) & 255
        counts = torch.zeros(256, dtype=torch.int64, device=keys.device)
        counts.scatter_add_(0, digits, among.long())
        dist.all_reduce(counts)
        at_least = counts.flip(0).cumsum(0).flip(0)  # tokens with this byte or a greater one
        chosen = ((at_least >= missing).sum() - 1).clamp(min=0)
        missing = missing - (at_least[chosen] - counts[chosen])
        prefix = prefix * 256 + chosen
        among = among & (digits == chosen)
    before = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=keys.device)
    before[dist.get_rank() + 1 :] = among.sum()
    dist.all_reduce(before)  # equal scores on lower ranks
    place = among.long().cumsum(0) + before[dist.get_rank()]
    mask = taking & ((keys > prefix) | (among & (place <= missing))) & (k > 0)
    least = torch.where(k > 0, _value(prefix), -torch.inf)
    return mask.reshape(scores.shape), least, k


def _keys(scores: Float32[Tensor, " tokens"]) -> Int64[Tensor, " tokens"]:
    """Integers in 0..2^32-1 of the same order; -0.0 counts as 0.0, NaN as -inf."""
    plain = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf) + 0.0
    bits = plain.view(torch.int32).long() & 0xFFFFFFFF
    return torch.where(bits >= SIGN, 0xFFFFFFFF - bits, bits + SIGN)


def _value(key: Int64[Tensor, ""]) -> Float32[Tensor, ""]:
    """The score of a key."""
    bits = torch.where(key >= SIGN, key - SIGN, 0xFFFFFFFF - key)
    signed = torch.where(bits >= SIGN, bits - (1 << 32), bits)
    return signed.to(torch.int32).view(torch.float32)
