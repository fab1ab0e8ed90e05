import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from medqua.core.adapter.config import QuasarConfig
from medqua.core.adapter.layer import QuasarBlock, QuasarLayer
from medqua.core.errors import ConfigError
from medqua.core.quantum.bottleneck import VariationalBottleneck
from medqua.core.quantum.noise import Channel, NoiseModel

D = 16


def small(**changes: Any) -> QuasarConfig:
    return QuasarConfig(**{"n_qubits": 3, "max_depth": 2, "rank": 4, **changes})


def hidden(batch: int, tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, tokens, D, generator=torch.Generator().manual_seed(seed))


def build(seed: int = 0, **changes: Any) -> QuasarBlock:
    """A block that has learned: gamma, U, scorer and threshold are not at their start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        block = QuasarBlock(D, small(**changes)).train()
        nn.init.normal_(block.shadow.up.weight, std=0.1)
        nn.init.normal_(block.router.scorer.weight)
        with torch.no_grad():
            block.gamma.fill_(0.7)
            block(hidden(4, 50, seed=5))
        block.update(block.take_statistics())
    return block.eval()


def test_equations_8_and_9() -> None:
    block = build(epsilon=0.05)
    nn.init.normal_(block.norm.weight)
    nn.init.normal_(block.norm.bias)
    x = hidden(2, 25)
    routed = block.router(x)
    assert 0 < routed.mask.sum() < 50
    h = x.double().numpy()
    selected = x[routed.mask]
    phi = block.encoder(selected / selected.square().mean(-1, keepdim=True).sqrt())
    depth, _ = block.depth(selected)
    z = block.bottleneck(phi.clamp(-math.pi, math.pi), depth).detach().double().numpy()
    quantum = np.zeros_like(h)
    quantum[routed.mask.numpy()] = (
        z @ block.proj.weight.detach().double().numpy().T + block.proj.bias.detach().numpy()
    )
    up, down = block.shadow.up.weight, block.shadow.down.weight
    classical = h @ (up @ down).detach().double().numpy().T * 16.0 / 4
    g = 0.95 * routed.gate.detach().double().numpy()[..., None] + 0.05
    mixed = g * quantum + (1 - g) * classical
    mean, variance = mixed.mean(-1, keepdims=True), mixed.var(-1, keepdims=True)
    normed = (mixed - mean) / np.sqrt(variance + 1e-5)
    expected = 0.7 * (
        normed * block.norm.weight.detach().numpy() + block.norm.bias.detach().numpy()
    )
    np.testing.assert_allclose(block(x).detach().numpy(), expected, atol=2e-5)


def test_relative_residual_is_the_plain_one_in_units_of_the_states() -> None:
    plain, relative = build(), build(residual="relative")
    x = hidden(2, 25)
    x[0, 3] = 0.0  # an empty token has no scale, and takes nothing
    rms = x.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(relative(x), plain(x) * rms)
    x.requires_grad_()
    relative(x).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_angles_are_clipped_and_rms_encoding_ignores_scale() -> None:
    block, x = build(encoding="raw"), hidden(1, 30)[0]
    nn.init.normal_(block.encoder.weight, std=10.0)
    angles = block._angles(x)
    assert angles.abs().max().item() == pytest.approx(math.pi)
    torch.testing.assert_close(angles, block.encoder(x).clamp(-math.pi, math.pi))
    scaled = build(encoding="rms")
    torch.testing.assert_close(scaled._angles(x), scaled._angles(1000 * x))
    assert torch.isfinite(scaled._angles(torch.zeros(2, D))).all()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"relaxation": "gumbel", "dropout": 0.1},
        {"depth": "fixed", "entropy": "none"},
        {"max_depth": 1},
        {"routing": "topk", "scope": "sample"},
        {"routing": "random", "encoding": "raw"},
    ],
    ids=str,
)
@pytest.mark.parametrize("routed", [True, False], ids=["some routed", "none routed"])
def test_every_parameter_gets_a_gradient(changes: dict[str, Any], routed: bool) -> None:
    block = build(**changes, target_ratio=0.3 if routed else 0.0).train()
    x = hidden(2, 30).requires_grad_()
    (block(x) * hidden(2, 30, seed=3)).sum().backward()
    missing = [name for name, p in block.named_parameters() if p.grad is None]
    assert missing == []  # a distributed run waits for each of them
    assert all(torch.isfinite(p.grad).all() for p in block.parameters() if p.grad is not None)
    quiet = {
        name for name, p in block.named_parameters() if p.grad is not None and not p.grad.any()
    }
    if routed:
        # the bias under a LayerNorm's mean and parameters of size zero have none to give
        assert quiet <= {"depth.steps"}
    else:
        assert {"bottleneck.theta", "proj.weight", "encoder.weight"} <= quiet
    assert x.grad is not None


def test_zero_states_give_finite_gradients() -> None:
    # U = 0 and nothing routed: the LayerNorm gets exact zeros, where its slope is 1 / sqrt(eps)
    block = QuasarBlock(D, small(target_ratio=0.0, gamma_init=1.0)).train()
    x = torch.zeros(1, 4, D, requires_grad=True)
    y = hidden(1, 4).requires_grad_()
    (block(torch.cat([x, y], 1)) * hidden(1, 8, seed=2)).sum().backward()
    for tensor in (x, y, *block.parameters()):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
    largest = max(p.grad.abs().max().item() for p in block.parameters() if p.grad is not None)
    assert largest < 1e3 / math.sqrt(1e-5)


def test_starts_as_the_identity_and_gamma_learns_first() -> None:
    block = QuasarBlock(D, small()).train()
    x = hidden(2, 30)
    out = block(x)
    assert torch.equal(x + out, x)
    (out * hidden(2, 30, seed=3)).sum().backward()
    assert block.gamma.grad is not None
    assert block.gamma.grad.abs() > 0


@pytest.mark.parametrize("batch", [1, 3])
def test_permuting_tokens_permutes_the_result_in_evaluation(batch: int) -> None:
    block, x = build(), hidden(batch, 20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(block(x)[:, order], block(x[:, order]), atol=1e-5, rtol=1e-5)


def test_batching_cannot_change_a_token_in_evaluation() -> None:
    block, x = build(), hidden(5, 20)
    together = block(x)
    for row in range(5):
        for token in range(0, 20, 7):
            alone = block(x[row : row + 1, token : token + 1])
            torch.testing.assert_close(alone[0, 0], together[row, token], atol=1e-5, rtol=1e-5)


def test_bfloat16_states_float32_adapter() -> None:
    block = build()
    x = hidden(2, 30).bfloat16()
    out = block(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, block(x.float()).bfloat16(), atol=0, rtol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(block(x), out, atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_the_model_leaves_the_adapter_in_float32(dtype: torch.dtype) -> None:
    layer = QuasarLayer(nn.Linear(D, D), "layers.0")
    layer.add_block("default", D, small())
    before = {k: v.clone() for k, v in layer.quasar_block.state_dict().items()}
    layer.to(dtype)
    assert layer.base_layer.weight.dtype == dtype
    after = layer.quasar_block.state_dict()
    assert all(torch.equal(after[k], v) and after[k].dtype == v.dtype for k, v in before.items())
    layer.double()
    assert layer.quasar_block["default"].gamma.dtype == torch.float64


class TupleLayer(nn.Module):
    attention_type = "full_attention"

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> tuple[torch.Tensor, str]:
        return x * scale, "weights"


def wrapped(base: nn.Module | None = None, **changes: Any) -> QuasarLayer:
    layer = QuasarLayer(base or TupleLayer(), "layers.0")
    for seed, name in enumerate(("a", "b")):
        layer.add_block(name, D, small(**changes))
        layer.quasar_block[name].load_state_dict(build(seed, **changes).state_dict())
    layer.set_adapter("a")
    return layer.eval()


def test_layer_adds_the_active_adapters() -> None:
    layer, x = wrapped(), hidden(1, 10)
    a, b = layer.quasar_block["a"], layer.quasar_block["b"]
    out, rest = layer(x, scale=2.0)
    assert rest == "weights"
    assert torch.equal(out, 2 * x + a(2 * x))
    layer.set_adapter(["a", "b"])
    assert torch.equal(layer(x)[0], x + a(x) + b(x))
    layer.enable_adapters(False)
    assert torch.equal(layer(x)[0], x)
    layer.enable_adapters(True)
    layer.set_adapter("absent")
    assert torch.equal(layer(x)[0], x)


def test_layer_answers_for_the_decoder_layer() -> None:
    layer = wrapped()
    assert layer.attention_type == "full_attention"
    with pytest.raises(AttributeError, match="nonsense"):
        _ = layer.nonsense


def test_plain_tensor_output() -> None:
    layer, x = wrapped(nn.Identity()), hidden(1, 10)
    assert torch.equal(layer(x), x + layer.quasar_block["a"](x))


def test_merge_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unload\(\)"):
        wrapped().merge()


def test_no_graph_is_kept_outside_training() -> None:
    block, x = build(), hidden(1, 10)
    block.train()(x)
    assert block.routed is not None
    copied = pickle.loads(pickle.dumps(block))  # non-leaf tensors could be neither
    assert copied.routed is None
    assert copy.deepcopy(block).routed is None
    block.eval()(x)
    assert block.routed is None
    block.train()(x)
    with torch.no_grad():
        block(x)
    assert block.routed is None
    with torch.inference_mode():
        block.eval()(x)
    block.train()(x).sum().backward()  # counts made in inference mode are no obstacle


def test_first_update_standardises_the_depth_policy_once() -> None:
    torch.manual_seed(0)
    block = QuasarBlock(D, small(max_depth=4, target_ratio=0.5)).train()
    heavy = hidden(4, 100) ** 5  # heavy tails: without standardising, all at one depth
    selected = heavy[block.router(heavy).mask]
    block.router.take_statistic()
    assert block.depth(selected)[0].bincount().max() > 0.9 * len(selected)
    block(heavy[:2])
    block(heavy[2:])
    chosen = torch.cat(
        [heavy[:2][block.router(heavy[:2]).mask], heavy[2:][block.router(heavy[2:]).mask]]
    )
    signals = block.depth.rescaled(chosen)
    block.router.take_statistic()
    block.update(block.take_statistics())
    torch.testing.assert_close(block.depth.shift, signals.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        block.depth.scale, signals.std(0, correction=0), rtol=1e-3, atol=1e-3
    )
    assert block.depth(selected)[0].bincount().max() < 0.6 * len(selected)
    shift = block.depth.shift.clone()
    block(hidden(4, 100))
    block.update(block.take_statistics())
    assert torch.equal(block.depth.shift, shift)
    restored = QuasarBlock(D, small(max_depth=4, target_ratio=0.5)).train()
    restored(hidden(4, 100))
    restored.load_state_dict(block.state_dict())
    restored.update(restored.take_statistics())
    assert torch.equal(restored.depth.shift, shift)


class HostReads(TorchDispatchMode):
    """Counts the operations whose result the host must wait for."""

    names = ("aten._local_scalar_dense", "aten.nonzero", "aten.equal", "aten.item")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += any(str(func).startswith(name + ".") for name in self.names)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("training", [True, False])
def test_host_reads_do_not_grow_with_tokens(training: bool) -> None:
    block = build().train(training)
    counts = []
    for tokens in (10, 100, 1000):
        with HostReads() as reads:
            block(hidden(2, tokens))
        counts.append(reads.count)
    assert counts[0] == counts[1] == counts[2]
    assert 1 <= counts[0] <= 2 + 1 + 2  # nonzero, the depth buckets' transfer, one for each depth


def test_noise_of_the_config_is_noise_of_the_circuit() -> None:
    noise = {"one_qubit": 0.01, "two_qubit": 0.05, "amplitude_damping": 0.02, "readout": 0.03}
    clean, noisy = build(), build(noise=noise)
    angles = torch.linspace(-3, 3, 12).reshape(4, 3)
    by_hand = NoiseModel(
        (
            Channel("depolarising", 0.01, ("rx", "ry", "rz")),
            Channel("depolarising", 0.05, ("cx",)),
            Channel("amplitude_damping", 0.02),
        ),
        (0.03, 0.03),
    )
    expected = VariationalBottleneck(3, 2, noise=by_hand)
    expected.load_state_dict(noisy.bottleneck.state_dict())
    torch.testing.assert_close(noisy.bottleneck(angles, 2), expected(angles, 2))
    assert (noisy.bottleneck(angles, 2) - clean.bottleneck(angles, 2)).abs().max() > 0.01
