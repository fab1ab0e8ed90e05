"""Libraries that tell their makers of their use are told not to, before they are loaded.

ONNX Runtime's wheels (seen in 1.31 and 1.32) keep a device id under the home and send processor,
memory, the program's name and the texts of errors to their maker; MLflow, Weights & Biases and
Hugging Face count uses or report errors. A hospital's machine tells nobody. What the environment
says already stays: who wants to tell may.
"""

import os
from collections.abc import Mapping

SILENT: Mapping[str, str] = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "ORT_DISABLE_TELEMETRY": "1",
    "WANDB_ERROR_REPORTING": "false",
}
"""Variables that the libraries read when they are imported."""


def silence() -> None:
    """Set the variables, for this process and those that it starts."""
    for name, value in SILENT.items():
        os.environ.setdefault(name, value)
