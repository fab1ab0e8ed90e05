"""A corrected image under the same UID: what the archive holds is what the newest image says.

Against Orthanc with its default options, which keeps what it has under a UID and says "stored".
"""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NoReturn

import httpx
import numpy as np
import pytest
from highdicom import sr
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid

from medqua.serve.pacs.errors import PacsConflictError

ITEM = "http://127.0.0.1:{}/instances/{}"

pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.usefixtures("refused_connections"),
]


@pytest.fixture(scope="module")
def sending(
    bundle_folder: Path, orthanc, start_service: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:  # fmt: skip
    served = start_service(
        bundle_folder, tmp_path_factory.mktemp("sending"), f"archive.url={orthanc.web.url}",
        "batching.threads=1", "report.capture=true",
    )  # fmt: skip
    yield served
    served.end()


@pytest.fixture
def chest(shared_data: Path) -> Dataset:
    image = dcmread(shared_data / "dicom" / "cxr_NIH_DX_implicit_nofinding.dcm")
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        setattr(image, keyword, generate_uid())
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    return image


def written(image: Dataset) -> bytes:
    stream = BytesIO()
    image.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def objects(orthanc, study: str, modality: str) -> list[Dataset]:
    """The objects of a study that the archive holds, oldest content first."""
    query = {"Level": "Instance", "Query": {"StudyInstanceUID": study, "Modality": modality}}
    found = []
    for name in json.loads(orthanc.send("POST", "/tools/find", query)):
        answer = httpx.get(f"{ITEM.format(orthanc.http, name)}/file")
        found.append(dcmread(BytesIO(answer.content)))
    return sorted(found, key=lambda ds: (ds.ContentDate, ds.ContentTime))


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 90
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.2)


def certainties(report: Dataset) -> list[float]:
    [container] = [
        item for item in report.ContentSequence
        if item.ConceptNameCodeSequence[0].CodeValue == "126010"
    ]  # fmt: skip
    return [
        float(item.MeasuredValueSequence[0].NumericValue)
        for group in container.ContentSequence
        for item in group.ContentSequence
        if item.ConceptNameCodeSequence[0].CodeValue == "111012"
    ]


def stow(http: httpx.Client, image: Dataset) -> None:
    kind = {"Content-Type": "application/dicom"}
    assert http.post("/dicom-web/studies", content=written(image), headers=kind).status_code == 200


def findings(http: httpx.Client, image: Dataset) -> list[float]:
    kind = {"Content-Type": "application/dicom"}
    answer = http.post("/v1/findings", content=written(image), headers=kind).json()
    return [100 * finding["probability"] for finding in answer["results"][0]["findings"]]


def test_what_the_archive_holds_is_what_the_newest_image_says(
    sending, orthanc, chest: Dataset, tmp_path: Path, missing_peer: Callable[[str], NoReturn]
) -> None:
    for program, package in (("dciodvfy", "dicom3tools"), ("dsrdump", "dcmtk")):
        if shutil.which(program) is None:
            missing_peer(f"{program} is not installed: apt-get install {package}")
    study = str(chest.StudyInstanceUID)
    chest.PatientName = "Wrong^Name"
    orthanc.web(written(chest))
    with sending.client as http:
        stow(http, chest)
        until(lambda: len(objects(orthanc, study, "SR")) == 1)
        first = findings(http, chest)
        pixels = chest.pixel_array
        chest.PatientName = "Right^Name"
        chest.PixelData = np.ascontiguousarray(pixels[:, ::-1]).tobytes()
        stow(http, chest)
        until(lambda: len(objects(orthanc, study, "SR")) == 2)
        second = findings(http, chest)
        stow(http, chest)  # again, and nothing is new
        until(lambda: "medqua_outbox_waiting 0.0" in http.get("/metrics").text)
        numbers = http.get("/metrics").text
    assert "medqua_outbox_conflicts 0.0" in numbers
    assert "medqua_outbox_dead 0.0" in numbers
    old, new = objects(orthanc, study, "SR")
    assert certainties(old) == pytest.approx(first, abs=0.02)
    assert certainties(new) == pytest.approx(second, abs=0.02)
    assert np.abs(np.subtract(first, second)).max() > 0.1  # so that one is not the other
    assert (old.PatientName, new.PatientName) == ("Wrong^Name", "Right^Name")
    assert old.SOPInstanceUID != new.SOPInstanceUID
    assert "PredecessorDocumentsSequence" not in old
    [before] = new.PredecessorDocumentsSequence
    [item] = before.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert item.ReferencedSOPInstanceUID == old.SOPInstanceUID
    assert before.ReferencedSeriesSequence[0].SeriesInstanceUID == old.SeriesInstanceUID
    captures = objects(orthanc, study, "OT")
    assert len({capture.SOPInstanceUID for capture in captures}) == 2
    for number, report in enumerate((old, new)):
        file = tmp_path / f"{number}.dcm"
        file.write_bytes(written(report))
        assert len(sr.srread(file).content.get_image_measurement_groups()) == 14
        done = subprocess.run(["dciodvfy", file], capture_output=True, check=False)
        assert b"Error" not in done.stdout + done.stderr, done.stderr
        tree = subprocess.run(["dsrdump", file], capture_output=True, check=True).stdout
        assert tree.count(b"Certainty of Finding") == 14


def test_an_archive_that_keeps_another_object_is_told_of(orthanc, chest: Dataset) -> None:
    chest.ContentDate, chest.ContentTime = "20260102", "030405"
    orthanc.web(written(chest))
    orthanc.web(written(chest))  # the same again is there, as it should be
    chest.PixelData = bytes(len(chest.PixelData))
    with pytest.raises(PacsConflictError, match="another object under this UID"):
        orthanc.web(written(chest))
