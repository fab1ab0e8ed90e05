import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from sklearn.metrics import roc_auc_score

from medqua.core.console import run
from medqua.core.errors import BundleError, ConfigError, DataError
from medqua.core.model import Bundle
from medqua.core.sealed import sha256
from medqua.core.vision.image import ImageSpec
from medqua.serve.__main__ import app
from medqua.serve.export import ExportOptions, parity, triton, validation
from medqua.serve.inference.manifest import MANIFEST, SEAL, read_export
from medqua.serve.inference.session import ServingSession


@pytest.fixture
def copy(export_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(export_folder, tmp_path / "export")


def test_report_is_sealed_with_the_graphs(export_folder: Path, bundle_folder: Path):
    manifest, parts = read_export(export_folder)
    assert manifest.bundle == sha256(bundle_folder / "bundle.json")
    assert manifest.stages == ["stage_0.onnx", "stage_1.onnx", "stage_2.onnx"]
    assert [adapter.kind for adapter in parts.adapters] == ["circuit"] * 2
    assert manifest.single == triton.GRAPH
    report = manifest.parity
    assert report["count"] == 6
    assert report["images_sha256"]
    for name in ("stages", "single", "single_against_stages"):
        assert report[name]["max_logit_error"] <= 1e-4
        assert report[name]["route_agreement"] == 1.0
        assert report[name]["tokens_routed"] > 0
        assert report[name]["auroc"]["labels"] == 12  # one column unknown, one missing
        assert report[name]["auroc"]["max_difference"] == 0.0


def test_graphs_are_dynamic_and_of_the_stated_opset(export_folder: Path):
    manifest, _ = read_export(export_folder)
    for path in ("vision.onnx", *manifest.stages, str(manifest.single)):
        graph = onnx.load(export_folder / path)
        onnx.checker.check_model(graph)
        (opset,) = [entry.version for entry in graph.opset_import if entry.domain == ""]
        assert opset == manifest.opset
        first = graph.graph.input[0].type.tensor_type.shape.dim[0]
        assert first.dim_param == "batch"


def test_triton_configuration_is_that_of_its_graph(export_folder: Path):
    folder = export_folder / "triton" / "medqua"
    session = ort.InferenceSession(folder / "1" / "model.onnx")
    text = (folder / "config.pbtxt").read_text()
    kinds = {"TYPE_FP32": "tensor(float)", "TYPE_BOOL": "tensor(bool)"}
    pattern = r'name: "(\w+)" data_type: (\w+) dims: \[ ([\d, ]+) \]'
    told = {
        name: (kinds[kind], [int(n) for n in dims.split(",")])
        for name, kind, dims in re.findall(pattern, text)
    }
    values = [*session.get_inputs(), *session.get_outputs()]
    assert told == {value.name: (value.type, value.shape[1:]) for value in values}
    assert all(value.shape[0] == "batch" for value in values)
    assert text.count("{") == text.count("}")
    labels = (folder / "labels.txt").read_text().splitlines()
    assert labels == list(read_export(export_folder)[0].labels)


def change_byte(folder: Path) -> None:
    data = bytearray((folder / "stage_1.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "stage_1.onnx").write_bytes(data)


def change_report(folder: Path) -> None:
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"count": 6', '"count": 7'))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_byte, "stage_1.onnx was altered"),
        (change_report, "does not match its own digest"),
        (lambda folder: (folder / "vision.onnx").unlink(), "vision.onnx is missing"),
        (lambda folder: (folder / "more.onnx").write_bytes(b""), "more.onnx is not a file"),
        (lambda folder: (folder / "a.py").write_bytes(b""), "of a kind"),
        (lambda folder: (folder / "b.txt").symlink_to("vision.onnx"), "is a link"),
        (lambda folder: (folder / MANIFEST).unlink(), "serve:export"),
    ],
)
def test_damage_is_found_before_anything_is_loaded(copy: Path, damage, message: str):
    damage(copy)
    with pytest.raises(BundleError, match=message):
        ServingSession.open(copy)


def reseal(folder: Path, **changes: object) -> None:
    content = json.loads((folder / MANIFEST).read_bytes())
    content.pop("digest")
    SEAL.write(folder, content | {"files": SEAL.hash_files(folder)} | changes)


def test_graph_of_another_opset_is_refused(copy: Path):
    graph = onnx.load(copy / "stage_0.onnx")
    graph.opset_import[0].version = 99
    (copy / "stage_0.onnx").write_bytes(graph.SerializeToString())
    reseal(copy)
    with pytest.raises(BundleError, match=r"cannot load stage_0\.onnx.*export again"):
        ServingSession.open(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "upgrade MedQua"),
        ({"stages": ["stage_0.onnx"]}, "one adapter stands between"),
        ({"stages": ["a.onnx"]}, "a.onnx is not among"),
        ({"labels": ["a"]}, "temperatures for 1 labels"),
        ({"geometry": {}}, "does not fit together|geometry"),
        ({"adapters": [{"layer": "x"}] * 2}, "does not fit together"),
        ({"image": {"size": -1}}, "does not fit together"),
        ({"other": 1}, "unknown key"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(copy: Path, changes, message: str):
    reseal(copy, **changes)
    with pytest.raises(BundleError, match=message):
        ServingSession.open(copy)


def test_what_is_there_is_not_replaced(bundle_folder: Path, tmp_path: Path, capsys):
    (tmp_path / "kept.txt").write_text("kept")
    for options in ([], ["--overwrite"]):
        assert run(app, ["export", str(bundle_folder), str(tmp_path), *options]) == 2
        assert "exists: give another folder" in capsys.readouterr().err.replace("\n", " ")
    assert (tmp_path / "kept.txt").read_text() == "kept"
    with pytest.raises(ConfigError, match="precision is 'fp8'"):
        ExportOptions(precision="fp8")


@pytest.mark.parametrize("broken", ["max_logit_error", "max_probability_error", "route_agreement"])
def test_figures_outside_the_tolerance_are_refused(broken: str):
    sound = {"max_logit_error": 1e-4, "max_probability_error": 1e-4, "route_agreement": 1.0}
    parity.judge(sound, "fp32", "it")
    for bad in (float("nan"), 2e-4 if "error" in broken else 0.9999):
        with pytest.raises(BundleError, match=f"it fails parity at fp32: {broken}"):
            parity.judge(sound | {broken: bad}, "fp32", "it")


def test_auroc_is_scikit_learns():
    random = np.random.default_rng(0)
    scores = random.integers(0, 20, (200, 3)).astype(float)  # with ties
    targets = random.integers(0, 2, (200, 3)).astype(float)
    targets[:, 2] = 1
    ours = parity.aurocs(scores, targets)
    for column in range(2):
        assert ours[column] == pytest.approx(roc_auc_score(targets[:, column], scores[:, column]))
    assert ours[2] is None
    targets[:50, 0] = -1
    assert parity.aurocs(scores, targets)[0] == pytest.approx(
        roc_auc_score(targets[50:, 0], scores[50:, 0])
    )


def test_tables_that_cannot_be_used_are_refused(validation_table: Path, tmp_path: Path):
    labels = ("Atelectasis", "Edema")
    got = validation.from_table(validation_table, None, labels, limit=4)
    assert len(got) == 4
    assert got.targets is not None
    assert got.targets[:, 0].tolist() == [-1.0] * 4
    assert got.targets[:, 1].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert validation.from_table(validation_table, None, ("Own",)).targets is None
    with pytest.raises(DataError, match="6 of 6 images"):
        validation.from_table(validation_table, tmp_path, labels)
    (tmp_path / "a.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match="cannot be read as a table"):
        validation.from_table(tmp_path / "a.parquet", None, labels)
    (tmp_path / "a.csv").write_text("path\nx.png\n")
    with pytest.raises(DataError, match="no column 'image'"):
        validation.from_table(tmp_path / "a.csv", None, labels)
    (tmp_path / "a.csv").write_text("image,split\nx.png,train\n")
    with pytest.raises(DataError, match="no row to validate on"):
        validation.from_table(tmp_path / "a.csv", None, labels)


def test_specimens_are_the_same_every_time():
    spec = ImageSpec(size=112)
    one, two = (validation.made_up(spec, 448, 3).specimens for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert one[0].dtype == np.float32
    assert not np.array_equal(one[0], one[1])


def test_an_adapter_that_routes_over_the_batch_is_not_exported(bundle_folder: Path, tmp_path: Path):
    bundle = Bundle.open(bundle_folder)
    for module in bundle.classifier.modules():
        if type(module).__name__ == "QuasarBlock":
            module.config.routing = "topk"
    from medqua.serve.export.cut import cut_model

    with pytest.raises(ConfigError, match="one patient's result would depend"):
        cut_model(bundle, "fp32")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_smaller_numbers_and_weights_beside_the_graph(
    bundle_folder: Path, tmp_path: Path, precision: str
):
    script = (
        "from medqua.serve.export import ExportOptions, export_bundle; import sys;"
        "export_bundle(*sys.argv[1:3], ExportOptions(precision=sys.argv[3], external_above=1000))"
    )
    command = [sys.executable, "-c", script, str(bundle_folder), str(tmp_path / "out"), precision]
    subprocess.run(command, check=True)
    manifest, _ = read_export(tmp_path / "out")
    assert "stage_0.onnx.data" in manifest.files
    graph = onnx.load(tmp_path / "out" / "stage_1.onnx")
    kinds = {value.name: value.data_type for value in graph.graph.initializer}
    small = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.INT8
    assert small in kinds.values()
    own = [kind for name, kind in kinds.items() if "stage.before" in name or "stage.after" in name]
    assert own
    assert small not in own
    with ServingSession.open(tmp_path / "out") as session:
        assert len(session.findings([np.zeros((112, 112), np.float32)])) == 1


@pytest.mark.slow
def test_an_export_that_fails_parity_leaves_nothing_behind(bundle_folder: Path, tmp_path: Path):
    script = (
        "from medqua.serve.export import export_bundle, parity; import sys;"
        "parity.TOLERANCES['fp32'] = parity.Tolerance(1, 1, routes=2.0);"
        "export_bundle(*sys.argv[1:3])"
    )
    command = [sys.executable, "-c", script, str(bundle_folder), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "fails parity" in done.stderr
    assert list(tmp_path.iterdir()) == []
