"""Run deptry over each package: its imports and its declared dependencies must agree."""

import subprocess
import sys
from pathlib import Path

PACKAGES = Path(__file__).resolve().parents[1] / "packages"

MODULES = {  # distribution -> importable names, where they differ
    "cuda-quantum-cu13": "cudaq",
    "dicom-anonymizer": "dicomanonymizer",
    "fpdf2": "fpdf",
    "mlflow-skinny": "mlflow",
    "pillow": "PIL",
    "pyjwt": "jwt",
    "python-gdcm": "gdcm",
    "scikit-learn": "sklearn",
    "tensorboard": "tensorboard",
} | {f"medqua-{package.name}": "medqua" for package in PACKAGES.iterdir()}

LOADED_BY_NAME = {  # never imported: found by the library that uses them
    "core": ["accelerate", "bitsandbytes", "pyjpegls", "pylibjpeg", "pylibjpeg-openjpeg"],
    "train": ["alembic", "sqlalchemy", "tensorboard"],  # by those they serve
    "serve": ["onnxscript"],  # by torch.onnx
    "ui": ["medqua-serve"],
}


def main() -> int:
    status = 0
    name_map = ",".join(f"{name}={module}" for name, module in MODULES.items())
    for package in sorted(PACKAGES.iterdir()):
        print(f"deptry {package.name}", flush=True)
        command = [sys.executable, "-m", "deptry", "src", "--no-ansi"]
        command += ["--package-module-name-map", name_map, "--known-first-party", "medqua"]
        if unused := LOADED_BY_NAME[package.name]:
            command += ["--per-rule-ignores", f"DEP002={'|'.join(unused)}"]
        status |= subprocess.run(command, cwd=package, check=False).returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
