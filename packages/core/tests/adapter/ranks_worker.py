"""What each rank of `test_ranks` runs: started by `ranks.py`."""

from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from medqua.core.adapter.ranks import best_over_ranks, sum_over_ranks

CASES = ("normal", "ties", "odd", "inactive", "one rank")


def part(case: str, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and active tokens of a rank; as many tokens as the rank's number says."""
    generator = torch.Generator().manual_seed(rank)
    scores = torch.randn(2, 5 + 3 * rank, generator=generator)
    active = torch.rand(scores.shape, generator=generator) < 0.8
    if case == "ties":
        scores = scores.round()
    elif case == "odd":
        odd = torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf")])
        scores[:, :5] = odd
    elif case == "inactive" or (case == "one rank" and rank != 1):
        active[:] = False
    return scores, active


def run(rank: int, folder: Path) -> None:
    """Be a rank, and leave what it found."""
    torch.set_num_threads(1)
    store, patience = f"file://{folder / 'store'}", timedelta(seconds=900)
    dist.init_process_group("gloo", store, patience, world_size=3, rank=rank)
    found = {c: best_over_ranks(*part(c, rank), 1, 3) for c in CASES}
    own = torch.full((2,), float(rank + 1), requires_grad=True)
    total = sum_over_ranks(own)
    total.square().sum().backward()
    torch.save(
        {"best": found, "total": total.detach(), "gradient": own.grad},
        folder / f"{rank}.pt",
    )
    dist.destroy_process_group()
