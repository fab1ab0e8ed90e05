import math
from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medqua.core.adapter.config import QuasarConfig
from medqua.core.adapter.objective import gate_entropy, proportion
from medqua.core.adapter.router import EntropyRouter
from medqua.core.errors import ConfigError, ShapeError

D = 16


def hidden(batch: int, tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, tokens, D, generator=torch.Generator().manual_seed(seed))


def scored(router: EntropyRouter, seed: int = 1) -> EntropyRouter:
    """A router whose scorer has learned something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        router.scorer.weight.copy_(torch.randn(1, D, generator=generator))
        router.scorer.bias.fill_(0.3)
    return router


def trained(router: EntropyRouter) -> EntropyRouter:
    """A router whose threshold is known, in evaluation."""
    scored(router).train()
    router(hidden(4, 50, seed=9))
    router.update_threshold(router.take_statistic())
    return router.eval()


def test_logits_are_equations_3_to_5() -> None:
    router = scored(EntropyRouter(D, temperature=0.7, epsilon=1e-6))
    x = hidden(2, 5)
    h = x.double().numpy()
    p = h / (np.sqrt((h**2).sum(-1, keepdims=True)) + 1e-6)
    entropy = -(p * np.log(np.abs(p) + 1e-6)).sum(-1)
    s = h @ router.scorer.weight.detach().double().numpy()[0] + 0.3
    expected = (s + entropy) / 0.7
    routed = router(x)
    np.testing.assert_allclose(routed.logits.detach().numpy(), expected, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(
        routed.gate.detach().numpy(), 1 / (1 + np.exp(-expected)), rtol=1e-6, atol=1e-7
    )


def test_signed_entropy_is_odd_and_normalised_is_not() -> None:
    x = hidden(1, 8)
    signed = EntropyRouter(D)
    torch.testing.assert_close(signed.logits(x), -signed.logits(-x))
    normalised = EntropyRouter(D, entropy="normalised")
    torch.testing.assert_close(normalised.logits(x), normalised.logits(-x))
    # a uniform vector has the entropy log D, and is divided by it
    assert normalised.logits(torch.ones(1, 1, D)).item() == pytest.approx(1.0, abs=1e-4)
    # one nonzero coordinate: p = 1, entropy 0
    assert normalised.logits(torch.eye(D)[:1, None]).item() == pytest.approx(0.0, abs=1e-5)


def test_zero_vector_has_finite_gradients() -> None:
    x = torch.zeros(1, 3, D, requires_grad=True)
    for entropy in ("signed", "normalised", "none"):
        routed = EntropyRouter(D, entropy=entropy).train()(x)
        (gradient,) = torch.autograd.grad(routed.gate.sum() + routed.straight_through.sum(), x)
        assert torch.isfinite(gradient).all()


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 4),
    tokens=st.integers(1, 23),
    percent=st.integers(0, 100),
    scope=st.sampled_from(["batch", "sample"]),
    data=st.data(),
)
def test_first_training_batch_routes_exactly_k(
    batch: int, tokens: int, percent: int, scope: str, data: st.DataObject
) -> None:
    rows = data.draw(
        st.lists(
            st.lists(st.booleans(), min_size=tokens, max_size=tokens),
            min_size=batch,
            max_size=batch,
        )
    )
    active = torch.tensor(rows)
    router = scored(EntropyRouter(D, target_ratio=percent / 100, scope=scope)).train()
    routed = router(hidden(batch, tokens), active)
    groups = active.sum(1).tolist() if scope == "sample" else [int(active.sum())]
    expected = [int(Decimal(percent) * n / 100) for n in groups]  # floor(lambda* N) in decimals
    found = routed.mask.sum(1).tolist() if scope == "sample" else [int(routed.mask.sum())]
    assert found == expected
    assert not (routed.mask & ~active).any()
    assert (routed.gate[~active] == 0).all()
    assert (routed.straight_through[~active] == 0).all()
    if scope == "batch" and 0 < routed.mask.sum() < active.sum():
        best = routed.logits[routed.mask].min()
        assert best >= routed.logits[active & ~routed.mask].max()


def test_ties_go_to_earlier_positions() -> None:
    router = EntropyRouter(D, target_ratio=0.5).train()
    routed = router(torch.ones(1, 9, D))  # nine equal logits, k = 4
    assert routed.mask.tolist() == [[True] * 4 + [False] * 5]
    half = router(torch.ones(1, 9, D, dtype=torch.bfloat16))
    assert half.mask.sum() == 4  # bfloat16 input: still k, not all


def test_many_equal_bfloat16_states_do_not_all_route() -> None:
    x = hidden(4, 64).bfloat16()
    routed = EntropyRouter(D, target_ratio=0.2).train()(x)
    assert routed.mask.sum() == 51
    assert routed.logits.dtype == torch.float32


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), tokens=st.integers(2, 30))
def test_permuting_tokens_permutes_routes_in_evaluation(seed: int, tokens: int) -> None:
    router = trained(EntropyRouter(D))
    x = hidden(1, tokens, seed)
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))
    straight, permuted = router(x), router(x[:, order])
    assert torch.equal(straight.mask[:, order], permuted.mask)
    torch.testing.assert_close(straight.gate[:, order], permuted.gate)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), left=st.integers(0, 5), right=st.integers(0, 5))
def test_padding_and_batching_cannot_change_a_token(seed: int, left: int, right: int) -> None:
    router = trained(EntropyRouter(D))
    x = hidden(1, 7, seed)
    alone = router(x)
    padded = torch.cat([hidden(1, left, 77), x, hidden(1, right, 78)], dim=1)
    batch = torch.cat([padded, hidden(2, left + 7 + right, 79)])
    active = torch.ones(batch.shape[:2], dtype=torch.bool)
    active[0, :left] = False
    active[0, left + 7 :] = False
    routed = router(batch, active)
    assert torch.equal(routed.mask[0, left : left + 7], alone.mask[0])
    torch.testing.assert_close(routed.gate[0, left : left + 7], alone.gate[0])


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_left_and_right_padding_route_the_same_tokens_in_training(scope: str) -> None:
    lengths = [5, 8, 3]
    x = [hidden(1, n, seed=n)[0] for n in lengths]
    left, right = torch.zeros(3, 8, D), torch.zeros(3, 8, D)
    left_active, right_active = torch.zeros(3, 8).bool(), torch.zeros(3, 8).bool()
    for row, tokens in enumerate(x):
        n = len(tokens)
        left[row, 8 - n :], right[row, :n] = tokens, tokens
        left_active[row, 8 - n :], right_active[row, :n] = True, True
    router = scored(EntropyRouter(D, target_ratio=0.4, scope=scope)).train()
    a, b = router(left, left_active), router(right, right_active)
    for row, n in enumerate(lengths):
        assert torch.equal(a.mask[row, 8 - n :], b.mask[row, :n])


def test_equation_6() -> None:
    router = scored(EntropyRouter(D, target_ratio=0.2, ema_decay=0.9)).train()
    first, second = hidden(2, 20, seed=1), hidden(2, 30, seed=2)
    logits = router(first).logits.flatten().sort(descending=True).values
    dynamic = [logits[7].item()]  # k = floor(0.2 * 40) = 8, the least of the selected
    router.update_threshold(router.take_statistic())
    assert router.threshold_logit.item() == pytest.approx(dynamic[0], abs=1e-6)
    logits = router(second).logits.flatten().sort(descending=True).values
    dynamic.append(logits[11].item())
    router.update_threshold(router.take_statistic())
    expected = 0.9 * dynamic[0] + 0.1 * dynamic[1]
    assert router.threshold_logit.item() == pytest.approx(expected, abs=1e-6)
    assert router.threshold.item() == pytest.approx(1 / (1 + math.exp(-expected)), abs=1e-6)
    assert router.steps == 2


def test_threshold_moves_once_for_several_micro_batches() -> None:
    whole = scored(EntropyRouter(D)).train()
    parts = [hidden(2, 20, seed=s) for s in (1, 2, 3)]
    dynamics = []
    for part in parts:
        logits = whole(part).logits.flatten().sort(descending=True).values
        dynamics.append(logits[7].item())
    assert whole.threshold_logit.isinf()  # the forward moved nothing
    whole.update_threshold(whole.take_statistic())
    assert whole.threshold_logit.item() == pytest.approx(sum(dynamics) / 3, abs=1e-6)
    whole.update_threshold(whole.take_statistic())  # no forward since
    assert whole.threshold_logit.item() == pytest.approx(sum(dynamics) / 3, abs=1e-6)


def test_threshold_is_clipped_in_units_of_the_gate() -> None:
    router = EntropyRouter(D, threshold_range=(0.4, 0.5)).train()
    router(hidden(4, 50))  # the 20 % best lie above a gate of 0.5
    router.update_threshold(router.take_statistic())
    assert router.threshold.item() == pytest.approx(0.5, abs=1e-6)


def test_non_finite_states_do_not_poison_the_threshold() -> None:
    router = EntropyRouter(D).train()
    router(hidden(1, 10))
    router.update_threshold(router.take_statistic())
    before = router.threshold_logit.clone()
    routed = router(torch.full((1, 10, D), math.nan))
    assert not routed.mask.any()
    router.update_threshold(router.take_statistic())
    assert torch.equal(router.threshold_logit, before)


def test_evaluation_before_training_routes_nothing() -> None:
    routed = EntropyRouter(D).eval()(hidden(2, 10))
    assert not routed.mask.any()
    assert (routed.gate > 0).all()  # the soft gate is defined all the same


def test_evaluation_freezes_the_threshold() -> None:
    router = trained(EntropyRouter(D))
    before = router.threshold_logit.clone()
    router(hidden(4, 100, seed=3))
    assert torch.equal(router.take_statistic(), torch.zeros(2))
    assert torch.equal(router.threshold_logit, before)


@pytest.mark.parametrize(("ratio", "routed"), [(0.0, 0), (1.0, 40)])
def test_ratio_ends(ratio: float, routed: int) -> None:
    router = EntropyRouter(D, target_ratio=ratio).train()
    x = hidden(2, 20)
    for _ in range(3):
        assert router(x).mask.sum() == routed
        router.update_threshold(router.take_statistic())
    assert router.eval()(x).mask.sum() == routed


@pytest.mark.parametrize("routing", ["topk", "random"])
@pytest.mark.parametrize("training", [True, False])
def test_ablations_route_exactly_k_without_a_threshold(routing: str, training: bool) -> None:
    router = EntropyRouter(D, routing=routing).train(training)
    assert router(hidden(3, 25)).mask.sum() == 15
    assert torch.equal(router.take_statistic(), torch.zeros(2))


def test_random_routing_ignores_the_logits() -> None:
    router = EntropyRouter(D, routing="random").eval()
    x = hidden(1, 200)
    torch.manual_seed(0)
    routes = torch.stack([router(x).mask[0] for _ in range(200)]).float().mean(0)
    # each token is routed with probability 0.2: five standard deviations of 200 draws
    assert (routes - 0.2).abs().max() < 5 * math.sqrt(0.2 * 0.8 / 200)


def test_straight_through_has_the_value_of_the_mask_and_the_gradient_of_the_gate() -> None:
    router = scored(EntropyRouter(D)).train()
    x = hidden(2, 20).requires_grad_()
    routed = router(x)
    torch.testing.assert_close(routed.straight_through, routed.mask.float())
    (hard,) = torch.autograd.grad(routed.straight_through.sum(), x, retain_graph=True)
    (soft,) = torch.autograd.grad(routed.gate.sum(), x)
    assert torch.equal(hard, soft)
    assert soft.abs().sum() > 0


def test_gumbel_gates_anneal_and_leave_the_route_alone() -> None:
    router = scored(EntropyRouter(D, relaxation="gumbel", gumbel=(1.0, 0.05, 0.1))).train()
    plain = scored(EntropyRouter(D)).train()
    x = hidden(4, 500)
    torch.manual_seed(0)
    routed = router(x)
    assert torch.equal(routed.mask, plain(x).mask)
    # P(gate > 1/2) = sigmoid(l): the difference of two Gumbels is logistic
    assert (routed.gate > 0.5).float().mean().item() == pytest.approx(
        routed.logits.sigmoid().mean().item(), abs=0.03
    )
    decided = (routed.gate - 0.5).abs().mean()
    for _ in range(40):
        router.update_threshold(router.take_statistic())
    assert (router(x).gate - 0.5).abs().mean() > decided + 0.05
    assert torch.equal(router.eval()(x).gate, plain.eval()(x).gate)


def test_gumbel_temperature_follows_the_exponential_to_its_floor() -> None:
    router = EntropyRouter(D, relaxation="gumbel", gumbel=(2.0, 0.5, 0.1)).train()
    x = torch.zeros(1, 1, D)  # logit 0: the gate is sigmoid(noise / tau)
    for step, tau in ((0, 2.0), (10, 2.0 * math.exp(-1.0)), (50, 0.5)):
        router.steps.fill_(step)
        torch.manual_seed(3)
        noise = torch.rand(1, 1).logit().item()
        torch.manual_seed(3)
        assert router(x).gate.item() == pytest.approx(1 / (1 + math.exp(-noise / tau)), abs=1e-5)


def test_proportion_and_its_gradient() -> None:
    router = scored(EntropyRouter(D)).train()
    active = torch.ones(2, 20).bool()
    active[1, 10:] = False
    routed = router(hidden(2, 20), active)
    assert proportion(routed).item() == pytest.approx(6 / 30, abs=1e-6)
    soft = proportion(routed, "soft")
    assert soft.item() == pytest.approx(routed.gate[active].mean().item(), abs=1e-6)
    weight = router.scorer.weight
    hard_gradient = torch.autograd.grad(proportion(routed), weight, retain_graph=True)[0]
    soft_gradient = torch.autograd.grad(soft, weight)[0]
    torch.testing.assert_close(hard_gradient, soft_gradient)


def test_gate_entropy() -> None:
    routed = scored(EntropyRouter(D))(hidden(2, 10))
    g = routed.gate.double()
    expected = -(g * g.log() + (1 - g) * (1 - g).log()).mean()
    assert gate_entropy(routed).item() == pytest.approx(expected.item(), rel=1e-5)
    saturated = routed._replace(logits=torch.full((2, 10), 1000.0))
    assert gate_entropy(saturated).item() == 0.0
    undecided = routed._replace(logits=torch.zeros(2, 10))
    assert gate_entropy(undecided).item() == pytest.approx(math.log(2))


def test_all_inactive_batch() -> None:
    router = EntropyRouter(D).train()
    routed = router(hidden(2, 5), torch.zeros(2, 5).bool())
    assert not routed.mask.any()
    assert proportion(routed).item() == 0.0
    assert torch.equal(router.take_statistic(), torch.zeros(2))


def test_refusals() -> None:
    with pytest.raises(ShapeError, match="width 8"):
        EntropyRouter(D)(torch.zeros(1, 2, 8))
    with pytest.raises(ConfigError, match="target_ratio"):
        EntropyRouter(D, target_ratio=1.5)
    with pytest.raises(ConfigError, match="did you mean 'normalised'"):
        EntropyRouter(D, entropy="normalized")
    with pytest.raises(ShapeError, match="batch 2"):
        EntropyRouter(D)(hidden(1, 3), torch.ones(2, 3))


def test_aligns_an_attention_mask_from_the_right() -> None:
    x, router = hidden(1, 4), EntropyRouter(D)
    assert router(x, torch.tensor([[0, 0, 0, 1, 0, 1]])).active.tolist() == [[0, 1, 0, 1]]
    assert router(x, torch.tensor([[0, 1]])).active.tolist() == [[1, 1, 0, 1]]


def test_converges_to_the_target_within_200_steps() -> None:
    torch.manual_seed(0)
    config = QuasarConfig(target_ratio=0.2)
    router = scored(EntropyRouter(D, target_ratio=config.target_ratio)).train()
    optimiser = torch.optim.Adam(router.parameters(), lr=1e-2)
    shares = []
    for step in range(200):
        # states that drift: their scale doubles over the run
        routed = router(hidden(4, 50, seed=step) * (1 + step / 200))
        share = proportion(routed)
        shares.append(routed.mask.float().mean().item())
        loss = config.eta * (share - config.target_ratio).square() - 0.01 * routed.gate.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        router.update_threshold(router.take_statistic())
    assert sum(shares[-50:]) / 50 == pytest.approx(0.2, abs=0.03)
    fresh = router.eval()(hidden(40, 50, seed=999) * 2)
    assert fresh.mask.float().mean().item() == pytest.approx(0.2, abs=0.03)
