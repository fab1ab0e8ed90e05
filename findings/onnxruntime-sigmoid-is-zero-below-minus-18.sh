#!/usr/bin/env bash
# ONNX Runtime's CPU Sigmoid is exactly 0 for float32 inputs of -18 and less, and off by a factor of two just above.
# The function there is 1.5e-8, far inside float32's range. log(p / (1 - p)) of such a value is -inf, so a
# probability that leaves a graph does not give its logit back. Let logits leave the graph.
#
# Seen: onnxruntime 1.32.0, CPUExecutionProvider: -20, -19, -18 -> 0.0; -17 -> 8.9e-8 (exactly 4.1e-8)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "onnxruntime==1.32.0" "onnx==1.23.2" "numpy==2.4.6"
"$folder/venv/bin/python" - <<'PY'
import sys

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, checker, helper

graph = helper.make_graph(
    [helper.make_node("Sigmoid", ["x"], ["y"])],
    "sigmoid",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
checker.check_model(model)
session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
x = np.arange(-20, 1, dtype=np.float32)
(got,) = session.run(None, {"x": x})
want = 1 / (1 + np.exp(-x.astype(np.float64)))
for at, value, exact in zip(x, got, want, strict=True):
    if at < -13:
        print(f"{at:6.1f}: {value:.3e}, exactly {exact:.3e}")
zero = x[got == 0]
if not (zero.size and zero.max() <= -17 and want[got == 0].max() > 1e-9):
    sys.exit("changed: values near -18 are not 0 any more")
PY
