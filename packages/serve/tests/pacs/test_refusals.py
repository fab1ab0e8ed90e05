"""Who was not let in by the door, and what was not taken, stands in the audit log."""

import json
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE

from medqua.serve.audit import AuditLog
from medqua.serve.audit.messages import to_messages
from medqua.serve.jobs.incoming import Audited, Inbox, open_door
from medqua.serve.jobs.store import JobStore
from medqua.serve.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


def image() -> Dataset:
    ds = Dataset()
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3.1", "1.2.3", "1.2.3.2"
    ds.Rows = ds.Columns = 8
    ds.ImageComments = "x" * 400
    stream = BytesIO()
    ds.save_as(stream, implicit_vr=False, little_endian=True)
    whole = dcmread(BytesIO(stream.getvalue()), force=True)
    whole.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return whole


def send(port: int, ds: Dataset, calling: str) -> int | None:
    ae = AE(ae_title=calling)
    ae.add_requested_context(str(ds.SOPClassUID), ExplicitVRLittleEndian)
    link = ae.associate("127.0.0.1", port, ae_title="MEDQUA")
    if not link.is_established:
        return None
    try:
        return int(link.send_c_store(ds).Status)
    finally:
        link.release()


@pytest.mark.usefixtures("refused_connections")
def test_refusals_are_written_down(tmp_path: Path) -> None:
    settings = Settings.load(
        None,
        [f"storage.spool={tmp_path / 'spool'}", "archive.url=http://a", 'door.peers=["PACS"]',
         "door.port=0"],
    )  # fmt: skip
    store = JobStore(tmp_path / "spool", 1)  # no room for anything
    audit = AuditLog(tmp_path / "audit")
    door = open_door(Audited(Inbox(store, lambda: None), audit), settings)
    own = image()
    own.Manufacturer = "MedQua"
    try:
        assert send(door.port, image(), "STRANGER") is None
        assert send(door.port, image(), "PACS") == 0xA700
        assert send(door.port, own, "PACS") == 0xB006
    finally:
        door.close()
        audit.close()
        store.close()
    entries = [json.loads(line) for line in (tmp_path / "audit").read_text().splitlines()]
    assert [entry["action"] for entry in entries] == [
        "association", "C-STORE", "C-STORE of an own object",
    ]  # fmt: skip
    assert [entry.get("address") for entry in entries] == ["127.0.0.1", None, "127.0.0.1"]
    assert entries[1]["outcome"] == [0xA700]
    assert len(entries[1]["what"][0]) == 64
    for entry in entries:
        for message in to_messages(entry, "Ward 3"):
            assert b'EventOutcomeIndicator="0"' not in message
