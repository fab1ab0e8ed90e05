"""A later report follows the earlier one of its image, and none is made twice."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian

from medqua.core.findings import CHEXPERT_NAMES, Calibration, name_findings
from medqua.serve.jobs.ledger import SUPERSEDED
from medqua.serve.jobs.store import JobStore
from medqua.serve.processes.clerk import grounds_of, report_of
from medqua.serve.processes.reader import Answer
from medqua.serve.zip_archive import Part

NOW = "2026-01-02T03:04:05+01:00"


def findings(shift: float = 0.0) -> tuple[dict[str, Any], ...]:
    logits = np.linspace(-3, 3, 14, dtype=np.float32)[None] + np.float32(shift)
    named = name_findings(logits, CHEXPERT_NAMES, Calibration.identity(14))[0]
    return tuple(named.to_dict()["findings"])


def image(name: str = "Fictitious^Ada", pixel: int = 0) -> bytes:
    """A file under one SOP instance UID."""
    ds = Dataset()
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3.1", "1.2.3", "1.2.3.2"
    ds.PatientName, ds.PatientID, ds.Modality = name, "X1", "CR"
    ds.Rows = ds.Columns = 2
    ds.PixelData = bytes([pixel, 0, 0, 0])
    ds["PixelData"].VR = "OB"
    stream = BytesIO()
    ds.save_as(stream, implicit_vr=False, little_endian=True)
    whole = dcmread(BytesIO(stream.getvalue()), force=True)
    whole.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    stream = BytesIO()
    whole.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


@pytest.fixture
def store(tmp_path: Path) -> Any:
    store = JobStore(tmp_path / "spool", 1 << 20)
    yield store
    store.close()


def entered(
    store: JobStore, data: bytes, arrived: float, *, send: bool = True, bundle: str = "a",
    shift: float = 0.0,
) -> Dataset | None:  # fmt: skip
    """Enter an answer, and write its report."""
    answer = Answer("", 200, findings(shift)).to_dict()
    grounds = grounds_of(data, {"bundle": bundle}, "MedQua", NOW)
    found = store.reports.enter(answer, grounds, arrived, send=send)
    return None if found is None else dcmread(BytesIO(report_of(*found)[1]))


def before(report: Dataset) -> str | None:
    """SOP instance UID of a report's predecessor."""
    if "PredecessorDocumentsSequence" not in report:
        return None
    [study] = report.PredecessorDocumentsSequence
    [series] = study.ReferencedSeriesSequence
    [item] = series.ReferencedSOPSequence
    assert study.StudyInstanceUID == report.StudyInstanceUID
    assert item.ReferencedSOPClassUID == report.SOPClassUID
    return str(item.ReferencedSOPInstanceUID)


def test_the_same_again_is_the_same_object_whatever_the_last_digits(store: JobStore) -> None:
    first = entered(store, image(), 1.0)
    again = entered(store, image(), 2.0, shift=1e-6)
    assert (first, before(first)) == (again, None)


def test_a_corrected_image_has_a_report_that_follows_the_first(store: JobStore) -> None:
    first = entered(store, image(), 1.0)
    named = entered(store, image("Corrected^Ada"), 2.0)
    drawn = entered(store, image("Corrected^Ada", pixel=1), 3.0)
    assert [before(report) for report in (first, named, drawn)] == [
        None, first.SOPInstanceUID, named.SOPInstanceUID,
    ]  # fmt: skip
    assert named.PatientName == "Corrected^Ada"
    times = [report.ContentTime for report in (first, named, drawn)]
    assert times == sorted(set(times))  # the newest is the newest for whoever sorts by time
    back = entered(store, image(), 4.0)  # the first content again: newest once more
    assert back.SOPInstanceUID not in (first.SOPInstanceUID, drawn.SOPInstanceUID)
    assert before(back) == drawn.SOPInstanceUID


def test_another_model_follows_too(store: JobStore) -> None:
    first, second = entered(store, image(), 1.0), entered(store, image(), 1.0, bundle="b")
    assert before(second) == first.SOPInstanceUID


def test_only_what_was_sent_is_a_predecessor(store: JobStore) -> None:
    shown = entered(store, image(), 1.0, send=False)
    assert before(entered(store, image(pixel=1), 2.0)) is None
    again = entered(store, image(), 3.0, send=False)
    assert again.SOPInstanceUID != shown.SOPInstanceUID
    sent = entered(store, image(), 3.0)  # what was shown is sent now
    assert sent.SOPInstanceUID == again.SOPInstanceUID
    assert before(entered(store, image(pixel=2), 4.0)) == sent.SOPInstanceUID


def test_an_older_image_that_is_answered_later_gets_none(store: JobStore) -> None:
    old, _ = store.accept("archive", [Part("", image())], send=True)
    new, _ = store.accept("archive", [Part("", image(pixel=1))], send=True)
    tasks = {task.job: task for task in store.waiting(9)}
    for job in (new, old):
        task = tasks[job.id]
        grounds = grounds_of(store.read(task), {"bundle": "a"}, "MedQua", NOW)
        assert store.answer(task, Answer("", 200, findings()), grounds)
    assert [debt.job for debt in store.owing(9)] == [new.id]
    [told] = store.results(old.id)
    assert (told["status"], told["notes"]) == (200, [SUPERSEDED])
    assert store.grounds(old.id) == [None]
