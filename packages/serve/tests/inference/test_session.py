import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from medqua.core.console import run
from medqua.core.errors import ConfigError, QuantumError, ShapeError
from medqua.core.model import Bundle
from medqua.core.quantum.runtime.targets import TARGETS
from medqua.serve.__main__ import app
from medqua.serve.inference.engine import Engine, open_engine
from medqua.serve.inference.manifest import MANIFEST, SEAL
from medqua.serve.inference.quantum import QuantumOptions, QuantumRuntime
from medqua.serve.inference.results import Refusal, Served, on_loss_of
from medqua.serve.inference.session import BATCH_TOLERANCE, ServingSession, SessionOptions

IMAGES = list(np.random.default_rng(3).random((5, 112, 112), dtype=np.float32))


@pytest.fixture(scope="module")
def session(export_folder: Path):
    with ServingSession.open(export_folder, SessionOptions(threads=1)) as opened:
        yield opened


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = []
    for number in range(3):
        paths.append(tmp_path / f"{number}.png")
        levels = np.random.default_rng(number).integers(0, 256, (70, 66), dtype=np.uint8)
        Image.fromarray(levels).save(paths[-1])
    return paths


def opened(folder: Path, **quantum: object) -> ServingSession:
    options = QuantumOptions(**quantum)
    return ServingSession.open(folder, SessionOptions(threads=1, quantum=options))


def logits(session: ServingSession, images=IMAGES) -> np.ndarray:
    return np.array([[finding.logit for finding in row] for row in session.findings(images)])


def test_findings_are_those_of_the_bundle(session: ServingSession, bundle: Bundle, files):
    ours = session.findings([files[0], files[1].read_bytes(), str(files[2])])
    for answer, expected in zip(ours, bundle.predict(files), strict=True):
        assert isinstance(answer, Served)
        assert answer.quantum.paths == ("exact", "exact")
        assert sum(answer.quantum.routed) > 0
        for one, other in zip(answer, expected, strict=True):
            assert (one.label, one.code) == (other.label, other.code)
            assert one.logit == pytest.approx(other.logit, abs=1e-4)
            assert one.probability == pytest.approx(other.probability, abs=1e-4)


def test_a_batch_is_its_images_alone(session: ServingSession):
    together = logits(session)
    alone = np.concatenate([logits(session, [image]) for image in IMAGES])
    assert np.abs(together - alone).max() <= BATCH_TOLERANCE
    assert np.abs(together[0] - together[1]).max() > 100 * BATCH_TOLERANCE


def test_each_image_is_refused_for_itself(session: ServingSession):
    whole = np.zeros((112, 112), np.float32)
    bad = [
        (b"no image", "UnreadableImageError"),
        (np.zeros((140, 140), np.float32), "ShapeError"),
        (np.zeros((112, 100), np.float32), "ShapeError"),
        (np.zeros((112, 112), np.float64), "ShapeError"),
        (np.zeros((0, 112), np.float32), "ShapeError"),
        (np.full((112, 112), np.nan, np.float32), "ShapeError"),
        (np.full((112, 112), 2.0, np.float32), "ShapeError"),
        (np.zeros((1, 112, 112), np.float32), "ShapeError"),
        ("absent.dcm", "UnreadableImageError"),
    ]
    given = [whole]
    for image, _ in bad:
        given += [image, whole]
    answers = session.findings(given)
    assert [answer.error for answer in answers[1::2]] == [error for _, error in bad]
    assert all(isinstance(answer, Refusal) for answer in answers[1::2])
    first = [finding.logit for finding in answers[0]]
    for answer in answers[2::2]:
        close = pytest.approx(first, abs=BATCH_TOLERANCE)
        assert [finding.logit for finding in answer] == close
    assert session.findings([]) == []
    with pytest.raises(ShapeError, match="reads 112x112"):
        session.scores([np.zeros((140, 140), np.float32)])


def test_single_file_graph_is_the_stages(export_folder: Path, session: ServingSession):
    with ServingSession.open(export_folder, SessionOptions(threads=1, single=True)) as single:
        one, other = single.scores(IMAGES), session.scores(IMAGES)
        assert np.abs(one.logits - other.logits).max() <= 1e-4
        assert np.array_equal(one.routes, other.routes)
        (answer,) = single.findings(IMAGES[:1])
        assert answer.quantum.paths == ("graph", "graph")
    with pytest.raises(ConfigError, match="quantum options for the single-file graph"):
        SessionOptions(single=True, quantum=QuantumOptions(shots=10))


def test_a_simulator_of_cudaq_answers_as_the_exact_engine(export_folder, session):
    with opened(export_folder, target="qpp-cpu") as simulated:
        answers = simulated.findings(IMAGES)
        assert {answer.quantum.paths for answer in answers} == {("target", "target")}
        assert np.abs(logits(simulated) - logits(session)).max() < 1e-4


def test_noise_is_heard_and_seeds_repeat(export_folder: Path, session: ServingSession):
    noise = {"one_qubit": 0.05, "two_qubit": 0.2}
    with opened(export_folder, noise=noise) as exact:
        noisy = logits(exact, IMAGES[:1])
    assert np.abs(noisy - logits(session, IMAGES[:1])).max() > 1e-3
    with opened(export_folder, noise=noise, target="density-matrix-cpu") as simulated:
        assert np.abs(logits(simulated, IMAGES[:1]) - noisy).max() < 1e-4
    drawn = []
    for seed in (1, 1, 2):
        with opened(export_folder, shots=50, seed=seed) as sampled:
            (answer,) = sampled.findings(IMAGES[:1])
            assert answer.quantum.paths == ("sampled", "sampled")
            assert (answer.quantum.shots, answer.quantum.seed) == (50, seed)
            drawn.append([finding.logit for finding in answer])
    assert drawn[0] == drawn[1] != drawn[2]


def lose(session: ServingSession) -> None:
    """Take the target away: CUDA-Q is asked for a GPU that is not there."""
    runtime = session._quantum
    assert isinstance(runtime, QuantumRuntime)
    for bottleneck in runtime._asked:
        module = bottleneck._module
        engine = module._engine("cudaq")
        engine.target, engine.by_unitary = TARGETS["nvidia"], False
        module._cache.clear()


@pytest.mark.parametrize("on_loss", ["exact", "classical", "fail"])
def test_a_lost_target_is_told_and_replaced(export_folder: Path, session, on_loss: str):
    with opened(export_folder, target="qpp-cpu", on_loss=on_loss, rest_seconds=3600.0) as lossy:
        (whole,) = lossy.findings(IMAGES[:1])
        assert (whole.quantum.paths, whole.quantum.reason) == (("target", "target"), "")
        lose(lossy)
        if on_loss == "fail":
            with pytest.raises(QuantumError, match="qpp-cpu was lost"):
                lossy.findings(IMAGES)
            return
        answers = lossy.findings(IMAGES)
        for answer in answers:
            assert answer.quantum.paths == (on_loss, on_loss)
            assert answer.quantum.target == "qpp-cpu"
            assert "qpp-cpu was lost" in answer.quantum.reason
        if on_loss == "exact":
            assert np.abs(logits(lossy) - logits(session)).max() <= BATCH_TOLERANCE
        else:
            assert all(answer.quantum.routed == (0, 0) for answer in answers)
        lossy._quantum._asked.clear()  # it is left alone for a while: to ask would be an error
        lossy._quantum.evaluate(0, np.zeros((3, 2), np.float32), np.zeros(3, np.int64))


def test_the_classical_path_is_the_adapter_without_its_circuit(export_folder, bundle: Bundle):
    from medqua.core.adapter import classical_only

    with opened(export_folder, target="qpp-cpu", on_loss="classical") as lossy:
        lose(lossy)
        ours = logits(lossy)
    with classical_only(bundle.classifier):
        theirs = bundle.logits(IMAGES)
    assert np.abs(ours - theirs).max() <= 1e-4
    assert np.abs(ours - bundle.logits(IMAGES)).max() > 1e-3


@pytest.mark.parametrize("single", [False, True])
def test_an_image_without_a_routed_token_has_findings(export_folder, bundle, tmp_path, single):
    from medqua.core.adapter import classical_only

    folder = shutil.copytree(export_folder, tmp_path / "export")
    for path in folder.rglob("*.onnx"):  # as if no gate reached its threshold
        graph = onnx.load(path)
        for value in graph.graph.initializer:
            if value.name.endswith("threshold_logit"):
                value.CopyFrom(numpy_helper.from_array(np.float32(np.inf), value.name))
        onnx.save(graph, path)
    content = json.loads((folder / MANIFEST).read_bytes())
    content.pop("digest")
    SEAL.write(folder, content | {"files": SEAL.hash_files(folder)})
    with ServingSession.open(folder, SessionOptions(threads=1, single=single)) as unrouted:
        answers = unrouted.findings(IMAGES)
        assert all(answer.quantum.routed == (0, 0) for answer in answers)
        ours = logits(unrouted)
    with classical_only(bundle.classifier):
        assert np.abs(ours - bundle.logits(IMAGES)).max() <= 1e-4


@pytest.mark.parametrize(
    ("quantum", "error", "message"),
    [
        ({"target": "ionq-emulated"}, QuantumError, "give shots"),
        ({"target": "qpp-cpu", "noise": {"one_qubit": 0.1}}, QuantumError, "ignores noise"),
        ({"target": "ionq"}, QuantumError, "bills every circuit"),
        ({"target": "nowhere"}, QuantumError, "choose one of"),
        ({"seed": 1}, ConfigError, "exact values need no seed"),
        ({"noise": {"nose": 1.0}}, ConfigError, "nose"),
        ({"rest_seconds": -1.0}, ConfigError, "rest_seconds"),
    ],
)
def test_options_that_cannot_be_are_refused_at_the_start(export_folder, quantum, error, message):
    with pytest.raises(error, match=message):
        opened(export_folder, **quantum)


def test_what_is_done_on_loss_has_three_names():
    assert [on_loss_of(name) for name in ("exact", "classical", "fail")]
    with pytest.raises(ConfigError, match="choose one of exact, classical, fail"):
        on_loss_of("exakt")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:1", ""])
def test_devices_that_do_not_exist_are_refused(device: str):
    with pytest.raises(ConfigError, match="give auto, cpu, cuda"):
        SessionOptions(device=device)


def test_the_service_opens_an_export_as_an_engine(export_folder: Path):
    engine = open_engine(export_folder)
    assert isinstance(engine, Engine)
    assert len(engine.labels) == len(engine.read(IMAGES)[0]) == 14
    assert engine.provenance()["precision"] == "fp32"
    assert json.dumps(dict(engine.provenance()))


def test_predict_takes_an_export(export_folder, bundle_folder, files, capsys):
    documents = []
    for folder in (export_folder, bundle_folder):
        assert run(app, ["predict", str(folder), *map(str, files), "--json"]) == 0
        documents.append(json.loads(capsys.readouterr().out))
    for ours, theirs in zip(*(document["results"] for document in documents), strict=True):
        assert ours["quantum"]["paths"] == ["exact", "exact"]
        assert theirs["quantum"] is None
        for one, other in zip(ours["findings"], theirs["findings"], strict=True):
            assert one["probability"] == pytest.approx(other["probability"], abs=1e-4)
    assert documents[0]["provenance"]["bundle"] == documents[1]["provenance"]["bundle"]
    shots = ["--shots", "20", "--seed", "1"]
    assert run(app, ["predict", str(export_folder), str(files[0]), *shots]) == 0
    assert "1 read, 0 refused" in capsys.readouterr().out
    assert run(app, ["predict", str(bundle_folder), str(files[0]), *shots]) == 2
    assert "options of an export" in capsys.readouterr().err
