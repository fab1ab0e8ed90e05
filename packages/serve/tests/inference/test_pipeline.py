from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medqua.core.errors import BundleError, ConfigError
from medqua.core.model import Bundle
from medqua.core.model.manifest import MANIFEST, sha256
from medqua.core.vision.image import Decoder
from medqua.serve.inference.pipeline import Provenance, predict_files

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # peft 0.21 reads it
)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Five readable images with three files between them that are not."""
    paths = []
    for i in range(8):
        path = tmp_path / f"{i}.png"
        if i in (0, 3, 4):
            path.write_bytes(b"not an image")
        else:
            levels = np.random.default_rng(i).integers(0, 256, (70, 66), dtype=np.uint8)
            Image.fromarray(levels).save(path)
        paths.append(path)
    return paths


@pytest.fixture(scope="module")
def decoder():
    with Decoder() as decoder:
        yield decoder


@pytest.mark.parametrize("batch_size", [1, 2, 3, 50])
def test_each_file_has_its_own_result_whatever_its_neighbours(
    bundle: Bundle, files: list[Path], decoder: Decoder, batch_size: int
):
    results = list(predict_files(bundle, files, batch_size=batch_size, decoder=decoder))
    assert [result.source for result in results] == [str(path) for path in files]
    for path, result in zip(files, results, strict=True):
        if path.stem in "034":
            assert result.findings is None
            assert result.refusal.error == "UnreadableImageError"
        else:
            (alone,) = bundle.predict([path])
            ours = [finding.probability for finding in result.findings]
            assert ours == pytest.approx([finding.probability for finding in alone], abs=1e-6)
            assert result.notes == ("no DICOM header: taken for a frontal chest radiograph",)
        assert result.seconds > 0


def test_results_come_before_all_files_are_read(bundle: Bundle, files: list[Path], decoder):
    def endless():
        while True:
            yield files[1]

    stream = predict_files(bundle, endless(), batch_size=2, decoder=decoder)
    assert next(stream).findings is not None
    stream.close()


def test_content_is_read_under_the_name_it_came_with(bundle: Bundle, files, decoder):
    named = ("upload 1", files[1].read_bytes())
    by_name, by_path = predict_files(bundle, [named, files[1]], decoder=decoder)
    assert by_name.source == "upload 1"
    assert by_name.findings == by_path.findings


def test_no_files_give_no_results(bundle: Bundle):
    assert list(predict_files(bundle, [])) == []
    with pytest.raises(ConfigError, match="batch size is 0"):
        next(predict_files(bundle, [], batch_size=0))


def test_scores_that_are_no_numbers_are_never_shown(bundle: Bundle, files, decoder):
    bias = bundle.classifier.head.bias
    kept = bias.detach().clone()
    try:
        with torch.no_grad():
            bias[0] = float("nan")
        with pytest.raises(BundleError, match="not all finite"):
            list(predict_files(bundle, files, decoder=decoder))
    finally:
        with torch.no_grad():
            bias.copy_(kept)


def test_provenance_names_bundle_backbone_and_engine(bundle: Bundle, bundle_folder: Path):
    provenance = Provenance.of(bundle, bundle_folder)
    assert provenance.bundle == sha256(bundle_folder / MANIFEST)
    assert provenance.engines == ("dense",)
    assert provenance.profile == "mimic-cxr-jpg"
    assert provenance.calibrated
    assert "not for diagnosis" in provenance.intended_use
