import pytest
import torch
from torch import nn

from medqua.core.adapter import QuasarBlock, QuasarConfig, classical_only
from medqua.core.quantum.bottleneck import VariationalBottleneck

D = 16


def trained() -> QuasarBlock:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = QuasarBlock(D, QuasarConfig(n_qubits=3, max_depth=2, rank=4))
        nn.init.normal_(block.shadow.up.weight, std=0.1)
        nn.init.normal_(block.router.scorer.weight)
        with torch.no_grad():
            block.gamma.fill_(0.7)
            block.train()(torch.randn(4, 50, D))
        block.update(block.take_statistics())
    return block.eval()


def test_tokens_that_were_selected_get_what_the_others_get() -> None:
    block, x = trained(), torch.randn(2, 25, D, generator=torch.Generator().manual_seed(1))
    routed = block.router(x)
    assert 0 < routed.mask.sum() < 50
    whole = block(x)
    with classical_only(block):
        classical = block(x)
    assert torch.equal(classical[~routed.mask], whole[~routed.mask])
    assert not torch.isclose(classical[routed.mask], whole[routed.mask]).all()
    weight = (1 - block.config.epsilon) * routed.gate + block.config.epsilon
    by_hand = block.gamma * block.norm((1 - weight).unsqueeze(-1) * block.shadow(x))
    torch.testing.assert_close(classical, by_hand)
    assert torch.equal(block(x), whole)


def test_no_circuit_runs_and_none_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    block = trained()
    seen: list[int] = []
    run = VariationalBottleneck.forward

    def count(self: VariationalBottleneck, angles: torch.Tensor, depth: object) -> torch.Tensor:
        seen.append(len(angles))
        return run(self, angles, depth)

    monkeypatch.setattr(VariationalBottleneck, "forward", count)
    block.counts = None
    with classical_only(block):
        block(torch.randn(2, 25, D))
    assert sum(seen) == 0
    assert block.counts is not None
    assert block.counts.tolist() == [50, 0, 0]


def test_the_path_comes_back_after_an_error() -> None:
    block = trained()
    with pytest.raises(ZeroDivisionError), classical_only(block):
        raise ZeroDivisionError
    assert block.quantum


def test_a_model_without_adapters_is_left_alone() -> None:
    model = nn.Linear(2, 2)
    with classical_only(model):
        assert model(torch.zeros(1, 2)).shape == (1, 2)
