"""The circuit in numpy against the layer that trains it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medqua.core.errors import ConfigError, ShapeError
from medqua.core.quantum.ansatz import Ansatz
from medqua.core.quantum.bottleneck import VariationalBottleneck
from medqua.core.quantum.exact.arrays import CHUNK, LARGEST, ArrayCircuit


def pair(ansatz: Ansatz, seed: int = 0) -> tuple[ArrayCircuit, VariationalBottleneck]:
    """Return one circuit as arrays and as a layer."""
    torch.manual_seed(seed)
    layer = VariationalBottleneck(
        ansatz.n_qubits, ansatz.max_depth, encoding=ansatz.encoding, entangler=ansatz.entangler
    ).eval()
    return ArrayCircuit(ansatz, layer.theta.detach().numpy()), layer


@st.composite
def circuits(draw: st.DrawFn) -> Ansatz:
    return Ansatz(
        draw(st.integers(2, LARGEST)),
        draw(st.integers(1, 4)),
        encoding=draw(st.sampled_from(("ry", "rx"))),
        entangler=draw(st.sampled_from(("ring", "line", "all", "none"))),
    )


@settings(max_examples=40)
@given(circuits(), st.integers(0, 20), st.integers(0, 2**32 - 1))
def test_tokens_of_all_depths_have_the_values_of_the_layer(ansatz: Ansatz, tokens: int, seed: int):
    rng = np.random.default_rng(seed)
    angles = rng.uniform(-np.pi, np.pi, (tokens, ansatz.n_qubits))
    depth = rng.integers(0, ansatz.max_depth + 1, tokens)
    arrays, layer = pair(ansatz, seed)
    with torch.inference_mode():
        expected = layer.double()(torch.from_numpy(angles), torch.from_numpy(depth)).numpy()
    np.testing.assert_allclose(arrays(angles, depth), expected, rtol=0, atol=1e-10)


def test_a_token_has_the_same_value_alone_and_among_many():
    arrays, _ = pair(Ansatz(4, 2))
    rng = np.random.default_rng(0)
    angles = rng.uniform(-np.pi, np.pi, (CHUNK + 5, 4)).astype(np.float32)
    depth = np.full(len(angles), 2)
    together = arrays(angles, depth)
    alone = np.concatenate([arrays(angles[k : k + 1], depth[:1]) for k in range(len(angles))])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("angles", "depth", "says"),
    [
        (np.full((1, 3), np.nan), [1], "NaN or infinity"),
        (np.full((1, 3), np.inf), [1], "NaN or infinity"),
        (np.zeros((1, 3)), [3], r"depths 3 to 3: needed 0\.\.2"),
        (np.zeros((1, 3)), [-1], r"depths -1 to -1: needed 0\.\.2"),
        (np.zeros((2, 3)), [1], r"needed \[tokens, 3\]"),
        (np.zeros((1, 4)), [1], r"needed \[tokens, 3\]"),
    ],
)
def test_what_no_circuit_can_be_given_is_refused(angles: np.ndarray, depth: list[int], says: str):
    arrays, _ = pair(Ansatz(3, 2))
    with pytest.raises(ShapeError, match=says):
        arrays(angles, np.array(depth))


def test_parameters_must_fit_and_large_circuits_are_refused():
    with pytest.raises(ShapeError, match=r"theta has shape \[1, 3, 3\]"):
        ArrayCircuit(Ansatz(3, 2), np.zeros((1, 3, 3)))
    with pytest.raises(ConfigError, match="9 qubits in numpy: it takes up to 8"):
        ArrayCircuit(Ansatz(9, 1), np.zeros((1, 9, 3)))
