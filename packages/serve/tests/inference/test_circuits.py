"""A study's own circuits on CUDA-Q's targets, against an exact sweep."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medqua.core.errors import ConfigError
from medqua.core.model.bundle import Bundle
from medqua.core.quantum.ansatz import Ansatz
from medqua.core.vision.image import decode_image
from medqua.serve.demo import DEMO
from medqua.serve.inference.circuits import CircuitLab, circuits_of, offered
from medqua.serve.inference.explain import LayerRoutes, routes

SAMPLE = Path(__file__).parents[3] / "ui/src/medqua/ui/samples/phantom-pa-effusion.dcm"


@pytest.fixture(scope="module")
def layer() -> LayerRoutes:
    bundle = Bundle.open(DEMO)
    return routes(bundle, decode_image(SAMPLE.read_bytes(), bundle.image).image).layers[1]


def test_exact_targets_give_the_exact_values_and_those_of_the_model(layer: LayerRoutes):
    told = CircuitLab().compare(layer, "qpp-cpu", tokens=5)
    assert told.values.shape == (5, 4)
    np.testing.assert_allclose(told.values, told.exact, atol=1e-9)
    np.testing.assert_allclose(told.values, layer.values[:5], atol=1e-5)
    assert told.depth == tuple(layer.depth[layer.routed][:5])
    assert told.worst is None
    assert told.shots is None


def test_emulated_hardware_lies_within_its_error_bars(layer: LayerRoutes):
    told = CircuitLab().compare(layer, "ionq-emulated", shots=4000, tokens=3)
    assert told.shots == 4000
    assert told.worst is not None
    assert told.worst < 5
    assert (told.errors > 0).all()
    assert (told.errors < 1 / np.sqrt(4000) + 1e-3).all()


def test_noise_draws_values_towards_zero(layer: LayerRoutes):
    told = CircuitLab().compare(layer, "density-matrix-cpu", tokens=4, noise=0.2)
    deep = np.array(told.depth) > 0
    assert deep.any()
    assert np.abs(told.values[deep]).mean() < np.abs(told.exact[deep]).mean()
    np.testing.assert_allclose(told.values[~deep], told.exact[~deep], atol=1e-9)


def test_what_cannot_be_run_is_refused(layer: LayerRoutes):
    lab = CircuitLab()
    for target in ("ionq", "nvidia", "pasqal"):
        with pytest.raises(ConfigError, match="not offered"):
            lab.compare(layer, target)
    with pytest.raises(ConfigError, match="ignores noise: choose density-matrix-cpu"):
        lab.compare(layer, "qpp-cpu", noise=0.1)
    with pytest.raises(ConfigError, match="needed 1 to 16"):
        lab.compare(layer, "qpp-cpu", tokens=0)
    with pytest.raises(ConfigError, match="no token"):
        circuits_of(replace(layer, angles=layer.angles[:0]), 3)
    with pytest.raises(ConfigError, match="classical stand-in"):
        circuits_of(replace(layer, ansatz=None), 3)
    assert isinstance(layer.ansatz, Ansatz)
    assert {"qpp-cpu", "ionq-emulated"} <= {target.name for target in offered()}
