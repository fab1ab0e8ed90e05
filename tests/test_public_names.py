"""The names that other code relies on are there, and importing the package stays cheap."""

import subprocess
import sys

import medqua.core

CONTRACT = {
    "Ansatz",
    "Bundle",
    "ClassicalShadow",
    "EntropyRouter",
    "ImageSpec",
    "NoiseModel",
    "QuasarConfig",
    "QuasarModel",
    "VariationalBottleneck",
    "find_decoder_layers",
    "read_image",
}


def test_every_public_name_loads_from_its_home():
    assert set(medqua.core.__all__) == CONTRACT
    for name in CONTRACT:
        assert getattr(medqua.core, name).__name__ == name


def test_importing_the_package_loads_neither_torch_nor_transformers():
    heavy = {"torch", "transformers", "cudaq"}
    code = f"import sys, medqua.core; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
