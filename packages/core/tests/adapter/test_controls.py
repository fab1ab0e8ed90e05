import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from medqua.core import QuasarConfig
from medqua.core.adapter import regularisation, update_thresholds
from medqua.core.adapter.controls import (
    ClassicalBottleneck,
    FourierBottleneck,
    MLPBottleneck,
    freeze,
    live_angles,
)
from medqua.core.adapter.layer import QuasarBlock
from medqua.core.errors import ConfigError, ShapeError
from medqua.core.quantum.bottleneck import VariationalBottleneck

pytestmark = pytest.mark.filterwarnings(  # peft reads it while wrapping
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

CONTROLS = [MLPBottleneck, FourierBottleneck]
SIZES = [(2, 1), (4, 2), (4, 4), (6, 3), (8, 2), (8, 4), (12, 6)]

Build = Callable[..., PreTrainedModel]
Inputs = Callable[..., dict[str, Any]]


def made(kind: type[ClassicalBottleneck], n: int = 3, depth: int = 2) -> ClassicalBottleneck:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(n, depth)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("n", "depth"), [(2, 1), (3, 2), (4, 3)])
def test_live_angles_are_those_with_a_gradient(n: int, depth: int) -> None:
    torch.manual_seed(0)
    circuit = VariationalBottleneck(n, depth, engine="dense")
    nn.init.uniform_(circuit.theta, -3.0, 3.0)
    angles = torch.rand(50, n, dtype=torch.float64) * 6 - 3
    weight = torch.randn(50, n, dtype=torch.float64)
    (circuit(angles, depth) * weight).sum().backward()
    assert circuit.theta.grad is not None
    assert int((circuit.theta.grad.abs() > 1e-9).sum()) == live_angles(n, depth)


@pytest.mark.parametrize(("n", "depth"), SIZES)
def test_fourier_features_have_exactly_the_circuits_parameters(n: int, depth: int) -> None:
    assert parameters(FourierBottleneck(n, depth)) == live_angles(n, depth)


@pytest.mark.parametrize(("n", "depth"), SIZES)
def test_no_other_hidden_width_comes_nearer_to_the_circuits_parameters(n: int, depth: int) -> None:
    def away(width: int) -> int:
        layers = nn.Sequential(nn.Linear(n, width), nn.Linear(width, n))
        return abs(parameters(layers) - live_angles(n, depth))

    control = MLPBottleneck(n, depth)
    assert abs(parameters(control) - live_angles(n, depth)) == min(map(away, range(1, 40)))
    assert f"parameters={parameters(control)}, circuit={live_angles(n, depth)}" in repr(control)


@pytest.mark.parametrize("kind", CONTROLS)
@pytest.mark.parametrize("tokens", [0, 5])
def test_every_parameter_is_in_the_graph(kind: type[ClassicalBottleneck], tokens: int) -> None:
    control = made(kind)
    angles = torch.randn(tokens, 3, requires_grad=True)
    out = control(angles, torch.zeros(tokens, dtype=torch.int64))
    assert out.shape == (tokens, 3)
    assert out.dtype == torch.float32
    out.sum().backward()
    assert angles.grad is not None
    for name, parameter in control.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()) is (tokens > 0), name


@pytest.mark.parametrize("kind", CONTROLS)
def test_arithmetic_is_single_or_double(kind: type[ClassicalBottleneck]) -> None:
    control, angles = made(kind), torch.randn(7, 3)
    exact = control(angles.double(), 1)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(control(angles, 1), exact.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(control(angles, 1), control(angles, 1))
        torch.testing.assert_close(control(angles, 1), exact.float())
    assert control(angles.bfloat16(), 1).dtype == torch.float32


@pytest.mark.parametrize("kind", CONTROLS)
def test_depth_changes_nothing_and_tokens_do_not_mix(kind: type[ClassicalBottleneck]) -> None:
    control, angles = made(kind), torch.randn(6, 3)
    depths = torch.tensor([0, 1, 2, 2, 1, 0])
    assert torch.equal(control(angles, depths), control(angles, 2))
    order = torch.randperm(6)
    torch.testing.assert_close(control(angles[order], 2), control(angles, 2)[order])


@pytest.mark.parametrize("kind", CONTROLS)
@pytest.mark.parametrize(
    ("angles", "depth", "words"),
    [
        (torch.zeros(4, 2), 1, r"needs floating point \[tokens, 3\]"),
        (torch.zeros(3), 1, "needs floating point"),
        (torch.zeros(4, 3, dtype=torch.int64), 1, "int64"),
        (torch.zeros(4, 3), torch.ones(5, dtype=torch.int64), "each of the 4 tokens"),
    ],
)
def test_a_wrong_shape_is_refused(
    kind: type[ClassicalBottleneck], angles: torch.Tensor, depth: Any, words: str
) -> None:
    with pytest.raises(ShapeError, match=words):
        made(kind)(angles, depth)


def test_sizes_below_the_circuits_are_refused() -> None:
    for n, depth in ((1, 2), (2, 0)):
        with pytest.raises(ConfigError, match="needed at least 2 and 1"):
            MLPBottleneck(n, depth)


def test_the_perceptron_is_its_formula() -> None:
    control = made(MLPBottleneck, 4, 4)
    angles = torch.randn(9, 4, dtype=torch.float64) * 3
    w1, b1, w2, b2 = (p.detach().double().numpy() for p in control.parameters())
    expected = np.tanh(np.tanh(angles.numpy() @ w1.T + b1) @ w2.T + b2)
    np.testing.assert_allclose(control(angles, 1).detach().numpy(), expected, atol=1e-12)
    assert np.abs(expected).max() < 1


def test_the_features_are_their_formula() -> None:
    control = made(FourierBottleneck, 4, 3)
    frequencies, phases = control.get_buffer("frequencies"), control.get_buffer("phases")
    assert frequencies.shape == (7, 4)
    assert set(frequencies.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert ((phases >= 0) & (phases < 2 * math.pi)).all()
    angles = torch.randn(9, 4, dtype=torch.float64)
    weight, bias = (p.detach().double().numpy() for p in control.parameters())
    waves = np.cos(angles.numpy() @ frequencies.double().numpy().T + phases.double().numpy())
    np.testing.assert_allclose(
        control(angles, 1).detach().numpy(), waves @ weight.T + bias, atol=1e-12
    )


@settings(deadline=None, max_examples=25)
@given(n=st.integers(2, 9), depth=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_no_feature_is_constant_and_all_have_the_circuits_period(
    n: int, depth: int, seed: int
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        control = FourierBottleneck(n, depth)
        angles = torch.rand(4, n, dtype=torch.float64)
    assert control.frequencies.abs().sum(1).min() >= 1
    turned = angles + 2 * math.pi * torch.eye(n, dtype=torch.float64)[seed % n]
    torch.testing.assert_close(control(turned, 1), control(angles, 1))


def test_a_frozen_circuit_is_the_circuit_without_a_parameter() -> None:
    circuit = VariationalBottleneck(3, 2)
    frozen = freeze(copy.deepcopy(circuit))
    assert list(frozen.parameters()) == []
    assert frozen.state_dict().keys() == circuit.state_dict().keys() == {"theta"}
    angles = torch.randn(20, 3, requires_grad=True)
    depth = torch.arange(20) % 3
    for train in (True, False):
        ours, theirs = frozen.train(train)(angles, depth), circuit.train(train)(angles, depth)
        assert torch.equal(ours, theirs)
    ours.sum().backward()
    assert angles.grad is not None
    assert angles.grad.any()
    other = freeze(VariationalBottleneck(3, 2))
    other.load_state_dict(frozen.state_dict())
    assert torch.equal(other(angles, depth), frozen(angles, depth))
    assert frozen(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).shape == (0, 3)


ARMS = [
    {"bottleneck": "mlp"},
    {"bottleneck": "fourier_features"},
    {"train_circuit": False},
    {"entangler": "none", "noise": {"one_qubit": 1e-2}},
]


def small(**changes: Any) -> QuasarConfig:
    return QuasarConfig(**{"n_qubits": 3, "max_depth": 2, "every": 3, "rank": 4, **changes})


@pytest.mark.parametrize("changes", ARMS[:3], ids=str)
@pytest.mark.parametrize("ratio", [0.3, 0.0], ids=["some routed", "none routed"])
def test_every_parameter_of_a_block_gets_a_gradient(changes: dict[str, Any], ratio: float) -> None:
    torch.manual_seed(0)
    block = QuasarBlock(16, small(**changes, target_ratio=ratio, gamma_init=0.5)).train()
    nn.init.normal_(block.shadow.up.weight)
    block(torch.randn(2, 30, 16)).square().sum().backward()
    assert [name for name, p in block.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("changes", ARMS, ids=str)
def test_saving_and_loading_is_bitwise(
    changes: dict[str, Any], build_vlm: Build, image_inputs: Inputs, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    model = peft.get_peft_model(build_vlm(), small(**changes))
    before = {name: p.detach().clone() for name, p in model.state_dict().items()}
    train(model, image_inputs(2))
    moved = {name for name, tensor in model.state_dict().items() if tensor.ne(before[name]).any()}
    kept = {name for name in before if "bottleneck." in name} - moved
    if changes.get("train_circuit", True):
        assert all(name.endswith(("frequencies", "phases")) for name in kept)
    else:
        assert {name.rpartition("bottleneck.")[2] for name in kept} == {"theta"}
        model.set_adapter("default")  # PEFT makes all parameters of an adapter trainable here
        assert not any("theta" in name for name, _ in model.named_parameters())
    model.save_pretrained(tmp_path)
    for options in ({}, {"low_cpu_mem_usage": True}, {"is_trainable": True}):
        again = PeftModel.from_pretrained(build_vlm(), tmp_path, **options).eval()
        mine, theirs = model.state_dict(), again.state_dict()
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
        inputs = image_inputs(2, seed=9)
        with torch.no_grad():
            assert torch.equal(again(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize(
    "changes",
    [
        {"bottleneck": "mlp", "shots": 100},
        {"bottleneck": "fourier_features", "noise": {"readout": 0.1}},
        {"bottleneck": "mlp", "train_circuit": False},
    ],
    ids=str,
)
def test_a_circuits_options_without_a_circuit_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="there is no circuit"):
        small(**changes)


def test_an_unknown_bottleneck_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'fourier_features'"):
        small(bottleneck="fourier")


def train(model: nn.Module, inputs: dict[str, Any]) -> None:
    """A few real steps, after which every part of the adapter that learns has moved."""
    model.train()
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    for _ in range(3):
        loss = model(**inputs, labels=inputs["input_ids"]).loss + regularisation(model)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        update_thresholds(model)
    model.eval()
