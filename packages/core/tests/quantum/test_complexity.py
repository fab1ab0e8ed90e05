import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medqua.core.errors import ConfigError, ShapeError
from medqua.core.quantum.complexity import GAUSSIAN_DEFICIT, DepthPolicy, complexity_signal


def test_signal_equals_scipy():
    x = np.random.default_rng(0).standard_t(5, size=(7, 300)) * 3 + 1
    expected = np.stack(
        (
            x.mean(1),
            x.var(1),
            scipy.stats.entropy(np.abs(x), axis=1),
            scipy.stats.kurtosis(x, axis=1),
        ),
        1,
    )
    np.testing.assert_allclose(complexity_signal(torch.from_numpy(x)), expected, rtol=1e-12)
    single = complexity_signal(torch.from_numpy(x).float())
    np.testing.assert_allclose(single, expected, rtol=2e-5)


@pytest.mark.parametrize(
    ("vector", "expected"),
    [
        ([0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]),
        ([2.0, 2.0, 2.0, 2.0], [2.0, 0.0, math.log(4), 0.0]),
        ([1.0, -1.0, 1.0, -1.0], [0.0, 1.0, math.log(4), -2.0]),
        ([0.0, 0.0, 0.0, -8.0], [-2.0, 12.0, 0.0, 7 / 3 - 3]),
        ([1e30, -1e30, 1e30, -1e30], [0.0, math.inf, math.log(4), -2.0]),
    ],
)
def test_signal_of_vectors_worked_by_hand(vector, expected):
    np.testing.assert_allclose(complexity_signal(torch.tensor(vector)), expected, atol=1e-6)


def test_signal_has_finite_gradients_at_zero_and_at_constants():
    x = torch.tensor([[0.0] * 4, [1.0] * 4, [0.0, 1.0, 0.0, 3.0]], requires_grad=True)
    complexity_signal(x).sum().backward()
    assert x.grad.isfinite().all()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=40), st.floats(0.01, 100))
def test_entropy_and_kurtosis_ignore_scale_and_have_their_bounds(values, factor):
    x = torch.tensor(values, dtype=torch.float64)
    _, variance, entropy, kurtosis = complexity_signal(x)
    scaled = complexity_signal(x * factor)
    torch.testing.assert_close(scaled[2], entropy)
    assert -1e-9 <= entropy <= math.log(len(values)) + 1e-9
    assert variance >= 0
    assert kurtosis >= -2 - 1e-9 or kurtosis == 0


def test_a_gaussian_vector_is_the_origin_of_the_rescaled_signal():
    x = torch.randn(20, 100_000, generator=torch.Generator().manual_seed(0))
    assert DepthPolicy(4).rescaled(x).mean(0).abs().max() < 1e-2
    # log D - H = E|x|log|x| / E|x| - log E|x|, integrated numerically
    density = scipy.stats.halfnorm
    mean = density.mean()
    assert density.expect(lambda v: v * np.log(v)) / mean - np.log(mean) == pytest.approx(
        GAUSSIAN_DEFICIT
    )


def tokens(count=400, seed=0):
    """Hidden states from light to heavy tails."""
    generator = torch.Generator().manual_seed(seed)
    power = torch.rand(count, 1, generator=generator) * 2 + 0.5
    x = torch.randn(count, 64, generator=generator)
    return x.sign() * x.abs() ** power


def test_depths_are_in_range_spread_and_deeper_for_heavier_tails():
    policy = DepthPolicy(4)
    x = tokens()
    policy.fit(x)
    depth, p = policy(x)
    assert depth.dtype == torch.int64
    counts = depth.bincount(minlength=5)
    assert counts.min() > 0
    assert counts.max() < 0.6 * len(x)
    assert 1.5 < depth.double().mean() < 2.5
    kurtosis = complexity_signal(x)[:, 3]
    assert scipy.stats.spearmanr(depth, kurtosis).statistic > 0.8
    assert (p > 0).all()
    assert (p <= 1).all()


def test_probabilities_are_those_of_an_ordinal_distribution():
    """The hard depth is the median: at most half of the mass lies on each side of it."""
    policy = DepthPolicy(3)
    x = tokens(50)
    depth, p = policy(x)
    score = (policy.rescaled(x) * policy.weight).sum(-1)
    cuts = torch.tensor([-torch.inf, -1.0, 0.0, 1.0, torch.inf])
    for s, d, got in zip(score, depth, p, strict=True):
        below, above = torch.sigmoid(cuts[d] - s), torch.sigmoid(s - cuts[d + 1])
        assert below <= 0.5
        assert above <= 0.5
        torch.testing.assert_close(got, 1 - below - above, rtol=1e-4, atol=1e-6)


def test_a_policy_learns_which_tokens_need_depth():
    """Tokens of high variance gain from depth 2, the others from depth 0."""
    torch.manual_seed(0)
    scale = torch.where(torch.arange(200) % 2 == 0, 0.3, 3.0)[:, None]
    x = torch.randn(200, 32) * scale
    wanted = torch.arange(200) % 2 * 2
    policy = DepthPolicy(2)
    optimiser = torch.optim.Adam(policy.parameters(), lr=0.1)
    for _ in range(80):
        depth, p = policy(x)
        cost = (depth - wanted).abs().float()
        loss = (cost * (p + (1 - p).detach())).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert (policy(x)[0] == wanted).float().mean() > 0.95


def test_a_token_is_judged_alone_and_no_token_works():
    policy = DepthPolicy(4)
    x = tokens(6)
    depth, p = policy(x)
    alone = [policy(row[None]) for row in x]
    assert torch.equal(depth, torch.cat([d for d, _ in alone]))
    torch.testing.assert_close(p, torch.cat([q for _, q in alone]))
    depth, p = policy(x[:0])
    assert depth.shape == p.shape == (0,)
    p.sum().backward()
    assert all(parameter.grad is not None for parameter in policy.parameters())


def test_autocast_does_not_move_depths():
    policy = DepthPolicy(4)
    x = tokens(30).bfloat16()
    depth, p = policy(x)
    with torch.autocast("cpu", torch.bfloat16):
        inside = policy(x)
    assert p.dtype == torch.float32
    assert torch.equal(inside[0], depth)
    assert torch.equal(inside[1], p)


def test_fixed_mode_has_no_parameters():
    policy = DepthPolicy(4, "fixed", 3)
    depth, p = policy(tokens(5))
    assert depth.tolist() == [3] * 5
    assert p.tolist() == [1.0] * 5
    assert not list(policy.parameters())
    assert DepthPolicy(4, "fixed")(tokens(1))[0].tolist() == [4]


@pytest.mark.parametrize(
    "options",
    [
        {"max_depth": 0},
        {"max_depth": 2, "mode": "random"},
        {"max_depth": 2, "mode": "fixed", "fixed_depth": 3},
        {"max_depth": 2, "fixed_depth": 1},
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(ConfigError):
        DepthPolicy(**options)


def test_wrong_shape_is_refused():
    with pytest.raises(ShapeError, match=r"needs \[tokens, D\]"):
        DepthPolicy(2)(torch.zeros(2, 3, 4))
