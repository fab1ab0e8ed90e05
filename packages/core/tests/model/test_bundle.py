import json
import shutil
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medqua.core.adapter import QuasarConfig
from medqua.core.errors import BundleError, ConfigError, UnreadableImageError
from medqua.core.findings import CHEXPERT_NAMES, Calibration, Validation
from medqua.core.model import Bundle, MedQuaClassifier, TinyArchitecture, load_backbone
from medqua.core.model.manifest import MANIFEST, Manifest, read_manifest, write_manifest
from medqua.core.vision.image import ImageSpec

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # peft 0.21 reads it
)

SMALL = TinyArchitecture(
    vision_depth=1, vision_hidden=16, vision_heads=2, vision_mlp=16,
    decoder_layers=2, hidden=32, heads=2, mlp=32,
)  # fmt: skip
SPEC = ImageSpec(size=112)


def make(*, adapter: bool = True, lora: bool = False, tune: str = "full", **options) -> Bundle:
    backbone = load_backbone(architecture=SMALL, seed=5)
    model = backbone.model
    if adapter:
        config = QuasarConfig(
            n_qubits=2, max_depth=2, every=1, rank=4, lora={"r": 2} if lora else None
        )
        model = peft.get_peft_model(model, config)
    classifier = MedQuaClassifier(model, 14, tune=tune)
    torch.manual_seed(0)
    for name, parameter in classifier.named_parameters():
        if any(part in name for part in ("head", "gamma", ".shadow.", "lora_B")):
            torch.nn.init.normal_(parameter, std=0.3)
    options.setdefault("calibration", Calibration(tuple(0.5 + 0.1 * i for i in range(14))))
    return Bundle(classifier, backbone, SPEC, CHEXPERT_NAMES, **options)


def images(n: int = 3) -> list[np.ndarray]:
    return list(np.random.default_rng(1).random((n, 112, 112), dtype=np.float32))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(training_data={"name": "phantom", "sha256": "00"}).save(
        tmp_path_factory.mktemp("saved") / "bundle"
    )


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "bundle"))


def test_saving_and_opening_say_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    Bundle.open(make().save(tmp_path / "bundle"))
    assert capfd.readouterr() == ("", "")


def test_validation_figures_travel_with_the_model_and_may_be_absent(saved: Path, tmp_path: Path):
    assert Bundle.open(saved).validation is None
    random = np.random.default_rng(0)
    told = Validation.measure(random.random((60, 14)), random.random((60, 14)) < 0.4)
    folder = make(adapter=False, validation=told).save(tmp_path / "bundle")
    assert Bundle.open(folder).validation == told
    with pytest.raises(BundleError, match="of 2 labels for 14"):
        make(adapter=False, validation=Validation(told.labels[:2]))


@pytest.mark.parametrize(("adapter", "lora"), [(True, True), (True, False), (False, False)])
def test_open_gives_the_saved_logits_bit_for_bit(adapter, lora, tmp_path: Path):
    bundle = make(adapter=adapter, lora=lora)
    opened = Bundle.open(bundle.save(tmp_path / "bundle"))
    expected = bundle.logits(images())
    assert expected.std() > 0
    if adapter:
        with bundle.classifier.backbone.disable_adapter():
            assert not np.allclose(bundle.logits(images()), expected)
    assert np.array_equal(opened.logits(images()), expected)
    assert opened.calibration == bundle.calibration
    assert (opened.labels, opened.image, opened.prompt) == (CHEXPERT_NAMES, SPEC, bundle.prompt)
    again = opened.save(tmp_path / "again", embed_backbone=True)
    assert np.array_equal(Bundle.open(again).logits(images()), expected)


def test_trained_backbone_weights_travel(tmp_path: Path):
    bundle = make()
    with torch.no_grad():
        for parameter in bundle.classifier.parameter_groups()["backbone"]:
            parameter.add_(0.01 * torch.randn_like(parameter))
    opened = Bundle.open(bundle.save(tmp_path / "bundle"))
    assert np.array_equal(opened.logits(images()), bundle.logits(images()))


def test_the_adapter_is_told_and_its_thresholds_travel(saved: Path):
    manifest = Bundle.verify(saved)
    assert manifest.adapter["peft_type"] == "QUASAR"
    assert manifest.adapter["n_qubits"] == 2
    assert manifest.training_data == {"name": "phantom", "sha256": "00"}
    assert manifest.intended_use.startswith("Research use only")


def test_no_path_of_the_maker_is_told(tmp_path: Path):
    source = tmp_path / "secret-place" / "vlm"
    origin = load_backbone(architecture=SMALL)
    origin.model.save_pretrained(source)
    origin.processor.save_pretrained(source)
    backbone = load_backbone(source)
    model = peft.get_peft_model(
        backbone.model, QuasarConfig(n_qubits=2, max_depth=1, every=2, rank=2)
    )
    bundle = Bundle(MedQuaClassifier(model, 1), backbone, SPEC, ("Cardiomegaly",))
    root = bundle.save(tmp_path / "bundle")
    for path in root.rglob("*"):
        assert path.is_dir() or b"secret-place" not in path.read_bytes(), path


def test_predict_reads_files_in_order(saved: Path, tmp_path: Path):
    bundle = Bundle.open(saved)
    paths = []
    for i, level in enumerate((20, 120, 220)):
        paths.append(tmp_path / f"{i}.png")
        pixels = np.full((150, 130), level, np.uint8)
        pixels[i * 30 : i * 30 + 40] = 255 - level
        Image.fromarray(pixels).save(paths[-1])
    together = bundle.predict([paths[0], str(paths[1]), paths[2].read_bytes()], batch_size=2)
    alone = [bundle.predict([path])[0] for path in paths]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(
            [f.logit for f in one], [f.logit for f in other], rtol=1e-5, atol=1e-5
        )
    finding = together[0]["Cardiomegaly"]
    assert finding.code.value == "8186001"
    temperature = bundle.calibration.temperatures[1]
    assert finding.probability == pytest.approx(1 / (1 + np.exp(-finding.logit / temperature)))
    assert [f.label for f in together[0]] == list(CHEXPERT_NAMES)
    assert json.loads(json.dumps(together[0].to_dict()))["findings"][1]["label"] == "Cardiomegaly"
    assert bundle.predict([]) == []
    with pytest.raises(UnreadableImageError):
        bundle.predict([b"no image"])
    with pytest.raises(ConfigError):
        bundle.predict([paths[0]], batch_size=0)


def test_one_flipped_byte_in_any_file_is_caught(saved: Path, copy: Path):
    files = [path for path in sorted(saved.rglob("*")) if path.is_file()]
    assert len(files) >= 9
    for path in files:
        name = path.relative_to(saved).as_posix()
        content = path.read_bytes()
        for position in (0, len(content) // 2, len(content) - 1):
            spoiled = bytearray(content)
            spoiled[position] ^= 1
            (copy / name).write_bytes(bytes(spoiled))
            with pytest.raises(BundleError, match=path.name.replace(".", r"\.")):
                Bundle.open(copy)
        (copy / name).write_bytes(content)
    Bundle.verify(copy)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_byte_of_the_manifest_can_change_unseen(saved: Path, data):
    content = bytearray((saved / MANIFEST).read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    folder = saved.parent / "changed"
    if not folder.exists():
        shutil.copytree(saved, folder)
    (folder / MANIFEST).write_bytes(bytes(content))
    with pytest.raises(BundleError, match=r"bundle\.json"):
        read_manifest(folder)


def rewrite(root: Path, **changes) -> None:
    """Change the manifest as its own maker would, digest included."""
    content = json.loads((root / MANIFEST).read_bytes())
    content.pop("digest")
    write_manifest(root, Manifest(**(content | changes)))


def test_missing_and_extra_files_are_named(copy: Path):
    (copy / "processor" / "evil.py").write_text("print()")
    with pytest.raises(BundleError, match=r"processor/evil\.py.*may not hold"):
        Bundle.open(copy)
    (copy / "processor" / "evil.py").unlink()
    (copy / "notes.txt").write_text("")
    with pytest.raises(BundleError, match=r"notes\.txt is not a file of this bundle"):
        Bundle.open(copy)
    (copy / "notes.txt").unlink()
    head = copy / "head.safetensors"
    head.rename(copy.parent / "head")
    with pytest.raises(BundleError, match=r"head\.safetensors is missing"):
        Bundle.open(copy)
    head.symlink_to(copy.parent / "head")
    with pytest.raises(BundleError, match="is a link"):
        Bundle.open(copy)


@pytest.mark.parametrize(
    "path", ["../outside.json", "/etc/passwd.json", "a/../../b.json", "a\\b.json", "C:/x.json", "."]
)
def test_paths_that_lead_out_are_refused(copy: Path, path: str):
    files = json.loads((copy / MANIFEST).read_bytes())["files"]
    rewrite(copy, files=files | {path: "00"})
    with pytest.raises(BundleError, match="leads out of the bundle"):
        Bundle.open(copy)


def test_code_cannot_be_listed(copy: Path):
    files = json.loads((copy / MANIFEST).read_bytes())["files"]
    for path in ("run.py", "model.bin", "x.pkl", "y.so"):
        rewrite(copy, files=files | {path: "00"})
        with pytest.raises(BundleError, match="may not hold"):
            Bundle.open(copy)


def test_schema_and_keys_are_checked(copy: Path):
    original = (copy / MANIFEST).read_bytes()
    content = json.loads(original)
    for change, message in (
        ({"schema": 2}, "upgrade MedQua"),
        ({"schema": "1"}, "whole number"),
        ({"promt": "x"}, "did you mean 'prompt'"),
        ({"labels": "Edema"}, "'labels'"),
        ({"image_first": 1}, "'image_first'"),
    ):
        (copy / MANIFEST).write_text(json.dumps(content | change))
        with pytest.raises(BundleError, match=message):
            Bundle.open(copy)
    del content["pooling"]
    (copy / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(BundleError, match="no key 'pooling'"):
        Bundle.open(copy)
    for text in ("", "[]", "{", '{"schema": NaN}', '{"schema": 1, "schema": 1}', "[" * 10**5):
        (copy / MANIFEST).write_text(text)
        with pytest.raises(BundleError, match=r"bundle\.json"):
            Bundle.open(copy)
    (copy / MANIFEST).unlink()
    with pytest.raises(BundleError, match=r"no bundle\.json"):
        Bundle.open(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": {"profile": "mimic"}}, "profile"),
        ({"image": {"sise": 224}}, "sise"),
        ({"calibration": {"method": "isotonic", "temperatures": [1.0]}}, "needed the keys"),
        ({"calibration": {"method": "temperature", "temperatures": [1.0]}}, "temperatures for 14"),
        ({"pooling": "max"}, "visual_mean"),
        ({"labels": ["Edema"]}, "do not fit"),
        ({"backbone": {"source": "tiny", "dtype": "float32"}}, "either"),
        ({"backbone": {"source": "x", "dtype": "float32", "folder": "../x"}}, "either"),
        ({"backbone": {"source": "x", "dtype": "cuda", "folder": "backbone"}}, "either"),
        ({"adapter": None}, "adapter"),
        ({"adapter": {"peft_type": "XLORA"}}, "adapter"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(copy: Path, change, message):
    rewrite(copy, **change)
    with pytest.raises(BundleError, match=message):
        Bundle.open(copy)


def test_save_replaces_nothing_but_a_bundle(saved: Path, tmp_path: Path):
    bundle = Bundle.open(saved)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(BundleError, match="exists"):
            bundle.save(tmp_path / "mine", embed_backbone=True, overwrite=overwrite)
    target = bundle.save(tmp_path / "bundle", embed_backbone=True)
    with pytest.raises(BundleError, match="exists"):
        bundle.save(target, embed_backbone=True)
    bundle.save(target, embed_backbone=True, overwrite=True)
    Bundle.verify(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "mine"]


def test_a_failed_save_leaves_nothing(tmp_path: Path):
    bundle = make(adapter=False, training_data={"name": "\ud800"})  # no UTF-8 for half a character
    with pytest.raises(UnicodeEncodeError):
        bundle.save(tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_hub_backbones_are_named_by_commit(tmp_path: Path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / "models--medqua-tests--small"
    snapshot = repository / "snapshots" / commit
    origin = load_backbone(architecture=SMALL)
    origin.model.save_pretrained(snapshot)
    origin.processor.save_pretrained(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    cache = {"cache_dir": tmp_path / "cache", "local_files_only": True}
    backbone = load_backbone("medqua-tests/small", **cache)
    model = peft.get_peft_model(
        backbone.model, QuasarConfig(n_qubits=2, max_depth=1, every=2, rank=2, gamma_init=0.5)
    )
    classifier = MedQuaClassifier(model, 2)
    torch.nn.init.normal_(classifier.head.weight)
    bundle = Bundle(classifier, backbone, SPEC, ("Edema", "Mass"))
    root = bundle.save(tmp_path / "bundle")
    assert not (root / "backbone").exists()
    opened = Bundle.open(root, **cache)
    assert np.array_equal(opened.logits(images()), bundle.logits(images()))
    whole = Bundle.open(bundle.save(tmp_path / "whole", embed_backbone=True))
    assert np.array_equal(whole.logits(images()), bundle.logits(images()))
    classifier.set_tunable("full")
    with pytest.raises(BundleError, match="let the bundle hold it"):
        bundle.save(tmp_path / "again", embed_backbone=False)


def test_labels_and_temperatures_must_fit_the_head():
    bundle = make(adapter=False)
    with pytest.raises(BundleError, match="14 outputs"):
        Bundle(bundle.classifier, bundle.backbone, SPEC, ("Edema",))
    with pytest.raises(BundleError, match="12 different"):
        Bundle(bundle.classifier, bundle.backbone, SPEC, ("Edema", "Edema", *CHEXPERT_NAMES[:12]))
    with pytest.raises(BundleError, match="1 temperatures"):
        make(adapter=False, calibration=Calibration((1.0,)))
