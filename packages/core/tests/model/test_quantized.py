"""A frozen backbone in 4 bits under a float32 adapter (QLoRA), on the CPU."""

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors import safe_open

from medqua.core.adapter import QuasarConfig
from medqua.core.errors import BackboneError, BundleError
from medqua.core.findings import CHEXPERT_NAMES
from medqua.core.model import Bundle, MedQuaClassifier, load_backbone
from medqua.core.model.backbone import quantization
from medqua.core.vision.image import ImageSpec
from medqua.core.vision.processor import build_inputs

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # peft 0.21 reads it
)

IMAGES = list(np.random.default_rng(1).random((3, 112, 112), dtype=np.float32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pretrained")
    backbone = load_backbone(seed=3)
    backbone.model.save_pretrained(place)
    backbone.processor.save_pretrained(place)
    return place


def make(source: Path | str, quantize: str = "nf4") -> Bundle:
    backbone = load_backbone(source, quantize=quantize)
    config = QuasarConfig(n_qubits=2, max_depth=2, every=2, rank=4)
    torch.manual_seed(0)
    classifier = MedQuaClassifier(peft.get_peft_model(backbone.model, config), 14, tune="adapter")
    for name, parameter in classifier.named_parameters():
        if any(part in name for part in ("head", "gamma", ".shadow.")):
            torch.nn.init.normal_(parameter, std=0.3)
    return Bundle(classifier, backbone, ImageSpec(size=112), CHEXPERT_NAMES)


@pytest.mark.parametrize("source", ["folder", "tiny-cxr"])  # widths of 64 and 128; of 96
def test_matrices_take_four_bits_and_answers_stay_near(source: str, folder: Path):
    place = folder if source == "folder" else source
    whole, small = make(place, "none"), make(place)
    assert quantization(whole.backbone.model) == "none"
    assert quantization(small.backbone.model) == "nf4"
    expected, got = whole.logits(IMAGES), small.logits(IMAGES)
    assert not np.array_equal(expected, got)
    assert np.abs(got - expected).max() < 0.5 * np.abs(expected).max()
    layer = small.backbone.model.get_submodule("model.language_model.layers.0.self_attn.q_proj")
    assert layer.weight.dtype == torch.uint8
    assert layer.weight.numel() * 2 == layer.in_features * layer.out_features


def test_gradients_reach_the_adapter_after_an_evaluation(folder: Path):
    bundle = make(folder)
    before = bundle.logits(IMAGES)
    inputs = build_inputs(bundle.backbone.processor, IMAGES, bundle.prompt)
    bundle.classifier(**inputs).square().sum().backward()
    trained = {n: p for n, p in bundle.classifier.named_parameters() if p.requires_grad}
    assert all(parameter.dtype == torch.float32 for parameter in trained.values())
    assert any("theta" in name for name in trained)
    assert all(torch.isfinite(p.grad).all() for p in trained.values() if p.grad is not None)
    assert sum(float(p.grad.abs().sum()) > 0 for p in trained.values() if p.grad is not None) > 10
    np.testing.assert_array_equal(bundle.logits(IMAGES), before)


def test_a_bundle_keeps_the_four_bits_and_nothing_of_the_adapter(folder: Path, tmp_path: Path):
    bundle = make(folder)
    root = bundle.save(tmp_path / "bundle")
    with safe_open(root / "backbone" / "model.safetensors", "pt") as file:
        names = list(file.keys())
    assert not [name for name in names if "quasar" in name or "base_layer" in name]
    assert any(name.endswith("quant_state.bitsandbytes__nf4") for name in names)
    opened = Bundle.open(root)
    assert quantization(opened.backbone.model) == "nf4"
    np.testing.assert_array_equal(opened.logits(IMAGES), bundle.logits(IMAGES))
    again = opened.save(tmp_path / "again")  # what was opened can be saved
    np.testing.assert_array_equal(Bundle.open(again).logits(IMAGES), bundle.logits(IMAGES))


def test_without_bitsandbytes_the_error_names_it(folder: Path, tmp_path: Path, monkeypatch):
    root = make(folder).save(tmp_path / "bundle")
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *_: None if name == "bitsandbytes" else name
    )
    with pytest.raises(BackboneError, match=r"quantize = 'nf4' needs bitsandbytes.*\[nf4\]"):
        load_backbone(folder, quantize="nf4")
    with pytest.raises(BundleError, match=r"in 4 bits needs bitsandbytes"):
        Bundle.open(root)
