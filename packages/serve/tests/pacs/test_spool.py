"""What is in the spool stays there whole until it is dealt with."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from medqua.serve.pacs.delivery import Retry, Round, deliver
from medqua.serve.pacs.errors import PacsRejectedError, SpoolError
from medqua.serve.pacs.spool import Spool


def test_an_object_is_kept_once_by_a_name_that_tells_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    name = spool.put(b"Fictitious^Ada")
    assert spool.put(b"Fictitious^Ada") == name
    assert list(spool.waiting()) == [name]
    assert spool.read(name) == b"Fictitious^Ada"
    for path in (tmp_path / "spool").rglob("*"):
        assert "Ada" not in path.name
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_a_full_spool_refuses(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=10)
    spool.put(b"12345678")
    with pytest.raises(SpoolError, match="full"):
        spool.put(b"abc")


def test_pauses_grow_and_the_last_failure_buries(tmp_path: Path) -> None:
    spool, retry = Spool(tmp_path), Retry(attempts=3, first_pause=10.0, longest_pause=15.0)
    name = spool.put(b"object")

    def refuse(data: bytes) -> None:
        raise PacsRejectedError("no")

    assert deliver(spool, refuse, retry, now=0.0) == Round(failed=1)
    assert deliver(spool, refuse, retry, now=9.0) == Round()  # not due
    assert deliver(spool, refuse, retry, now=10.0) == Round(failed=1)
    assert deliver(spool, refuse, retry, now=24.0) == Round()  # the longest pause, not 20
    assert deliver(spool, refuse, retry, now=25.0) == Round(buried=1)
    assert (list(spool.waiting()), list(spool.dead())) == ([], [name])
    assert spool.revive() == 1
    sent: list[bytes] = []
    assert deliver(spool, sent.append, retry, now=26.0) == Round(sent=1)
    assert (sent, list(spool.waiting())) == ([b"object"], [])


def test_no_kill_loses_what_was_accepted_or_leaves_halves(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from medqua.serve.pacs.spool import Spool\n"
        "spool = Spool(Path(sys.argv[1]))\n"
        "while True: print(spool.put(os.urandom(100_000)), flush=True)"
    )
    accepted = set()
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            for _ in range(7):
                accepted.add(process.stdout.readline().strip())
            os.kill(process.pid, signal.SIGKILL)
            accepted.update(line.strip() for line in process.stdout if line.endswith("\n"))
    spool = Spool(tmp_path)
    assert accepted <= set(spool.waiting())
    assert all(len(spool.read(name)) == 100_000 for name in spool.waiting())
    assert not list((tmp_path / "arriving").iterdir())
