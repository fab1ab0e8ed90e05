"""Two gloo processes under DistributedDataParallel, one of which routes no token at all."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

WORKER = Path(__file__).with_name("ddp_worker.py")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, patience: float) -> list[list[dict[str, Any]]]:
    """Results `[rank][run]`; the runs differ in whether DDP broadcasts buffers."""
    folder = tmp_path_factory.mktemp("ranks")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ended = subprocess.run(
        [*launch, str(WORKER), str(folder)],
        capture_output=True,
        text=True,
        timeout=patience,  # a rank that waits for another would run into it
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


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
