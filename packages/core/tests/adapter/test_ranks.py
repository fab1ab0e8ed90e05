"""Three gloo processes against one sort over all of their tokens."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from medqua.core.adapter.ranks import _keys, _value

WORKER = Path(__file__).with_name("ranks_worker.py")
CASES = ("normal", "ties", "odd", "inactive", "one rank")


@pytest.fixture(scope="module")
def found(ranks_folder: Path) -> list[dict[str, Any]]:
    return [torch.load(ranks_folder / "ranks_worker" / f"{rank}.pt") for rank in range(3)]


@pytest.fixture(scope="module")
def part() -> Any:
    spec = importlib.util.spec_from_file_location("ranks_worker", WORKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.part


@pytest.mark.parametrize("case", CASES)
def test_the_best_of_all_ranks_are_those_of_one_sort(found, part, case: str) -> None:
    parts = [part(case, rank) for rank in range(3)]
    scores = torch.cat([s.reshape(-1) for s, _ in parts]).nan_to_num(
        nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf
    )
    active = torch.cat([a.reshape(-1) for _, a in parts])
    k = int(active.sum()) // 3
    ranked = torch.where(active, scores, -torch.inf)
    # inactive tokens last, also behind active ones of score -inf
    order = sorted(range(len(ranked)), key=lambda i: (-float(ranked[i]), not active[i], i))[:k]
    expected = torch.zeros(len(ranked), dtype=torch.bool)
    expected[order] = True
    mask = torch.cat([f["best"][case][0].reshape(-1) for f in found])
    assert torch.equal(mask, expected)
    for one in found:
        assert one["best"][case][2] == k
        assert one["best"][case][1] == (ranked[order[-1]] if k else -torch.inf)


def test_a_sum_has_the_gradient_that_averaging_over_ranks_needs(found) -> None:
    for one in found:
        assert one["total"].tolist() == [6.0, 6.0]
        assert one["gradient"].tolist() == [36.0, 36.0]  # 3 ranks times 2 * 6


def test_keys_keep_the_order_and_come_back() -> None:
    scores = torch.tensor([-torch.inf, -3e38, -1.5, -1e-45, 0.0, 1e-45, 2.0, torch.inf])
    keys = _keys(scores)
    assert keys.tolist() == sorted(set(keys.tolist()))
    assert keys.min() >= 0
    assert keys.max() < 1 << 32
    assert torch.stack([_value(key) for key in keys]).equal(scores)
    assert _keys(torch.tensor([-0.0])).equal(_keys(torch.tensor([0.0])))
