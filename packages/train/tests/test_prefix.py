import json
from pathlib import Path

import numpy as np
import pytest
import torch

from medqua.core.errors import DataError
from medqua.train.data.dataset import Collator
from medqua.train.evaluation.predict import predict
from medqua.train.inputs import make_splits, open_data_set
from medqua.train.model import build_model
from medqua.train.prefix.cut import frozen_layers, skipping
from medqua.train.prefix.prepare import prepare
from medqua.train.prefix.states import PrefixDataset
from medqua.train.recipe import load_recipe

TO_Q = 'adapter.lora={r=2, target_modules=["layers.1.self_attn.q_proj"]}'

FROZEN = ("backbone.source=tiny-cxr", "backbone.tune=auto", "adapter.every=2")


@pytest.fixture
def built(small, images):
    def build(*overrides: str):
        keys = [key for key in small if not key.startswith("backbone.")]
        keys += ["augmentation.rotation=0", "augmentation.shift=0", "augmentation.zoom=0"]
        keys += ["augmentation.contrast=0", "augmentation.brightness=0", f"data.root={images}"]
        recipe = load_recipe("folder", [*keys, *overrides])
        data = open_data_set(recipe.data, lambda _: None)
        splits = make_splits(recipe, data)
        classifier, backbone = build_model(recipe, len(data.manifest.labels))
        torch.manual_seed(1)
        with torch.no_grad():  # both start at zero, where every path gives equal logits
            classifier.head.weight.normal_()
            for name, parameter in classifier.named_parameters():
                if name.endswith("gamma"):
                    parameter.fill_(0.7)
        return classifier, splits, Collator(backbone.processor, recipe.backbone.prompt)

    return build


def ready(built, folder: Path, *overrides: str):
    classifier, splits, collator = built(*overrides)
    found = prepare(classifier, splits, collator, folder, {"data": "x"}, batch_size=5)
    assert not isinstance(found, str), found
    return classifier, splits, collator, *found


@pytest.mark.parametrize(
    ("overrides", "layers"),
    [
        (("adapter.every=2",), 2),
        (("adapter.blocks=last",), None),
        (("adapter.every=2", "backbone.tune=head"), 2),
        (("adapter.every=2", "adapter.lora={r=2}"), 0),
        (("adapter.every=4", TO_Q), 1),
    ],
)
def test_logits_are_those_of_the_whole_model(built, tmp_path, overrides, layers):
    keys = ("backbone.source=tiny-cxr", "backbone.tune=auto", *overrides)
    classifier, splits, collator, prefix, kept, fast = ready(built, tmp_path, *keys)
    if layers is not None:
        assert prefix.layers == layers
    whole = predict(classifier, splits["test"], collator, batch_size=8)
    with skipping(classifier, prefix):
        quick = predict(classifier, kept["test"], fast, batch_size=8)
    assert np.abs(whole.logits).max() > 0.1
    np.testing.assert_allclose(quick.logits, whole.logits, atol=1e-6 * np.abs(whole.logits).max())
    after = predict(classifier, splits["test"], collator, batch_size=8)
    np.testing.assert_array_equal(after.logits, whole.logits)  # nothing is left behind


def test_gradients_are_those_of_the_whole_model(built, tmp_path):
    classifier, splits, collator, prefix, kept, fast = ready(built, tmp_path, *FROZEN)
    gradients = []
    for dataset, collate, quick in ((splits, collator, False), (kept, fast, True)):
        classifier.train()
        classifier.zero_grad()
        batch = collate([dataset["train"][i] for i in range(6)])
        inputs = {k: v for k, v in batch.items() if k not in ("labels", "index", "readable")}
        if quick:
            with skipping(classifier, prefix):
                classifier(**inputs).square().sum().backward()
        else:
            classifier(**inputs).square().sum().backward()
        named = classifier.named_parameters()
        gradients.append({name: p.grad for name, p in named if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert any("bottleneck.theta" in name for name in gradients[0])
    for name, whole in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (("backbone.source=tiny-cxr", "backbone.tune=full"), "the backbone is trained"),
        ((*FROZEN, "augmentation.shift=0.1"), "augmented"),
    ],
)
def test_what_changes_every_epoch_is_not_kept(built, tmp_path, overrides, why):
    classifier, splits, collator = built(*overrides)
    found = prepare(classifier, splits, collator, tmp_path, {}, batch_size=5)
    assert isinstance(found, str)
    assert why in found


def test_dropout_in_the_backbone_is_not_kept(built):
    classifier, _, _ = built(*FROZEN)
    assert frozen_layers(classifier) == 2
    model = classifier.backbone.get_base_model()
    model.config.get_text_config(decoder=True).attention_dropout = 0.1
    assert frozen_layers(classifier) == "the backbone's attention drops out"


def test_arms_and_seeds_share_states_and_other_prompts_do_not(built, tmp_path):
    ready(built, tmp_path, *FROZEN)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert len(times) == 3
    ready(built, tmp_path, *FROZEN, "run.seed=3", "adapter.rank=2", "adapter.routing=random")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")} == times
    ready(built, tmp_path, *FROZEN, "backbone.prompt=Other")
    assert len(list(tmp_path.rglob("*.npy"))) == 6


def test_a_flipped_byte_is_found_when_it_is_read(built, tmp_path):
    *_, kept, _ = ready(built, tmp_path, *FROZEN)
    path = next(tmp_path.rglob("train.npy"))
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))
    kept["train"][0]
    with pytest.raises(DataError, match="differs from its checksum"):
        kept["train"][len(kept["train"]) - 1]


def test_states_that_were_not_finished_are_computed_anew(built, tmp_path):
    ready(built, tmp_path, *FROZEN)
    done = next(tmp_path.rglob("prefix.json"))
    assert json.loads(done.read_text())["layers"] == 2
    done.unlink()
    (done.parent / "train.npy").write_bytes(b"half")
    ready(built, tmp_path, *FROZEN)
    assert done.is_file()


def test_states_cut_short_are_refused(built, tmp_path):
    _, splits, _, _, _, _ = ready(built, tmp_path, *FROZEN)
    path = next(tmp_path.rglob("test.npy"))
    np.save(path, np.load(path)[:-1])
    with pytest.raises(DataError, match="computed anew"):
        PrefixDataset(splits["test"], path.parent, "test")


def test_bfloat16_is_kept_bit_for_bit(built, tmp_path):
    classifier, splits, collator, prefix, kept, fast = ready(
        built, tmp_path, *FROZEN, "backbone.dtype=bfloat16"
    )
    whole = predict(classifier, splits["test"], collator, batch_size=8).logits
    with skipping(classifier, prefix):
        quick = predict(classifier, kept["test"], fast, batch_size=8).logits
    assert np.load(kept["test"].path).dtype == np.int16
    np.testing.assert_allclose(quick, whole, rtol=0.05, atol=0.02 * np.abs(whole).max())


def test_an_unreadable_image_stays_ignored(built, images, tmp_path):
    import shutil

    root = tmp_path / "images"
    shutil.copytree(images, root)
    overrides = (*FROZEN, "data.skip_unreadable=true")
    _, splits, _ = built(*overrides, f"data.root={root}")
    bad = splits["train"].images[3]
    (root / bad).write_bytes(b"no image")
    *_, kept, fast = ready(built, tmp_path / "states", *overrides, f"data.root={root}")
    batch = fast([kept["train"][i] for i in range(5)])
    assert batch["readable"].tolist() == [True, True, True, False, True]
    assert batch["labels"][3].tolist() == [-1.0, -1.0]
    assert kept["train"].unreadable() == [bad]
