"""Two gloo processes under DistributedDataParallel, one of which routes no token at all."""

from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def runs(ranks_folder: Path) -> list[list[dict[str, Any]]]:
    """Results `[rank][run]`; the runs differ in whether DDP broadcasts buffers."""
    return [torch.load(ranks_folder / "ddp_worker" / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("run", [0, 1], ids=["no broadcast", "broadcast"])
def test_a_rank_without_a_routed_token_ends_and_agrees(
    runs: list[list[dict[str, Any]]], run: int
) -> None:
    first, second = runs[0][run], runs[1][run]
    assert second["ratios"] == [0.0, 0.0]
    assert all(ratio > 0 for ratio in first["ratios"])
    assert first["state"].keys() == second["state"].keys()
    for name, value in first["state"].items():  # thresholds among them
        assert torch.equal(value, second["state"][name]), name
    thresholds = [v for k, v in first["state"].items() if k.endswith("threshold_logit")]
    assert all(theta.isfinite() for theta in thresholds)
    # Eq. 6 by hand from both ranks' statistics
    for layer, found in enumerate(thresholds):
        theta = None
        for mine, theirs in zip(first["statistics"], second["statistics"], strict=True):
            total, weight = (mine[layer] + theirs[layer]).tolist()
            dynamic = total / weight
            theta = dynamic if theta is None else 0.9 * theta + 0.1 * dynamic
        assert found.item() == pytest.approx(theta, abs=1e-5)
