"""No library tells its maker of its use: nothing appears where ONNX Runtime keeps what it sends."""

import os
import subprocess
import sys
from pathlib import Path

RUN = """
import medqua.{package}
import onnxruntime as ort
from onnx import TensorProto, helper

value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "g", value[:1], value[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
ort.InferenceSession(model.SerializeToString()).run(None, {{"x": [-1.0]}})
from mlflow.telemetry.utils import is_telemetry_disabled
from huggingface_hub import constants
assert is_telemetry_disabled()
assert constants.HF_HUB_DISABLE_TELEMETRY
"""


def run(program: str, home: Path) -> list[Path]:
    """What a program leaves under its home."""
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "PYTHONPATH", "VIRTUAL_ENV")}
    folders = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=kept | folders, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [path for path in home.rglob("*") if "onnxruntime" in path.name]


def test_onnx_runtime_keeps_and_sends_nothing(tmp_path: Path) -> None:
    for package in ("core", "serve"):
        assert run(RUN.format(package=package), tmp_path / package) == []


def test_who_wants_to_tell_may(tmp_path: Path) -> None:
    program = """
import os
os.environ["WANDB_ERROR_REPORTING"] = "true"
import medqua.core
assert os.environ["WANDB_ERROR_REPORTING"] == "true"
assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
"""
    assert run(program, tmp_path) == []
