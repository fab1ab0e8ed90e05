import pytest
import torch

from medqua.core.adapter.shadow import ClassicalShadow
from medqua.core.errors import ConfigError


def test_equation_7() -> None:
    torch.manual_seed(0)
    shadow = ClassicalShadow(6, rank=2, alpha=5.0)
    torch.nn.init.normal_(shadow.up.weight)
    h = torch.randn(3, 4, 6)
    expected = torch.einsum("dr,rk,btk->btd", shadow.up.weight, shadow.down.weight, h) * 5.0 / 2
    torch.testing.assert_close(shadow(h), expected)
    assert shadow.up.bias is None
    assert shadow.down.bias is None


def test_starts_at_zero_and_learns() -> None:
    shadow = ClassicalShadow(6, rank=2)
    h = torch.randn(2, 3, 6)
    assert torch.count_nonzero(shadow(h)) == 0
    shadow(h).sum().backward()
    assert shadow.up.weight.grad is not None
    assert shadow.up.weight.grad.abs().sum() > 0


def test_dropout_only_in_training() -> None:
    shadow = ClassicalShadow(64, rank=2, dropout=0.5)
    torch.nn.init.ones_(shadow.up.weight)
    h = torch.randn(2, 50, 64)
    assert 0.4 < (shadow.train()(h) == 0).float().mean() < 0.6
    assert (shadow.eval()(h) == 0).sum() == 0


def test_refuses_rank_zero() -> None:
    with pytest.raises(ConfigError, match="rank = 0"):
        ClassicalShadow(6, rank=0)
