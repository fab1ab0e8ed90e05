"""`POST /v1/explanation`: the same findings as elsewhere, and how they came about."""

import httpx
import numpy as np
import pytest

from medqua.core.model import Bundle
from medqua.core.vision.image import decode_image, placement
from medqua.serve.inference.explain import explain_image, occlusion
from medqua.serve.inference.maps import occlusion_from_dict, routes_from_dict
from medqua.serve.processes.batcher import BATCH_TOLERANCE
from medqua.serve.processes.worker import Explain, Failed, answer


def test_findings_and_routes_are_those_of_the_bundle(
    client: httpx.Client, radiograph: bytes, bundle: Bundle
):
    response = client.post("/v1/explanation", files={"file": ("a.png", radiograph)})
    assert response.status_code == 200
    document = response.json()
    image = decode_image(radiograph, bundle.image).image
    findings, told, classical = explain_image(bundle, image)
    result, explanation = document["result"], document["explanation"]
    assert result["source"] == "a.png"
    for found, expected in ((result["findings"], findings), (explanation["classical"], classical)):
        assert expected is not None
        assert [one["probability"] for one in found] == pytest.approx(
            [one.probability for one in expected], abs=BATCH_TOLERANCE
        )
    assert told is not None
    routes = routes_from_dict(explanation["routes"])
    for one, other in zip(routes.layers, told.layers, strict=True):
        assert np.array_equal(one.routed, other.routed)
        assert one.gate == pytest.approx(other.gate, abs=BATCH_TOLERANCE)
    assert explanation["image"] == bundle.image.to_dict()


def test_regions_are_covered_when_asked_for(
    client: httpx.Client, radiograph: bytes, bundle: Bundle
):
    rows, columns = decode_image(radiograph, bundle.image).image.shape
    response = client.post(
        "/v1/explanation", params={"rows": rows, "columns": columns},
        files={"file": ("a.png", radiograph)},
    )  # fmt: skip
    assert response.status_code == 200
    told = occlusion_from_dict(response.json()["explanation"])
    at = placement(rows, columns, bundle.image)
    inside = (at.left, at.top, at.width, at.height)
    image = decode_image(radiograph, bundle.image).image
    assert told.change == pytest.approx(
        occlusion(bundle, image, inside=inside).change, abs=BATCH_TOLERANCE
    )


@pytest.mark.parametrize(
    ("files", "params", "status", "word"),
    [
        ({"file": b"no image"}, {}, 422, "neither DICOM"),
        ({"file": b"x"}, {"rows": 3}, 422, "both rows and columns"),
        ({"file": b"x"}, {"rows": 0, "columns": 3}, 422, "rows"),
        ({"a": b"x", "b": b"y"}, {}, 413, "send one"),
    ],
)
def test_what_is_not_explained_has_its_reason(
    client: httpx.Client, files: dict[str, bytes], params: dict[str, int], status: int, word: str
):
    response = client.post("/v1/explanation", files=files, params=params)
    assert response.status_code == status
    assert word in response.text


def test_an_engine_that_does_not_tell_says_so():
    class Mute:
        labels = image = None

        def read(self, images): ...
        def provenance(self): ...

    told = answer(Mute(), Explain(np.zeros((2, 2), np.float32)))
    assert isinstance(told, Failed)
    assert "serve the bundle" in told.reason
