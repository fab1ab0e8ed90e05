"""A small folder of images that a model can learn from."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SMALL = (
    "image.size=56",
    "optim.batch_size=8",
    "optim.epochs=2",
    "run.log_every=1",
    "run.threads=1",
    "evaluation.bootstrap=20",
    "evaluation.batch_size=8",
    "evaluation.plots=false",  # almost half of such a run
    "backbone.source=tiny",
    "backbone.tune=full",
    "backbone.prompt=Findings?",
    "backbone.tiny.decoder_layers=2",
    "backbone.tiny.vision_depth=1",
    "backbone.tiny.hidden=32",
    "backbone.tiny.heads=2",
    "backbone.tiny.mlp=32",
    "adapter.every=1",
    "adapter.n_qubits=2",
    "adapter.max_depth=1",
    "data.fractions.validate=0.2",
    "data.fractions.test=0.2",
)


@pytest.fixture(scope="session")
def small() -> tuple[str, ...]:
    """Overrides for the recipe `folder` that make a run of seconds."""
    return SMALL


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty patients with an image each: `Mass` is a bright square, `Edema` is chance."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    lines = ["file,patient_id,Mass,Edema"]
    for i in range(40):
        image = rng.integers(0, 90, (64, 64), dtype=np.uint8)
        if i % 2:
            image[20:40, 20:40] += 120
        Image.fromarray(image).save(root / f"{i}.png")
        lines.append(f"{i}.png,p{i},{i % 2},{int(rng.integers(0, 2))}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root
