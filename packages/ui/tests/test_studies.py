import os
import stat
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medqua.core.errors import ConfigError
from medqua.core.vision.image import Decoder
from medqua.ui.audit import AuditLog
from medqua.ui.intake import take_in
from medqua.ui.pieces import tag_table
from medqua.ui.studies import Refusal, Sessions, Study

DESCRIPTION = {
    "modality": "CR", "body_part": "", "view": "PA", "columns": 3, "rows": 2, "frames": 1,
    "tags": [],
}  # fmt: skip


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(tmp_path: Path, clock: Clock):
    sessions = Sessions(tmp_path, keep_seconds=1000.0, leave_seconds=60.0, clock=clock)
    yield sessions
    sessions.close()
    assert not sessions.root.exists()


def test_folders_are_private_and_go_with_the_last_tab_or_with_age(sessions: Sessions, clock: Clock):
    token, other = sessions.begin(), sessions.begin()
    session = sessions.get(token)
    assert stat.S_IMODE(session.folder.stat().st_mode) == 0o700
    session.tabs |= {"a", "b"}
    study = session.add("x.dcm", b"content", np.zeros((1, 2, 3), np.int16), DESCRIPTION)
    assert study.pixels.stat().st_size == 12
    sessions.leave(token, "a")
    clock.now = 500.0
    assert sessions.sweep() == 0
    sessions.leave(token, "b")
    clock.now = 550.0
    assert sessions.sweep() == 0  # a reload would be back by now
    clock.now = 600.0
    assert sessions.sweep() == 1
    assert not session.folder.exists()
    assert sessions.get(token) is None
    assert sessions.get(other) is not None
    clock.now = 1700.0
    assert sessions.sweep() == 1


def test_what_an_upload_left_behind_goes_by_age(sessions: Sessions):
    old, new = sessions.uploads / "old", sessions.uploads / "new"
    old.write_bytes(b"x")
    new.write_bytes(b"x")
    os.utime(old, (time.time() - 700,) * 2)
    sessions.sweep()
    assert not old.exists()
    assert new.exists()


def test_folders_of_dead_servers_go_at_the_next_start(tmp_path: Path):
    dead = tmp_path / "medqua-ui-999999999-abc"
    dead.mkdir()
    ours = tmp_path / f"medqua-ui-{os.getpid()}-abc"
    ours.mkdir()
    Sessions(tmp_path).close()
    assert not dead.exists()
    assert ours.exists()


def test_an_archives_files_are_each_for_themselves(sessions: Sessions, tmp_path: Path):
    session = sessions.get(sessions.begin())
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(tmp_path / "a.png")
    path = tmp_path / "studies.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(tmp_path / "a.png", "../../etc/a.png")
        archive.writestr("empty.dcm", b"")
        archive.writestr("DICOMDIR", b"index")
        archive.write(tmp_path / "a.png", "b.png")
    with Decoder() as decoder:
        first, empty, last = take_in(session, [path], decoder)
    assert isinstance(first, Study)
    assert isinstance(last, Study)
    assert (first.file, last.file) == ("a.png", "b.png")
    assert empty == Refusal("empty.dcm", "The file is empty; copy it again.")
    assert not path.exists()
    assert {p.parent for p in (first.pixels, last.content)} == {session.folder}


def test_a_damaged_archive_is_one_refusal(sessions: Sessions, tmp_path: Path):
    session = sessions.get(sessions.begin())
    (tmp_path / "x.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    with Decoder() as decoder:
        (refusal,) = take_in(session, [tmp_path / "x.zip"], decoder)
    assert refusal == Refusal("x.zip", "The archive is damaged; make it again.")


def test_the_audit_log_is_private_and_asked_for_before_anything_is_revealed(tmp_path: Path):
    log = AuditLog(tmp_path / "state" / "audit.jsonl")
    log.write("reveal", who="session 1", client="127.0.0.1", study="0" * 64)
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="audit log"):
        AuditLog(tmp_path)


def test_masked_values_are_neither_shown_nor_found():
    rows = [
        {"tag": "(0010,0010)", "name": "Patient's Name", "vr": "PN", "value": "Doe<b>", "level": 0,
         "personal": True},
        {"tag": "(0008,0060)", "name": "Modality", "vr": "CS", "value": "CR", "level": 0,
         "personal": False},
    ]  # fmt: skip
    assert "Doe" not in tag_table(rows, "", revealed=False)
    assert "0 of 2" in tag_table(rows, "doe", revealed=False)
    assert "Doe&lt;b&gt;" in tag_table(rows, "doe", revealed=True)
