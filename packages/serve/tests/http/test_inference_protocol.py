import base64

import httpx
import numpy as np
import pytest
import tritonclient.http as triton

from medqua.core.model import Bundle
from medqua.core.vision.image import read_image
from medqua.serve.processes.batcher import BATCH_TOLERANCE


@pytest.fixture
def caller(served):
    with triton.InferenceServerClient(served.url.removeprefix("http://")) as caller:
        yield caller


def test_a_client_of_the_protocol_gets_on(caller, bundle: Bundle):
    assert caller.is_server_live()
    assert caller.is_server_ready()
    assert caller.is_model_ready("medqua")
    assert caller.is_model_ready("medqua", "1")
    assert "binary_tensor_data" in caller.get_server_metadata()["extensions"]
    metadata = caller.get_model_metadata("medqua")
    assert metadata["inputs"][0] == {"name": "image", "datatype": "FP32", "shape": [-1, 112, 112]}
    assert tuple(metadata["parameters"]["labels"]) == bundle.labels


@pytest.mark.parametrize("binary", [True, False])
def test_tensors(caller, bundle: Bundle, binary: bool):
    images = np.random.default_rng(3).random((3, 112, 112), dtype=np.float32)
    tensor = triton.InferInput("image", list(images.shape), "FP32")
    tensor.set_data_from_numpy(images, binary_data=binary)
    wishes = [triton.InferRequestedOutput(name, binary) for name in ("logit", "probability")]
    answer = caller.infer("medqua", [tensor], outputs=wishes, request_id="7")
    expected = bundle.logits(list(images))
    assert answer.as_numpy("logit") == pytest.approx(expected, abs=1e-4)
    scaled = 1 / (1 + np.exp(-expected / 2))  # the fixture's temperatures are 2
    assert answer.as_numpy("probability") == pytest.approx(scaled, abs=BATCH_TOLERANCE)
    assert answer.get_response()["id"] == "7"


def test_files_as_bytes(caller, radiograph: bytes, bundle: Bundle):
    files = np.array([radiograph, radiograph], object)
    tensor = triton.InferInput("file", [2], "BYTES")
    tensor.set_data_from_numpy(files)
    answer = caller.infer("medqua", [tensor]).as_numpy("logit")
    expected = bundle.logits([read_image(radiograph, bundle.image)])
    assert answer == pytest.approx(np.repeat(expected, 2, 0), abs=1e-4)


def ask(client: httpx.Client, **tensor) -> httpx.Response:
    return client.post("/v2/models/medqua/infer", json={"inputs": [tensor]})


def test_files_as_base64(client: httpx.Client, radiograph: bytes):
    text = base64.b64encode(radiograph).decode()
    response = ask(client, name="file", shape=[1], datatype="BYTES", data=[text])
    assert response.status_code == 200
    assert [output["shape"] for output in response.json()["outputs"]] == [[1, 14], [1, 14]]


@pytest.mark.parametrize(
    "tensor",
    [
        {"name": "image", "shape": [1, 2, 2], "datatype": "FP32", "data": [0, 0, 0, 0]},
        {"name": "image", "shape": [1, 112, 112], "datatype": "FP32", "data": [0]},
        {"name": "image", "shape": [1, 112, 112], "datatype": "FP32", "data": {"a": 1}},
        {"name": "image", "shape": [1, 112, 112], "datatype": "FP32"},
        {"name": "image", "shape": [1, 112, 112], "datatype": "FP32", "data": [2.0] * 112**2},
        {"name": "image", "shape": [0, 112, 112], "datatype": "FP32", "data": []},
        {"name": "image", "shape": [2147483648, 112, 112], "datatype": "FP32", "data": []},
        {"name": "image", "shape": [1, 112, 112], "datatype": "BYTES", "data": ["x"]},
        {"name": "file", "shape": [1], "datatype": "BYTES", "data": ["no base64!"]},
        {"name": "file", "shape": [2], "datatype": "BYTES", "data": ["aaaa"]},
        {"name": "file", "shape": [1], "datatype": "BYTES", "data": [1]},
        {"name": "else", "shape": [1], "datatype": "BYTES", "data": ["aaaa"]},
        {"name": "file", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 9}},
    ],
)
def test_tensors_that_do_not_fit(client: httpx.Client, tensor: dict):
    response = ask(client, **tensor)
    assert response.status_code in (400, 413), response.text
    assert response.json()["error"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"[" * 100_000, b'{"inputs": []}', b"\xff"])
def test_bodies_that_are_none(client: httpx.Client, body: bytes):
    assert client.post("/v2/models/medqua/infer", content=body).status_code == 400
    length = {"Inference-Header-Content-Length": "99999999"}
    assert client.post("/v2/models/medqua/infer", content=body, headers=length).status_code == 400


def test_a_file_that_cannot_be_used_and_a_model_that_is_not_there(client: httpx.Client):
    response = ask(client, name="file", shape=[1], datatype="BYTES", data=["aaaa"])
    assert response.status_code == 422
    assert response.json()["error"].startswith("file 0: ")
    assert client.get("/v2/models/other").status_code == 422
