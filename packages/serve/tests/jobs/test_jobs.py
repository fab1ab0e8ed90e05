import json
from pathlib import Path

import pytest

from medqua.core.errors import ConfigError, UnreadableImageError
from medqua.serve.jobs.store import JobStore, KeyReusedError, SpoolFullError
from medqua.serve.jobs.tables import tabulate, write_whole
from medqua.serve.offline.journal import Journal
from medqua.serve.processes.reader import Answer
from medqua.serve.zip_archive import Part

PARTS = [Part("a", b"1"), Part("b", None, UnreadableImageError("no")), Part("c", b"333")]


@pytest.fixture
def store(tmp_path: Path):
    store = JobStore(tmp_path, 1000)
    yield store
    store.close()


def answered(name: str) -> Answer:
    return Answer(name, 200, ({"label": "Edema", "probability": 0.5},))


def test_files_wait_until_they_are_answered_once(store: JobStore, tmp_path: Path):
    job, new = store.accept("me", PARTS)
    assert new
    assert (job.files, job.answered) == (3, 1)  # the one refused at the door
    tasks = store.waiting(10)
    assert [(task.number, task.name, store.read(task)) for task in tasks] == [
        (0, "a", b"1"), (2, "c", b"333"),
    ]  # fmt: skip
    assert store.waiting(10, [(job.id, 0)]) == tasks[1:]
    assert store.answer(tasks[0], answered("a"))
    assert not store.answer(tasks[0], answered("other"))
    assert store.answer(tasks[1], answered("c"))
    assert store.job(job.id, "me").finished is not None
    assert [answer["source"] for answer in store.results(job.id)] == ["a", "b", "c"]
    assert not list((tmp_path / "content" / job.id).iterdir())


def test_what_was_accepted_is_there_after_any_end(tmp_path: Path):
    first = JobStore(tmp_path, 1000)
    job, _ = first.accept("me", PARTS)
    (tmp_path / "content" / "half-accepted").mkdir()
    first._held.close()  # as after kill -9, which lets go of the lock and closes nothing
    second = JobStore(tmp_path, 1000)
    assert not (tmp_path / "content" / "half-accepted").exists()
    assert [task.name for task in second.waiting(10)] == ["a", "c"]
    assert second.job(job.id, None).answered == 1
    first._db.close()
    second.close()


def test_an_owner_sees_their_own(store: JobStore):
    job, _ = store.accept("me", PARTS)
    assert store.job(job.id, "you") is None
    assert store.job(job.id, None) == store.job(job.id, "me")


def test_keys_name_a_request_of_one_owner(store: JobStore):
    first, _ = store.accept("me", PARTS, "k")
    again, new = store.accept("me", PARTS, "k")
    assert (again.id, new) == (first.id, False)
    with pytest.raises(KeyReusedError):
        store.accept("me", PARTS[:1], "k")
    other, new = store.accept("you", PARTS, "k")
    assert new
    assert other.id != first.id


def test_a_full_spool_takes_no_more_until_files_are_answered(store: JobStore):
    job, _ = store.accept("me", [Part("a", bytes(900))])
    with pytest.raises(SpoolFullError):
        store.accept("me", [Part("b", bytes(200))])
    store.answer(store.waiting(1)[0], answered("a"))
    store.accept("me", [Part("b", bytes(200))])
    store.expire(-1.0)
    assert store.job(job.id, None) is None


def test_deleting_forgets_files_too(store: JobStore, tmp_path: Path):
    job, _ = store.accept("me", PARTS)
    store.delete(job.id)
    assert store.waiting(10) == []
    assert not (tmp_path / "content" / job.id).exists()


def test_a_spool_that_cannot_be_one(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used as a spool"):
        JobStore(tmp_path / "file", 1)


def test_a_journal_goes_on_where_it_was(tmp_path: Path):
    file = tmp_path / "j"
    journal = Journal(file, {"model": "m"})
    journal.add(answered("b").to_dict())
    journal.add(answered("a").to_dict())
    with pytest.raises(ConfigError, match="another run"):
        Journal(file, {"model": "m"})
    journal.close()
    with file.open("ab") as torn:
        torn.write(b'{"source": "c", "sta')
    journal = Journal(file, {"model": "m"})
    assert journal.done == {"a", "b"}
    journal.add(answered("c").to_dict())
    assert [answer["source"] for answer in journal.answers()] == ["a", "b", "c"]
    journal.close()
    with pytest.raises(ConfigError, match="another model"):
        Journal(file, {"model": "n"})
    journal = Journal(file, {"model": "m"})
    journal.close(delete=True)
    assert not file.exists()


def test_a_journal_torn_in_its_first_line_begins_anew(tmp_path: Path):
    (tmp_path / "j").write_bytes(b'{"mod')
    journal = Journal(tmp_path / "j", {"model": ("m",)})
    journal.close()
    journal = Journal(tmp_path / "j", {"model": ("m",)})  # what JSON has no word for goes on too
    assert journal.done == set()
    assert list(journal.answers()) == []
    journal.close()


def test_a_table_has_a_row_a_file(tmp_path: Path):
    refused = Answer("b", 422, None, None, "E", "why")
    table = tabulate([answered("a").to_dict(), refused.to_dict()], ["Edema"])
    assert table["Edema"].to_list() == [0.5, None]
    assert table["reason"].to_list() == [None, "why"]
    assert tabulate([], ["Edema"]).columns == table.columns
    write_whole(tmp_path / "t", b"1")
    write_whole(tmp_path / "t", b"2")
    assert (tmp_path / "t").read_bytes() == b"2"
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
    assert json.dumps(table["status"].to_list()) == "[200, 422]"
