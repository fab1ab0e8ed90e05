"""A small bundle, built once."""

from pathlib import Path

import peft
import pytest
import torch

from medqua.core.adapter import QuasarConfig
from medqua.core.findings import CHEXPERT_NAMES, Calibration
from medqua.core.model import Bundle, MedQuaClassifier, TinyArchitecture, load_backbone
from medqua.core.vision.image import ImageSpec

SMALL = TinyArchitecture(
    vision_depth=1, vision_hidden=16, vision_heads=2, vision_mlp=16,
    decoder_layers=2, hidden=32, heads=2, mlp=32,
)  # fmt: skip


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio."""
    return "asyncio"


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an adapter and a random head, saved."""
    backbone = load_backbone(architecture=SMALL, seed=5)
    config = QuasarConfig(n_qubits=2, max_depth=2, every=1, rank=4, engine="dense")
    classifier = MedQuaClassifier(peft.get_peft_model(backbone.model, config), 14, tune="full")
    torch.manual_seed(0)
    for name, parameter in classifier.named_parameters():
        if "head" in name or "gamma" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    bundle = Bundle(
        classifier,
        backbone,
        ImageSpec(size=112),
        CHEXPERT_NAMES,
        calibration=Calibration((2.0,) * 14),
    )
    return bundle.save(tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture(scope="session")
def bundle(bundle_folder: Path) -> Bundle:
    """The same, opened."""
    return Bundle.open(bundle_folder)
