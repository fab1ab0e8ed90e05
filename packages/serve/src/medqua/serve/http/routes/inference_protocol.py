"""The Open Inference Protocol v2 over REST, as Triton and KServe speak it.

One model, `medqua`, takes one of two inputs:

    image   FP32  [B, H, W]   grey images in [0, 1], as `medqua.core.read_image` makes them
    file    BYTES [B]         DICOM, JPG or PNG files; in JSON as base64

and gives `probability` and `logit`, FP32 `[B, L]`. Tensors travel as JSON numbers or, by the
binary tensor data extension, as bytes after the JSON.
"""

import asyncio
import base64
import binascii
import hashlib
import json
import struct
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, Path, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from medqua.core.errors import ImageError, MedQuaError
from medqua.core.vision.content import check_levels
from medqua.serve.http.documents import inlined, problems
from medqua.serve.http.security import Anyone, Requires
from medqua.serve.http.service import Service, json_response, service_of, tell_audit, unless_gone
from medqua.serve.http.uploads import deadline_of
from medqua.serve.processes.batcher import Priority
from medqua.serve.processes.reader import STATUS
from medqua.serve.zip_archive import Part

MODEL, VERSION = "medqua", "1"
OUTPUTS = ("probability", "logit")
JSON_LENGTH = "Inference-Header-Content-Length"

router = APIRouter(prefix="/v2", tags=["open inference protocol"])

_LOOKS = [Depends(Requires("infer", "read"))]
_ModelName = Annotated[Literal["medqua"], Path(description="The one model.")]


class InputTensor(BaseModel):
    """A tensor of a request."""

    name: Literal["image", "file"]
    shape: list[Annotated[int, Field(ge=0, le=1 << 31)]] = Field(min_length=1, max_length=4)
    datatype: Literal["FP32", "BYTES"]
    parameters: dict[str, Any] = {}
    data: Any = None


class OutputWish(BaseModel):
    """A tensor that is asked for."""

    name: Literal["probability", "logit"]
    parameters: dict[str, Any] = {}


class InferRequest(BaseModel):
    """An inference request."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "inputs": [
                    {"name": "file", "shape": [1], "datatype": "BYTES", "data": ["iVBORw0KGgo="]}
                ]
            }
        }
    )

    id: str | None = Field(None, max_length=128)
    parameters: dict[str, Any] = {}
    inputs: list[InputTensor] = Field(min_length=1, max_length=1)
    outputs: list[OutputWish] = Field([], max_length=2)


@router.get("", summary="The server", dependencies=_LOOKS, responses=problems())
async def server(request: Request) -> dict[str, Any]:
    """Return name, version and extensions."""
    return {"name": "medqua", "version": request.app.version, "extensions": ["binary_tensor_data"]}


@router.get("/health/live", summary="Whether it lives", dependencies=[Depends(Anyone())])
async def live() -> dict[str, bool]:
    """Return 200 as long as the process answers at all."""
    return {"live": True}


@router.get(
    "/health/ready",
    summary="Whether it is of use",
    dependencies=[Depends(Anyone())],
    responses={503: {"description": "Not ready."}},
)
async def ready(request: Request) -> Response:
    """Return 200 if the model is warm."""
    ready = service_of(request).ready
    return json_response({"ready": ready}, 200 if ready else 503)


@router.get(
    "/models/{model}/ready",
    summary="Whether the model is of use",
    dependencies=_LOOKS,
    responses=problems(422, 503),
)
@router.get(
    "/models/{model}/versions/1/ready",
    dependencies=_LOOKS,
    responses=problems(422, 503),
    include_in_schema=False,
)
async def model_ready(request: Request, model: _ModelName) -> Response:
    """Return 200 if the model is warm."""
    ready = service_of(request).ready
    return json_response({"name": MODEL, "ready": ready}, 200 if ready else 503)


@router.get(
    "/models/{model}",
    summary="The model's tensors",
    dependencies=_LOOKS,
    responses=problems(422),
)
@router.get(
    "/models/{model}/versions/1",
    dependencies=_LOOKS,
    responses=problems(422),
    include_in_schema=False,
)
async def metadata(request: Request, model: _ModelName) -> dict[str, Any]:
    """Return names, types and shapes of the model's tensors, and its labels."""
    known = service_of(request).need_reader().model
    side = known.image.size or -1
    labels = len(known.labels)
    return {
        "name": MODEL,
        "versions": [VERSION],
        "platform": "medqua",
        "inputs": [
            {"name": "image", "datatype": "FP32", "shape": [-1, side, side]},
            {"name": "file", "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [{"name": n, "datatype": "FP32", "shape": [-1, labels]} for n in OUTPUTS],
        "parameters": {"labels": list(known.labels), "provenance": dict(known.provenance)},
    }


@router.post(
    "/models/{model}/infer",
    summary="Infer",
    dependencies=[Depends(Requires("infer"))],
    response_model=dict[str, Any],
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": inlined(InferRequest.model_json_schema())}},
        }
    },
    responses=problems(408, 413, 422, 503, 504),
)
@router.post(
    "/models/{model}/versions/1/infer",
    dependencies=[Depends(Requires("infer"))],
    include_in_schema=False,
)
async def infer(request: Request, model: _ModelName) -> Response:
    """Return probabilities and logits of images. One that cannot be used fails the request."""
    service = service_of(request)
    reader = service.need_reader()
    asked, rest = _read_request(await request.body(), request.headers.get(JSON_LENGTH))
    deadline = reader.deadline(deadline_of(request))
    if asked.inputs[0].name == "file":
        files = _files(asked.inputs[0], rest, service)
        tell_audit(request, await asyncio.to_thread(_hashes, files), [])
        rows = await unless_gone(request, _read_files(service, files, deadline))
    else:
        images = _images(asked.inputs[0], rest, reader.model.image.size, service)
        tell_audit(request, await asyncio.to_thread(_hashes, images), [])
        rows = await unless_gone(request, _read_images(service, images, deadline))
    labels = len(reader.model.labels)
    tensors = {
        name: np.array([[f[name] for f in row] for row in rows], np.float32).reshape(-1, labels)
        for name in OUTPUTS
    }
    return _respond(asked, tensors, list(reader.model.labels), reader.made_by)


def _read_request(body: bytes, json_length: str | None) -> tuple[InferRequest, bytes]:
    """Split a body into its JSON and the binary tensors after it."""
    length = len(body)
    if json_length is not None:
        if not (json_length.isascii() and json_length.isdigit() and int(json_length) <= length):
            raise HTTPException(400, f"{JSON_LENGTH} is no length within the body")
        length = int(json_length)
    try:
        return InferRequest.model_validate_json(body[:length]), body[length:]
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise HTTPException(400, f"{where}: {first['msg']}") from None


def _binary(tensor: InputTensor, rest: bytes) -> bytes | None:
    """Return the bytes of a tensor that came after the JSON."""
    size = tensor.parameters.get("binary_data_size")
    if size is None:
        return None
    if type(size) is not int or size != len(rest) or tensor.data is not None:
        raise HTTPException(400, f"binary_data_size is not that of the {len(rest)} bytes sent")
    return rest


def _files(tensor: InputTensor, rest: bytes, service: Service) -> list[bytes]:
    """Return the files of a BYTES tensor."""
    if tensor.datatype != "BYTES" or len(tensor.shape) != 1:
        raise HTTPException(400, "file is BYTES of shape [B]")
    raw = _binary(tensor, rest)
    files = []
    if raw is not None:
        at = 0
        while at + 4 <= len(raw):
            (size,) = struct.unpack_from("<I", raw, at)
            files.append(raw[at + 4 : at + 4 + size])
            at += 4 + size
        if at != len(raw):
            raise HTTPException(400, "the lengths within file do not add up to its bytes")
    else:
        if not isinstance(tensor.data, list) or not all(isinstance(x, str) for x in tensor.data):
            raise HTTPException(400, "file: give a list of base64 strings, or binary data")
        try:
            files = [base64.b64decode(text, validate=True) for text in tensor.data]
        except (binascii.Error, ValueError):
            raise HTTPException(400, "file: not base64") from None
    if len(files) != tensor.shape[0]:
        raise HTTPException(400, f"file holds {len(files)} of {tensor.shape[0]} elements")
    _bound(len(files), service)
    return files


def _images(
    tensor: InputTensor, rest: bytes, size: int | None, service: Service
) -> list[np.ndarray]:
    """Return the images of an FP32 tensor."""
    want = f"[B, {size}, {size}]" if size else "[B, H, W]"
    shape = tensor.shape
    if tensor.datatype != "FP32" or len(shape) != 3 or (size and shape[1:] != [size, size]):
        raise HTTPException(400, f"image is FP32 of shape {want}")
    _bound(shape[0], service)
    if shape[1] * shape[2] > service.settings.limits.pixels or 0 in shape[1:]:
        raise HTTPException(400, f"image is FP32 of shape {want}, none of them empty or too large")
    raw = _binary(tensor, rest)
    try:
        if raw is not None:
            values = np.frombuffer(raw, "<f4").reshape(shape)
        else:
            values = np.asarray(tensor.data, np.float32).reshape(shape)
    except (ValueError, TypeError, OverflowError):
        raise HTTPException(400, f"image: its data are not {shape} numbers") from None
    if not (np.isfinite(values).all() and (values >= 0).all() and (values <= 1).all()):
        raise HTTPException(
            400, "image: values lie in [0, 1]; read files with the model's ImageSpec"
        )
    for number, image in enumerate(values):
        try:
            check_levels(image)
        except ImageError as error:
            raise HTTPException(422, f"image {number}: {error}") from None
    return list(values)


def _hashes(inputs: Sequence[bytes | np.ndarray]) -> list[str]:
    """Return the SHA-256 of files, or of images as little-endian float32."""
    raw = (x if isinstance(x, bytes) else x.astype("<f4").tobytes() for x in inputs)
    return [hashlib.sha256(content).hexdigest() for content in raw]


def _bound(count: int, service: Service) -> None:
    if count < 1:
        raise HTTPException(400, "an empty batch; send at least one image")
    if count > service.settings.limits.files:
        raise HTTPException(413, f"over {service.settings.limits.files} images in one request")


async def _read_files(service: Service, files: list[bytes], deadline: float) -> list[Any]:
    parts = [Part("", content) for content in files]
    answers = await service.answer(parts, deadline, Priority.NORMAL)
    for number, answer in enumerate(answers):
        if answer.findings is None:
            raise HTTPException(answer.status, f"file {number}: {answer.reason}")
    return [answer.findings for answer in answers]


async def _read_images(service: Service, images: list[np.ndarray], deadline: float) -> list[Any]:
    batcher = service.need_reader().batcher
    batcher.enter()  # refused at once, or else each takes its turn
    batcher.leave()

    async def one(image: np.ndarray) -> Any:
        await batcher.wait_to_enter()
        try:
            return (await batcher.submit(image, deadline))["findings"]
        finally:
            batcher.leave()

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(image)) for image in images]
    except* MedQuaError as errors:
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        status = next((s for kind, s in STATUS.items() if isinstance(first, kind)), 503)
        raise HTTPException(status, str(first)) from None
    return [task.result() for task in tasks]


def _respond(
    asked: InferRequest,
    tensors: dict[str, np.ndarray],
    labels: list[str],
    made_by: dict[str, str | None],
) -> Response:
    """Build the response, tensors as bytes where that is asked for."""
    every = bool(asked.parameters.get("binary_data_output", False))
    wishes = asked.outputs or [OutputWish(name="probability"), OutputWish(name="logit")]
    outputs, binary = [], b""
    for wish in wishes:
        values = tensors[wish.name]
        output: dict[str, Any] = {
            "name": wish.name, "datatype": "FP32", "shape": list(values.shape),
        }  # fmt: skip
        if wish.parameters.get("binary_data", every):
            raw = values.astype("<f4").tobytes()
            output["parameters"] = {"binary_data_size": len(raw)}
            binary += raw
        else:
            output["data"] = values.ravel().tolist()
        outputs.append(output)
    document: dict[str, Any] = {
        "model_name": MODEL,
        "model_version": VERSION,
        "parameters": {"labels": json.dumps(labels), **{k: v for k, v in made_by.items() if v}},
        "outputs": outputs,
    }
    if asked.id is not None:
        document["id"] = asked.id
    if not binary:
        return json_response(document)
    head = json.dumps(document, allow_nan=False).encode()
    return Response(
        head + binary,
        media_type="application/octet-stream",
        headers={JSON_LENGTH: str(len(head))},
    )
