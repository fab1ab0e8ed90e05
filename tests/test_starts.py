"""What each command may import before its first answer: a heavy library stands where it is used.

A module that is new in a list fails here, with the chain of modules that brought it.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from medqua.ui.worklist import SAMPLES

HEAVY = [
    "accelerate", "bitsandbytes", "cudaq", "datasets", "diffusers", "fastapi", "fpdf", "gradio",
    "highdicom", "huggingface_hub", "jaxtyping", "matplotlib", "mlflow", "numpy", "onnx",
    "onnxruntime", "onnxscript", "optuna", "pandas", "peft", "polars", "pydicom", "pynetdicom",
    "ray", "scipy", "sklearn", "tokenizers", "torch", "torchvision", "transformers", "triton",
    "uvicorn", "wandb",
]  # fmt: skip

PROBE = f"""
import json, sys

chains = {{}}

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name in {HEAVY} and name not in chains:
            frame, chain = sys._getframe(1), []
            while frame is not None:
                module = frame.f_globals.get("__name__", "")
                if "importlib" not in module and chain[-1:] != [module]:
                    chain.append(module)
                frame = frame.f_back
            chains[name] = " > ".join(reversed(chain[:-1]))

sys.meta_path.insert(0, Watch())
try:
    exec(sys.argv[1])
except SystemExit:
    pass
print()
print(json.dumps({{name: chain for name, chain in chains.items() if sys.modules.get(name)}}))
"""


def imported(code: str) -> dict[str, str]:
    """Run code in a process of its own; return the heavy libraries it imported, and who did."""
    command = [sys.executable, "-c", PROBE, code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    chains: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return chains


def command(module: str, *words: str | Path) -> str:
    """Return the code of a command line."""
    argv = [module, *map(str, words)]
    return f"sys.argv = {argv}; import {module}.__main__ as command; command.main()"


def check(code: str, expected: str) -> None:
    chains = imported(code)
    more = {name: chain for name, chain in chains.items() if name not in expected.split()}
    assert not more
    assert set(chains) == set(expected.split())  # less than is listed: shorten the list


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("medqua.core", ("draw", "--help")),
        ("medqua.core", ("draw", "--qubits", "3")),
        ("medqua.core", ("draw", "--format", "qasm")),
        ("medqua.train", ("mimic", "--help")),
        ("medqua.train", ("report", "--help")),
        ("medqua.train", ("sweep", "--help")),
        ("medqua.train", ("push", "--help")),
        ("medqua.serve", ("predict", "--help")),
        ("medqua.serve", ("export", "--help")),
        ("medqua.serve", ("app", "--help")),
        ("medqua.serve", ("batch", "--help")),
        ("medqua.ui", ("--help",)),
    ],
)
def test_help_and_drawings_import_nothing_heavy(module: str, words: tuple[str, ...]):
    check(command(module, *words), "")


def test_predict_with_an_export_imports_what_runs_it(export_folder: Path, shared_data: Path):
    file = shared_data / "dicom" / "cxr_txrv_CR_PA_jpegbaseline_mono2.dcm"
    check(command("medqua.serve", "predict", export_folder, file), "numpy onnxruntime")


def test_a_model_worker_imports_what_runs_an_export(export_folder: Path):
    code = f"""
from pathlib import Path
import medqua.serve.processes.worker
from medqua.serve.inference.engine import open_engine
import numpy as np
open_engine(Path({str(export_folder)!r})).read([np.zeros((112, 112), np.float32)])
"""
    check(code, "numpy onnxruntime")


def test_predict_with_a_bundle_does_without_the_library_for_4_bits():
    words = command("medqua.serve", "predict", SAMPLES / "phantom-pa-effusion.dcm")
    chains = imported(words)
    assert {"torch", "transformers", "peft"} <= set(chains)
    assert not set(chains) & {"bitsandbytes", "onnxruntime", "gradio", "matplotlib", "polars"}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        pytest.param("import medqua.core.vision.worker", "numpy pydicom", id="decoder"),
        pytest.param("import medqua.serve.processes.worker", "numpy", id="model worker"),
        pytest.param("import medqua.serve.report.sr", "highdicom numpy pydicom", id="clerk"),
        pytest.param(
            "import medqua.serve.http.app, medqua.serve.http.server",
            "fastapi numpy pydicom pynetdicom uvicorn",
            id="app",
        ),
        pytest.param("import medqua.serve.offline.run", "numpy polars pydicom", id="batch"),
        pytest.param(
            "import uvicorn, medqua.ui.app, medqua.ui.archive, medqua.ui.server",
            "numpy uvicorn",
            id="viewer, to its first page",
        ),
    ],
)
def test_a_process_imports_what_it_needs(code: str, expected: str):
    check(code, expected)


def test_the_whole_page_of_the_viewer_imports_no_model(tmp_path: Path):
    code = f"""
import asyncio
from pathlib import Path
from medqua.ui.app import Settings, create_app
app = create_app(Settings(samples=True, audit=Path({str(tmp_path)!r}) / "audit.jsonl"))
asyncio.run(app.state.page.build())
assert len(app.state.page.routes)
"""
    chains = imported(code)
    assert {"gradio", "pandas"} <= set(chains)  # Gradio itself imports pandas
    assert not set(chains) & {"torch", "transformers", "peft", "bitsandbytes", "onnxruntime"}
    matplotlib = chains.get("matplotlib", "gradio")
    assert "gradio" in matplotlib, matplotlib
