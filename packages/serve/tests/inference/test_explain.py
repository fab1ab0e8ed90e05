"""Routes told are those that the model took; covering a region is the same as covering the file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from medqua.core.adapter import classical_only
from medqua.core.adapter.layer import QuasarLayer
from medqua.core.model.bundle import Bundle
from medqua.core.vision.image import Decoder, decode_image
from medqua.serve.demo import DEMO
from medqua.serve.inference.explain import explain_file, occlusion, routes, token_grid
from medqua.serve.inference.pipeline import predict_files

SAMPLE = (Path(__file__).parents[3] / "ui/src/medqua/ui/samples/phantom-pa-effusion.dcm").resolve()


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open(DEMO)


@pytest.fixture(scope="module")
def image(bundle: Bundle) -> np.ndarray:
    return decode_image(SAMPLE.read_bytes(), bundle.image).image


def blocks(bundle: Bundle) -> list:
    layers = [m for m in bundle.classifier.modules() if isinstance(m, QuasarLayer)]
    return [block for layer in layers for block in layer.active_blocks()]


def test_routes_are_counted_as_the_blocks_count_them(bundle: Bundle, image: np.ndarray):
    for block in blocks(bundle):
        block.counts = None
    told = routes(bundle, image)
    assert len(told.layers) == 3
    assert np.array_equal(told.logits, bundle.logits([image])[0])
    for layer, block in zip(told.layers, blocks(bundle), strict=True):
        active, routed, depths = (block.counts // 2).tolist()  # two forward passes
        assert active == layer.routed.size + layer.others
        assert routed == layer.routed.sum() + layer.others_routed
        assert layer.routed.shape == layer.gate.shape == layer.depth.shape == (8, 8)
        assert ((layer.depth >= 0) == layer.routed).all()
        assert layer.depth[layer.routed].sum() <= depths
        theta = block.router.threshold.item()
        assert ((layer.gate >= theta - 1e-6) >= layer.routed).all()
        assert len(layer.angles) == len(layer.values) == layer.routed.sum()


def test_values_are_the_circuits_own(bundle: Bundle, image: np.ndarray):
    for layer, block in zip(routes(bundle, image).layers, blocks(bundle), strict=True):
        depth = torch.from_numpy(layer.depth[layer.routed])
        with torch.no_grad():
            again = block.bottleneck(torch.from_numpy(layer.angles), depth)
        np.testing.assert_allclose(layer.values, again.numpy(), atol=1e-6)


def test_nothing_is_routed_without_the_path_and_nobody_listens_afterwards(
    bundle: Bundle, image: np.ndarray
):
    hooks = [len(m._forward_hooks) for m in bundle.classifier.modules()]
    with classical_only(bundle.classifier):
        layers = routes(bundle, image).layers
        assert all(len(layer.angles) == 0 == layer.routed.sum() for layer in layers)
    assert hooks == [len(m._forward_hooks) for m in bundle.classifier.modules()]


def test_a_file_is_explained_by_the_pass_that_named_its_findings(bundle: Bundle, image: np.ndarray):
    with Decoder() as decoder:
        told = explain_file(bundle, SAMPLE, decoder)
        refused = explain_file(bundle, ("a.dcm", b"no image"), decoder)
        (expected,) = predict_files(bundle, [SAMPLE], decoder=decoder)
        with classical_only(bundle.classifier):
            (classical,) = predict_files(bundle, [SAMPLE], decoder=decoder)
    assert told.result.findings == expected.findings
    assert told.classical == classical.findings != expected.findings
    assert np.array_equal(told.image, image)
    again = routes(bundle, image)
    for one, other in zip(told.routes.layers, again.layers, strict=True):
        assert np.array_equal(one.gate, other.gate)
        assert np.array_equal(one.depth, other.depth)
    assert refused.result.refusal is not None
    assert refused.image is refused.routes is refused.classical is None


def test_covering_is_computed_as_if_the_file_were_covered(bundle: Bundle, image: np.ndarray):
    told = occlusion(bundle, image)
    assert token_grid(bundle, image) == told.change.shape[1:] == (8, 8)
    assert np.isclose(told.grey, image.mean())
    covered = image.copy()
    covered[2 * 28 : 3 * 28, 5 * 28 : 6 * 28] = told.grey
    (before,), (after,) = (bundle.findings(bundle.logits([x])) for x in (image, covered))
    for number, label in enumerate(told.labels):
        change = before[label].logit - after[label].logit
        assert abs(told.change[number, 2, 5] - change) < 1e-4


def test_padding_is_never_covered(bundle: Bundle):
    image = np.zeros((224, 224), np.float32)
    image[56:168] = np.linspace(0.2, 0.9, 224, dtype=np.float32)
    told = occlusion(bundle, image, inside=(0, 56, 224, 112))
    assert np.isclose(told.grey, 0.55, atol=1e-3)
    assert np.abs(told.change[:, [0, 1, 6, 7]]).max() < 1e-5
    assert np.abs(told.change[:, 2:6]).max() > 1e-4
