"""The single-file graph as a model repository of the Triton Inference Server.

    triton/medqua/config.pbtxt      what goes in and comes out
    triton/medqua/labels.txt        names of the findings, a line each
    triton/medqua/1/model.onnx      version 1 of the graph

`tritonserver --model-repository=OUT/triton` serves it; `config.pbtxt` follows
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_configuration.html
"""

from collections.abc import Sequence
from pathlib import Path

FOLDER = "triton/medqua"
"""Where the model lies in an export."""

GRAPH = f"{FOLDER}/1/model.onnx"
"""Where its graph lies."""

MAX_BATCH = 32
"""Most images that Triton may put together."""

QUEUE_MICROSECONDS = 5000
"""How long Triton may wait for more images."""


def write_repository(
    root: Path,
    size: int,
    labels: Sequence[str],
    adapters: int,
    tokens: int,
    max_batch: int = MAX_BATCH,
) -> None:
    """Write `config.pbtxt` and `labels.txt` beside a graph that is there.

    Args:
        root: Folder of the export.
        size: Side of the images.
        labels: Names of the findings.
        adapters: Adapters of the model; 0 leaves out the output `routes`.
        tokens: Tokens of the decoder for an image of that size.
        max_batch: Most images that Triton may put together.
    """
    folder = root / FOLDER
    outputs = [
        _tensor("logits", "TYPE_FP32", (len(labels),)),
        _tensor("probabilities", "TYPE_FP32", (len(labels),), 'label_filename: "labels.txt"'),
    ]
    if adapters:
        outputs.append(_tensor("routes", "TYPE_BOOL", (adapters, tokens)))
    told = ",\n".join(outputs)
    (folder / "labels.txt").write_text("\n".join(labels) + "\n", encoding="utf-8")
    (folder / "config.pbtxt").write_text(
        f"""name: "medqua"
backend: "onnxruntime"
max_batch_size: {max_batch}
input [
{_tensor("image", "TYPE_FP32", (size, size))}
]
output [
{told}
]
dynamic_batching {{
  max_queue_delay_microseconds: {QUEUE_MICROSECONDS}
}}
model_warmup [
  {{
    name: "zero"
    batch_size: 1
    inputs {{
      key: "image"
      value {{ data_type: TYPE_FP32 dims: [ {size}, {size} ] zero_data: true }}
    }}
  }}
]
""",
        encoding="utf-8",
    )


def _tensor(name: str, kind: str, dims: Sequence[int], extra: str = "") -> str:
    shape = ", ".join(map(str, dims))
    tail = f" {extra}" if extra else ""
    return f'  {{ name: "{name}" data_type: {kind} dims: [ {shape} ]{tail} }}'
