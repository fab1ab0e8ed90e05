"""Explanations as plain JSON values and back, bit for bit."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from medqua.core.model import Bundle
from medqua.serve.inference.explain import LayerRoutes, explain_image, occlusion, routes
from medqua.serve.inference.maps import (
    occlusion_from_dict,
    occlusion_to_dict,
    routes_from_dict,
    routes_to_dict,
)


@pytest.fixture(scope="module")
def opened(bundle_folder: Path) -> Bundle:
    return Bundle.open(bundle_folder)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).random((112, 112), np.float32)


def test_routes_come_back_bit_for_bit(opened: Bundle, image: np.ndarray):
    told = routes(opened, image)
    back = routes_from_dict(json.loads(json.dumps(routes_to_dict(told))))
    assert back.image == told.image
    assert np.array_equal(back.logits, told.logits)
    assert any(layer.routed.any() for layer in told.layers)
    for one, other in zip(back.layers, told.layers, strict=True):
        for field in fields(LayerRoutes):
            mine, theirs = getattr(one, field.name), getattr(other, field.name)
            if isinstance(theirs, np.ndarray):
                assert mine.dtype == theirs.dtype, field.name
                assert mine.shape == theirs.shape, field.name
                assert np.array_equal(mine, theirs), field.name
            else:
                assert mine == theirs, field.name


def test_an_occlusion_comes_back_bit_for_bit(opened: Bundle, image: np.ndarray):
    told = occlusion(opened, image)
    back = occlusion_from_dict(json.loads(json.dumps(occlusion_to_dict(told))))
    assert (back.image, back.labels, back.grey) == (told.image, told.labels, told.grey)
    assert np.array_equal(back.probability, told.probability)
    assert np.array_equal(back.change, told.change)


def test_an_image_is_explained_as_its_parts_tell(opened: Bundle, image: np.ndarray):
    findings, told, classical = explain_image(opened, image)
    expected = opened.findings(opened.logits([image], batch_size=1))[0]
    assert [f.logit for f in findings] == [f.logit for f in expected]
    assert told is not None
    assert np.array_equal(told.logits, routes(opened, image).logits)
    assert classical is not None
    assert [f.logit for f in classical] != [f.logit for f in findings]


@pytest.mark.parametrize("key", ["image", "layers", "logits"])
def test_what_is_no_explanation_is_an_error(opened: Bundle, image: np.ndarray, key: str):
    told = routes_to_dict(routes(opened, image))
    del told[key]
    with pytest.raises(KeyError):
        routes_from_dict(told)
    with pytest.raises((ValueError, KeyError, TypeError)):
        occlusion_from_dict({"image": [1, 1], "labels": ["a"], "change": [[0.0]]})
