import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig

import medqua.core.model
from medqua.core.errors import BackboneError, ConfigError
from medqua.core.model import TinyArchitecture, load_backbone
from medqua.core.vision.processor import build_inputs

SMALL = TinyArchitecture(
    vision_depth=1, vision_hidden=16, vision_heads=2, vision_mlp=16,
    decoder_layers=2, hidden=32, heads=2, mlp=32,
)  # fmt: skip


def weights(backbone) -> dict[str, torch.Tensor]:
    return dict(backbone.model.state_dict())


def equal(a, b) -> bool:
    one, two = weights(a), weights(b)
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    backbone = load_backbone(architecture=SMALL)
    backbone.model.save_pretrained(tmp_path)
    backbone.processor.save_pretrained(tmp_path)
    return tmp_path


def test_tiny_depends_on_its_seed_alone():
    torch.manual_seed(1)
    first = load_backbone(architecture=SMALL, seed=7)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    second = load_backbone(architecture=SMALL, seed=7)
    assert torch.equal(state, torch.random.get_rng_state())
    assert equal(first, second)
    assert not equal(first, load_backbone(architecture=SMALL, seed=8))


def test_default_tiny_model_is_what_its_page_says():
    backbone = load_backbone()
    text = backbone.model.config.get_text_config(decoder=True)
    assert (text.num_hidden_layers, text.hidden_size) == (6, 128)
    assert not backbone.model.training
    image = np.zeros((224, 224), np.float32)
    inputs = build_inputs(backbone.processor, [image], "Name the findings.")
    assert int((inputs["input_ids"] == backbone.model.config.image_token_id).sum()) == 64
    with torch.no_grad():
        hidden = backbone.model.model(**inputs).last_hidden_state
    assert hidden.shape == (1, inputs["input_ids"].shape[1], 128)
    assert torch.isfinite(hidden).all()


def test_folder_loads_whole_whatever_the_random_state(folder: Path):
    torch.manual_seed(1)
    first = load_backbone(folder)
    torch.manual_seed(2)
    second = load_backbone(folder)
    assert equal(first, second)
    assert equal(first, load_backbone(architecture=SMALL))
    assert (first.source, first.revision) == (str(folder), None)


def test_lower_precision(folder: Path):
    backbone = load_backbone(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in backbone.model.parameters()} == {torch.bfloat16}


def test_a_missing_weight_is_refused(folder: Path):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = next(n for n in tensors if "layers.1.mlp" in n)
    del tensors[name]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(BackboneError, match=r"1 missing, 0 of another shape .*layers\.1\.mlp"):
        load_backbone(folder)


def test_a_weight_of_another_shape_is_refused(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 48
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BackboneError, match="6 of another shape"):
        load_backbone(folder)


def test_folder_without_weights_is_refused(folder: Path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match=r"needed config\.json and model\.safetensors"):
        load_backbone(folder)


def test_pickled_weights_are_refused(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(BackboneError, match="safetensors"):
        load_backbone(folder)


def test_folder_without_processor_is_refused(folder: Path):
    (folder / "processor_config.json").unlink()
    with pytest.raises(BackboneError, match="no usable processor"):
        load_backbone(folder)


def test_text_model_is_refused(tmp_path: Path):
    BertConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="does not read images"):
        load_backbone(tmp_path)


def test_unknown_architecture_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "no_such_model"}')
    with pytest.raises(BackboneError, match="cannot load"):
        load_backbone(tmp_path)


def test_unreachable_sources_say_what_to_do(tmp_path: Path):
    with pytest.raises(BackboneError, match="no folder at"):
        load_backbone(tmp_path / "absent")
    with pytest.raises(BackboneError, match="use 'tiny-cxr' to work offline"):
        load_backbone("medqua-tests/absent", cache_dir=tmp_path, local_files_only=True)


def test_hub_cache_gives_the_commit(folder: Path, tmp_path: Path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "cache" / "models--medqua-tests--small"
    snapshot = cache / "snapshots" / commit
    snapshot.parent.mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    files = [path for path in folder.iterdir() if path.is_file()]
    snapshot.mkdir()
    for path in files:
        path.rename(snapshot / path.name)
    backbone = load_backbone(
        "medqua-tests/small", cache_dir=tmp_path / "cache", local_files_only=True
    )
    assert (backbone.source, backbone.revision) == ("medqua-tests/small", commit)
    assert backbone.model.name_or_path == "medqua-tests/small"
    assert equal(backbone, load_backbone(architecture=SMALL))


def test_contradictory_sizes_are_refused():
    for change in ({"hidden": 33}, {"vision_hidden": 10}, {"heads": 0}, {"vocabulary": 100}):
        with pytest.raises(ConfigError):
            dataclasses.replace(SMALL, **change)
    with pytest.raises(BackboneError, match="only the source 'tiny'"):
        load_backbone("owner/name", architecture=SMALL)


def test_the_shipped_backbone_is_whole_and_says_what_it_is():
    shipped, again = load_backbone("tiny-cxr"), load_backbone("tiny-cxr")
    assert shipped.source == "tiny-cxr"
    assert shipped.revision is None
    assert all(
        torch.equal(one, two)
        for one, two in zip(shipped.model.parameters(), again.model.parameters(), strict=True)
    )
    inputs = build_inputs(shipped.processor, [np.full((224, 224), 0.5, np.float32)], "Name it.")
    with torch.no_grad():
        hidden = shipped.model.model(**inputs).last_hidden_state
    assert torch.isfinite(hidden).all()
    card = (Path(medqua.core.model.__path__[0]) / "tiny_cxr" / "README.md").read_text()
    assert "not for diagnosis" in card
