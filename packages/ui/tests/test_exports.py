"""What goes out: reports, tables, de-identified copies; and studies in from a real archive."""

import csv
import io
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.sequence import Sequence

from medqua.core.errors import ConfigError, ImageError
from medqua.core.findings.result import Finding, Findings
from medqua.serve.pacs.errors import PacsUnreachableError
from medqua.ui.archive import Archive
from medqua.ui.audit import AuditLog
from medqua.ui.deidentify import deidentify
from medqua.ui.desk import Desk
from medqua.ui.exports import Exports, Outbox
from medqua.ui.findings import Reading, Row
from medqua.ui.server import EngineUnavailableError
from medqua.ui.studies import Session, Sessions, Study

SAMPLE = Path(__file__).parents[1] / "src/medqua/ui/samples/phantom-pa-effusion.dcm"
NAME, NUMBER = "Fictitious^Adelheid", "ZZ-4711-ZZ"

# Basic Profile, PS3.15 table E.1-1, written down from the standard: X removed, Z emptied, D dummy
REMOVED = {
    "AdditionalPatientHistory": "seen by Adelheid", "PatientComments": "x", "ImageComments": "x",
    "StudyDescription": "thorax of Fictitious", "SeriesDescription": "x",
    "InstitutionAddress": "Elm St", "PerformingPhysicianName": "A^B",
    "OtherPatientIDs": "77", "PatientAddress": "Elm St", "PatientTelephoneNumbers": "555",
    "Occupation": "teacher",
    "EthnicGroup": "x", "Allergies": "nuts", "MedicalAlerts": "x", "AdmissionID": "4",
    "RequestingPhysician": "A^B", "PatientReligiousPreference": "x", "MilitaryRank": "x",
    "CurrentPatientLocation": "ward 7", "SourceApplicationEntityTitle": "",
}  # fmt: skip
EMPTIED_OR_DUMMY = {
    "PatientName": NAME, "PatientID": NUMBER, "PatientBirthDate": "19501231", "PatientSex": "F",
    "AccessionNumber": "ACC123", "ReferringPhysicianName": "House^G", "StudyDate": "20260102",
    "StudyTime": "101112", "StudyID": "S123", "ContentDate": "20260102",
    "ProtocolName": "thorax of A", "OperatorsName": "A^B", "DeviceSerialNumber": "SN1",
    "StationName": "ROOM1",
}  # fmt: skip


@pytest.fixture
def named() -> Dataset:
    """A phantom that tells whose it is everywhere."""
    ds = dcmread(SAMPLE)
    for keyword, value in {**REMOVED, **EMPTIED_OR_DUMMY}.items():
        if value:
            setattr(ds, keyword, value)
    block = ds.private_block(0x0099, "ACME", create=True)
    block.add_new(1, "LO", NAME)
    inner = Dataset()
    inner.PatientName, inner.AccessionNumber = NAME, "ACC123"
    inner.ReferencedSOPInstanceUID = "1.2.3.4.5"
    ds.ReferencedImageSequence = Sequence([inner])
    view = Dataset()
    view.CodeValue, view.CodingSchemeDesignator, view.CodeMeaning = "1", "SCT", f"of {NUMBER}"
    ds.ViewCodeSequence = Sequence([view])
    ds.DerivationDescription = f"made for {NUMBER}"
    ds.preamble = b"Adelheid".ljust(128, b"\0")
    ds.file_meta.SourceApplicationEntityTitle = "ADELHEIDS"
    return ds


def content_of(ds: Dataset) -> bytes:
    stream = BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def test_a_deidentified_copy_holds_nothing_of_the_patient_and_the_same_pixels(named: Dataset):
    content = content_of(named)
    copy = deidentify(content)
    ds = dcmread(BytesIO(copy))
    for keyword in REMOVED:
        assert keyword not in ds, keyword
    for keyword, value in EMPTIED_OR_DUMMY.items():
        assert str(ds.get(keyword, "")) != value, keyword
    for word in (b"Adelheid", b"Fictitious", b"ADELHEID", b"4711", b"ACC123", b"House", b"ACME"):
        assert word in content or word in (b"ADELHEID", b"House")
        assert word not in copy, word
    assert not [element for element in ds.iterall() if element.tag.is_private]
    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        assert ds[keyword].value != named[keyword].value
    assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
    assert ds.PatientIdentityRemoved == "YES"
    assert ds.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
    assert np.array_equal(ds.pixel_array, named.pixel_array)
    again = dcmread(BytesIO(deidentify(content)))
    assert again.StudyInstanceUID == ds.StudyInstanceUID  # images of one study stay together


def test_what_has_no_header_is_not_deidentified():
    with pytest.raises(ImageError, match="has none"):
        deidentify(b"\x89PNG\r\n\x1a\n" + bytes(200))


FINDINGS = Findings((Finding("Cardiomegaly", None, 0.4, 0.6), Finding("=cmd()", None, -1.0, 0.2)))
READING = Reading(
    (Row("Cardiomegaly", 0.6, 0.5), Row("=cmd()", 0.2, None)),
    "", ("a note",), {"Bundle": "abc"}, 0.1, FINDINGS, {"bundle": "ab" * 32, "profile": "x"},
)  # fmt: skip


class Away:
    """An engine that comes back when it is told to."""

    def __init__(self) -> None:
        self.away = True

    @property
    def state(self) -> str:
        return "away" if self.away else ""

    def read(self, file: str, content: bytes) -> Reading:
        if self.away:
            raise EngineUnavailableError("The engine cannot be reached.")
        return READING


@pytest.fixture
def sessions(tmp_path: Path):
    sessions = Sessions(tmp_path)
    yield sessions
    sessions.close()


@pytest.fixture
def session(sessions: Sessions) -> Session:
    session = sessions.get(sessions.begin())
    assert session is not None
    return session


@pytest.fixture
def study(session: Session) -> Study:
    told = {"modality": "CR", "body_part": "", "view": "PA", "columns": 3, "rows": 2, "frames": 1}
    return session.add("x.dcm", SAMPLE.read_bytes(), np.zeros((1, 2, 3), np.int16), told)


def test_studies_wait_for_an_engine_that_is_away_and_are_read_once_it_is_back(
    session: Session, study: Study, eventually: Callable[..., object]
):
    engine = Away()
    desk = Desk(engine)
    try:
        desk.enter(session, study)
        reading = desk.read(session, study)
        assert reading is not None
        assert reading.refusal == "The engine cannot be reached."
        assert session.outcomes[study.name].reading is None
        engine.away = False
        eventually(lambda: session.outcomes[study.name].reading)
        assert session.outcomes[study.name].reading is READING
        assert desk.read(session, study) is READING
    finally:
        desk.close()


def test_tables_and_reports_say_what_they_are(
    sessions: Sessions, session: Session, study: Study, tmp_path: Path
):
    exports = Exports(sessions, Desk(None), AuditLog(tmp_path / "audit.jsonl"), None)
    document = json.loads(exports._json(study, READING))
    assert document["use"].startswith("Research use only")
    assert [f["probability"] for f in document["findings"]] == [0.6, 0.2]
    rows = list(csv.DictReader(io.StringIO(exports._csv(study, READING).decode())))
    assert [row["finding"] for row in rows] == ["Cardiomegaly", "'=cmd()"]  # no formula
    report = dcmread(BytesIO(exports._report(study, READING)))
    assert report.Modality == "SR"
    assert report.StudyInstanceUID == dcmread(SAMPLE).StudyInstanceUID
    page = exports._page(study, READING)
    assert page.startswith(b"%PDF-")
    assert page.count(b"/Type /Page\n") == 1


def test_an_archive_is_searched_fetched_from_and_sent_to(
    orthanc, named: Dataset, tmp_path: Path, patience: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("medqua.ui.exports.PATIENCE", patience)
    content = content_of(named)
    archive = Archive(
        f"http://127.0.0.1:{orthanc.http}/dicom-web",
        connect_seconds=patience, read_seconds=patience,
    )  # fmt: skip
    archive.store(content)
    (found,) = archive.search({"patient": NUMBER})
    assert found["uid"] == named.StudyInstanceUID
    assert (found["name"], found["images"]) == (NAME, "1")
    assert archive.search({"patient": "NOBODY"}) == []
    assert archive.search({"name": NAME[:-3] + "*"}) == archive.search({"name": NAME}) == [found]
    assert archive.search({"patient": "ZZ*", "date": "20260101-20260103"}) == [found]
    (path,) = archive.instances(found["uid"])
    fetched = dcmread(BytesIO(archive.fetch(path)))
    assert fetched.SOPInstanceUID == named.SOPInstanceUID
    assert np.array_equal(fetched.pixel_array, named.pixel_array)
    with pytest.raises(ConfigError, match="whom to search"):
        archive.search({"modality": "CR"})
    with pytest.raises(ConfigError, match="date"):
        archive.search({"date": "tomorrow"})
    with pytest.raises(ConfigError):
        archive.instances("../../admin")
    outbox = Outbox(tmp_path / "outbox", archive)
    try:
        sessions = Sessions(tmp_path)
        session = sessions.get(sessions.begin())
        assert session is not None
        told = {"modality": "", "body_part": "", "view": "", "columns": 3, "rows": 2, "frames": 1}
        study = session.add("x.dcm", content, np.zeros((1, 2, 3), np.int16), told)
        exports = Exports(sessions, Desk(None), AuditLog(tmp_path / "audit.jsonl"), outbox)
        assert outbox.send(exports._report(study, READING)) == "Stored in 127.0.0.1."
        sessions.close()
    finally:
        outbox.close()
    assert orthanc.modalities(str(named.StudyInstanceUID)) == ["DX", "SR"]
    assert archive.instances(found["uid"]) == [path]  # reports are no images


def test_an_archive_that_is_down_leaves_the_report_in_the_outbox(
    tmp_path: Path, closed_port: int, patience: float
):
    archive = Archive(f"http://127.0.0.1:{closed_port}/dicom-web", connect_seconds=patience)
    with pytest.raises(PacsUnreachableError):
        archive.search({"patient": "1"})
    outbox = Outbox(tmp_path / "outbox", archive)
    try:
        assert "stays in the outbox" in outbox.send(content_of(dcmread(SAMPLE)))
    finally:
        outbox.close()
    assert list((tmp_path / "outbox" / "waiting").glob("*.dcm"))


@pytest.mark.parametrize("url", ["pacs", "http://pacs.example/dicom-web", "https://u:p@pacs"])
def test_an_archive_by_an_address_that_leaks_is_refused(url: str):
    with pytest.raises(ConfigError, match="--archive"):
        Archive(url)
