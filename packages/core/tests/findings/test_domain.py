import pytest

from medqua.core.findings import Finding, Findings
from medqua.core.findings.domain import domain_of, is_foreign


@pytest.mark.parametrize(
    ("name", "domain"),
    [
        ("PHANTOMS in the layout of MIMIC-CXR", "drawn phantoms"),
        ("MIMIC-CXR", "radiographs"),
        ("", "not stated"),
    ],
)
def test_the_name_of_the_data_tells_the_domain(name: str, domain: str):
    assert domain_of({"name": name} if name else {}) == domain


def test_a_model_of_drawings_judges_drawings_alone():
    assert is_foreign("drawn phantoms", phantom=False)
    assert not is_foreign("drawn phantoms", phantom=True)
    assert not is_foreign("radiographs", phantom=False)


def test_unjudged_findings_keep_all_but_their_call():
    findings = Findings((Finding("Edema", None, 1.5, 0.8, "likely"),))
    (finding,) = findings.unjudged()
    assert finding == Finding("Edema", None, 1.5, 0.8, "not judged")
