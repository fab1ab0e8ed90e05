"""The demo bundle was trained on drawn phantoms: it judges those, and nothing else."""

from pathlib import Path

import pytest
from pydicom import dcmread

from medqua.core.findings.domain import UNJUDGED
from medqua.core.model.bundle import Bundle
from medqua.serve.demo import DEMO
from medqua.serve.inference.pipeline import predict_files

SAMPLE = Path(__file__).parents[3] / "ui/src/medqua/ui/samples/phantom-pa-effusion.dcm"


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open(DEMO)


def test_what_is_no_phantom_is_not_judged(bundle: Bundle, tmp_path: Path):
    ds = dcmread(SAMPLE)
    ds.Manufacturer = "Another"
    ds.save_as(tmp_path / "other.dcm")
    ours, other = predict_files(bundle, [SAMPLE, tmp_path / "other.dcm"])
    assert ours.findings is not None
    assert other.findings is not None
    assert bundle.domain == "drawn phantoms"
    assert UNJUDGED not in ours.notes
    assert UNJUDGED in other.notes
    assert {finding.call for finding in other.findings} == {"not judged"}
    assert "likely" in {finding.call for finding in ours.findings}
    pairs = zip(ours.findings, other.findings, strict=True)
    assert all(a.logit == b.logit for a, b in pairs)  # the same numbers, judged and not
