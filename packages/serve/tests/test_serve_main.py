import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medqua.core.console import run
from medqua.core.model.manifest import sha256
from medqua.serve.__main__ import app
from medqua.serve.sources import expand

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # peft 0.21 reads it
)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "images" / "chest [left].png"
    path.parent.mkdir()
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)).save(path)
    return path


def test_json_is_one_document_and_nothing_else(bundle_folder: Path, image: Path, capsys):
    assert run(app, ["predict", str(bundle_folder), str(image), "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["provenance"]["intended_use"] == "Research use only, not for diagnosis."
    (result,) = document["results"]
    assert result["source"] == str(image)
    assert len(result["findings"]) == 14
    assert all(0 <= finding["probability"] <= 1 for finding in result["findings"])
    assert captured.err == ""


def test_table_shows_findings_refusals_and_the_warning(bundle_folder, image, tmp_path, capsys):
    bad = tmp_path / "bad.dcm"
    bad.write_bytes(b"no DICOM")
    assert run(app, ["predict", str(bundle_folder), str(image), str(bad)]) == 1
    out = capsys.readouterr().out
    for text in ("Cardiomegaly", "Refused", "neither DICOM", "not for diagnosis", "[left]"):
        assert text in out
    assert "1 read, 1 refused" in out


def test_genuine_files(bundle_folder: Path, shared_data: Path, capsys):
    dicom = shared_data / "dicom"
    wanted = [*dicom.glob("cxr_*"), *dicom.glob("cr_*"), *dicom.glob("misc_MR*")]
    assert run(app, ["predict", str(bundle_folder), *map(str, wanted), "--json"]) == 1
    results = json.loads(capsys.readouterr().out)["results"]
    assert [result["source"] for result in results] == [str(path) for path in wanted]
    for result in results:
        chest = Path(result["source"]).name.startswith("cxr_")
        assert (result["findings"] is not None) == chest
        assert chest or result["refusal"]["error"] == "OutOfScopeError"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent", "x.png"], "absent is not there"),
        (["{bundle}", "x.png", "--device", "gpu0"], "device is 'gpu0'"),
        (["{bundle}", "x.png", "--batch-size", "0"], "batch-size"),
        (["{bundle}"], "no file to read"),
    ],
)
def test_wrong_use_ends_with_two(bundle_folder: Path, arguments, message, capsys):
    given = [str(bundle_folder) if a == "{bundle}" else a for a in arguments]
    assert run(app, ["predict", *given]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


def test_folders_are_expanded_to_their_images(image: Path, tmp_path: Path):
    folder = image.parent
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "a.png").write_bytes(b"")
    (folder / "IM0001").write_bytes(bytes(128) + b"DICM")
    deeper = folder / "study"
    deeper.mkdir()
    (deeper / "b.DCM").write_bytes(b"")
    given = tmp_path / "given.txt"
    assert list(expand([given, folder])) == [
        given,
        folder / "IM0001",
        image,
        deeper / "b.DCM",
    ]


def test_the_demo_bundle_is_read_by_default(shared_data: Path, capsys):
    from medqua.serve.demo import DEMO

    wanted = sorted((shared_data / "dicom").glob("cxr_*"))
    assert run(app, ["predict", *map(str, wanted), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["provenance"]["bundle"] == sha256(DEMO / "bundle.json")
    assert len(document["results"]) == len(wanted) > 0
    assert all(result["findings"] for result in document["results"])


def test_the_card_of_the_demo_bundle_says_what_it_is():
    from medqua.serve.demo import DEMO

    card = (DEMO / "README.md").read_text()
    for words in ("Not for clinical use", "phantoms", "no patients", "95% interval", "Licence"):
        assert words in card
    assert not list(DEMO.rglob("*.bin")) + list(DEMO.rglob("*.pt"))
