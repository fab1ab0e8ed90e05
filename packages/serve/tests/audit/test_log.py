"""The audit log on disk."""

from pathlib import Path

import pytest

from medqua.core.errors import ConfigError, DataError
from medqua.serve.audit import AuditLog, verify


def record(log: AuditLog, number: int) -> None:
    log.record(
        who="key:a", request_id=str(number), action="POST", what=["f"], outcome=[200], result="r"
    )


def test_the_audit_log_is_a_chain_over_restarts_and_torn_lines(tmp_path: Path):
    file = tmp_path / "audit"
    for number in range(3):
        log = AuditLog(file)
        record(log, number)
        log.close()
        with file.open("ab") as torn:
            torn.write(b'{"time": "20')
    assert verify(file) == 3
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("damage", ["change", "remove", "insert"])
def test_tampering_is_found(tmp_path: Path, damage: str):
    file = tmp_path / "audit"
    log = AuditLog(file)
    for number in range(4):
        record(log, number)
    with pytest.raises(ConfigError, match="another service"):
        AuditLog(file)
    log.close()
    lines = file.read_text().splitlines(keepends=True)
    if damage == "change":
        lines[1] = lines[1].replace("200", "422")
    elif damage == "remove":
        del lines[1]
    else:
        lines.insert(1, lines[0])
    file.write_text("".join(lines))
    with pytest.raises(DataError, match="line"):
        verify(file)


@pytest.mark.parametrize("torn", [b"{", b'{"ti', b'{"time": "20', b"\0\0\0"])
def test_a_line_that_a_crash_has_torn_is_cut_off(tmp_path: Path, torn: bytes):
    file = tmp_path / "audit"
    file.touch(0o644)
    for number in range(2):
        log = AuditLog(file)
        record(log, number)
        log.close()
        with file.open("ab") as end:
            end.write(torn)
    AuditLog(file).close()
    assert verify(file) == 2
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_log_that_cannot_be_opened_is_told_of_in_a_sentence(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        AuditLog(tmp_path / "file" / "audit")
