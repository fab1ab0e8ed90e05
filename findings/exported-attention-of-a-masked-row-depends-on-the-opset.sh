#!/usr/bin/env bash
# scaled_dot_product_attention with a boolean mask whose row is false everywhere: torch gives zeros. Exported with
# opset 18, ONNX Runtime gives the mean of all values for that row; with opset 23 it gives zeros again. Padding rows
# that a model never reads are harmless; a row that is pooled is not. No warning tells it.
#
# Seen: torch 2.13.0, onnxscript 0.7.2, onnxruntime 1.32.0: zeros; opset 18: the mean; opset 23: zeros
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.13.0" "onnx==1.23.2" "onnxscript==0.7.2" "onnxruntime==1.32.0" "numpy==2.4.6"
cat >"$folder/look.py" <<'PY'
import sys
import warnings

import onnxruntime as ort
import torch

warnings.simplefilter("ignore")


class Attention(torch.nn.Module):
    def forward(self, q, k, v, mask):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


torch.manual_seed(0)
q, k, v = (torch.randn(1, 1, 3, 4) for _ in range(3))
mask = torch.tensor([[[[True, False, False], [True, True, False], [False, False, False]]]])
model, args = Attention().eval(), (q, k, v, mask)
rows = {"torch": model(*args)[0, 0, 2]}
for opset in (18, 23):
    file = f"{sys.argv[1]}/{opset}.onnx"
    torch.onnx.export(model, args, file, opset_version=opset, dynamo=True, verbose=False)
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    feed = {i.name: a.numpy() for i, a in zip(session.get_inputs(), args, strict=True)}
    rows[f"opset {opset}"] = torch.tensor(session.run(None, feed)[0])[0, 0, 2]
mean = v[0, 0].mean(0)
for name, row in rows.items():
    kind = "zeros" if not row.any() else "the mean of all values" if torch.allclose(row, mean) else str(row)
    print(f"{name}: {kind}")
PY
got=$("$folder/venv/bin/python" "$folder/look.py" "$folder" 2>/dev/null | grep -E "^(torch|opset [0-9]+):")
echo "$got"
want="torch: zeros
opset 18: the mean of all values
opset 23: zeros"
[ "$got" = "$want" ] || { echo "changed" >&2; exit 1; }
