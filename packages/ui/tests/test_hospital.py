"""A hospital's day in a browser: log in, fetch from the archive, read, take out, send, log out."""

import csv
import io
import json
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid

from medqua.serve.demo import DEMO
from medqua.ui.login import add_entry, make_entry

Serious = Callable[[Page], list[tuple[str, list[str]]]]
PASSWORD = secrets.token_urlsafe(16)
SAMPLES = Path(__file__).parents[1] / "src/medqua/ui/samples"
NUMBER, NAME = "ZZ-HOSPITAL-7", "Fictitious^Grace"


@pytest.fixture(scope="module")
def study(orthanc: Any, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A study in the archive, of a patient of its own."""
    ds = dcmread(SAMPLES / "phantom-pa-effusion.dcm")
    ds.PatientID, ds.PatientName, ds.StudyDate = NUMBER, NAME, "20300102"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    file = tmp_path_factory.mktemp("study") / "study.dcm"
    ds.save_as(file)
    orthanc.web(file.read_bytes())
    return ds


@pytest.fixture(scope="module")
def server(orthanc: Any, serving: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The server as a hospital starts it: with a login, a model and an archive."""
    users = tmp_path_factory.mktemp("users") / "users.txt"
    add_entry(users, make_entry("grace", PASSWORD, "view,reveal,export"))
    archive = f"http://127.0.0.1:{orthanc.http}/dicom-web"
    with serving("--bundle", DEMO, "--archive", archive, "--passwords", users) as server:
        yield server


@pytest.fixture
def page(context: BrowserContext, server: Any, study: Dataset, serious: Serious) -> Page:
    """The page after the login, with the archive's study open and read."""
    page = context.new_page()
    page.goto(server.address)
    assert page.title()
    assert serious(page) == []  # the login's page
    page.get_by_label("User").fill("grace")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_selector("#reading", state="attached")
    page.wait_for_selector("#files input[type=file]:enabled", state="attached")
    archive = page.locator("#archive")
    archive.locator("summary").click()
    page.get_by_label("Patient ID").fill("ZZ-NOBODY")
    archive.get_by_role("button", name="Search").click()
    archive.get_by_text("0 studies").wait_for()
    page.get_by_label("Patient ID").fill(NUMBER)
    archive.get_by_role("button", name="Search").click()
    archive.get_by_text("1 study", exact=True).wait_for()
    row = archive.locator("tbody tr").inner_text()
    assert NAME in row
    assert "20300102" in row
    page.get_by_label(f"Fetch {NAME}").check()
    archive.get_by_role("button", name="Fetch").click()
    page.locator("#status", has_text="1 study opened.").wait_for()
    page.locator("#reading .facts dd").last.wait_for()
    archive.locator("summary").click()
    return page


def test_from_the_archive_to_every_file_that_goes_out_and_back(
    page: Page,
    orthanc: Any,
    server: Any,
    study: Dataset,
    eventually: Callable[[Callable[[], bool]], bool],
    serious: Serious,
):
    (frame,) = [frame for frame in page.frames if "/viewer/" in frame.url]
    frame.wait_for_selector("html[data-study]", state="attached")
    assert NAME not in page.locator("body").inner_text()  # masked, and the search is closed
    assert serious(page) == []  # findings, likely and unlikely
    page.get_by_role("tab", name="Quantum").click()
    assert serious(page) == []
    page.get_by_role("tab", name="Out").click()
    assert serious(page) == []
    out: dict[str, bytes] = {}
    for kind in ("report.pdf", "report.dcm", "findings.json", "findings.csv", "deidentified.dcm"):
        with page.expect_download() as download:
            page.locator(f"#out [data-kind='{kind}']").click()
        assert NAME.split("^")[1].lower() not in download.value.suggested_filename.lower()
        assert NUMBER not in download.value.suggested_filename
        out[kind] = Path(download.value.path()).read_bytes()
    assert out["report.pdf"].startswith(b"%PDF")
    report = dcmread(io.BytesIO(out["report.dcm"]))
    assert report.Modality == "SR"
    assert report.StudyInstanceUID == study.StudyInstanceUID
    told = json.loads(out["findings.json"])
    assert "not for diagnosis" in json.dumps(told).lower()
    rows = list(csv.DictReader(io.StringIO(out["findings.csv"].decode("utf-8-sig"))))
    page.get_by_role("tab", name="Findings").click()
    shown = page.locator("#findings tbody tr:not(.group) > th").all_inner_texts()
    assert len(rows) == len(shown) == 14
    page.get_by_role("tab", name="Out").click()
    nobody = dcmread(io.BytesIO(out["deidentified.dcm"]))
    assert NUMBER not in str(nobody)
    assert str(nobody.get("PatientName", "")) != NAME
    assert nobody.StudyInstanceUID != study.StudyInstanceUID
    page.get_by_role("button", name="Send the structured report").click()
    page.locator("#sent", has_text=re.compile("Stored in|stays in the outbox")).wait_for()
    eventually(lambda: orthanc.modalities(str(study.StudyInstanceUID)) == ["DX", "SR"])
    audit = server.audit.read_text()
    assert NUMBER not in audit
    assert "Grace" not in audit
    page.get_by_role("button", name="Log out").click()
    page.get_by_label("Password").wait_for()
    assert not list(server.temporary.rglob("*.file"))  # what was open went with the session
