"""The way of a study through the service, as docs/pacs.md tells it, with a running archive."""

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NoReturn

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from dicomweb_client import DICOMwebClient
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid
from pynetdicom import AE

from medqua.serve.demo import DEMO
from medqua.serve.objects.identity import is_own

PAGE = Path(__file__).parents[4] / "docs" / "pacs.md"
SR = "1.2.840.10008.5.1.4.1.1.88.34"
NESTED = (
    bytes(128)
    + b"DICM"
    + 3000 * (b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff")
)

# pynetdicom leaves the socket of a refused connection to the garbage collector
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.usefixtures("refused_connections"),
]


def door_of(served: Any) -> int:
    """The port where it takes objects."""
    return int(next(entry["port"] for entry in served.log if entry["event"] == "door open"))


@pytest.fixture(scope="module")
def hospital(
    orthanc, start_service: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """The demo bundle served, with Orthanc as its archive, and its door open to Orthanc."""
    served = start_service(
        DEMO, tmp_path_factory.mktemp("hospital"), f"archive.url={orthanc.web.url}",
        'door.peers=["ORTHANC", "PACS"]', "door.port=0", "batching.threads=1",
        "limits.requests_per_second=0",
    )  # fmt: skip
    served.door = door_of(served)
    yield served
    served.end()


@pytest.fixture
def chest(shared_data: Path) -> Callable[[], bytes]:
    """A genuine chest radiograph, each time of another study."""
    source = dcmread(shared_data / "dicom" / "cxr_NIH_DX_implicit_nofinding.dcm")

    def make() -> bytes:
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            setattr(source, keyword, generate_uid())
        source.file_meta.MediaStorageSOPInstanceUID = source.SOPInstanceUID
        stream = BytesIO()
        source.save_as(stream, enforce_file_format=True)
        return stream.getvalue()

    return make


def study_of(data: bytes) -> str:
    return str(dcmread(BytesIO(data), stop_before_pixels=True).StudyInstanceUID)


def reports(orthanc, study: str) -> list[str]:
    """SOP instance UIDs of the reports of a study."""
    answer = orthanc.ask(f"/dicom-web/studies/{study}/instances?00080060=SR")
    return [entry["00080018"]["Value"][0] for entry in answer]


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_the_page_typed(
    hospital, orthanc, chest, tmp_path: Path, missing_peer: Callable[[str], NoReturn]
) -> None:
    if shutil.which("dciodvfy") is None:
        missing_peer("dciodvfy is not installed: apt-get install dicom3tools")
    data = chest()
    (tmp_path / "chest.dcm").write_bytes(data)
    found = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    blocks = [block for block in found if "curl" in block]
    assert len(blocks) == 2
    said = []
    for block in blocks:
        script = block.replace("http://localhost:8080", hospital.url)
        script = script.replace("http://localhost:8042", f"http://127.0.0.1:{orthanc.http}")
        script = script.replace("curl -s ", "curl -sS --fail-with-body -w '\\n---\\n' ")
        done = subprocess.run(
            ["bash", "-c", "set -euo pipefail\n" + script], cwd=tmp_path, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (block, done.stdout[-500:], done.stderr)
        assert "Error" not in done.stdout + done.stderr
        said.append(done.stdout.split("\n---\n"))
    answer = json.loads(said[0][1])["results"][0]
    assert answer["status"] == 200
    assert len(answer["findings"]) == 14
    report = dcmread(tmp_path / "report.dcm")
    first = (tmp_path / "report.dcm").read_bytes()
    with hospital.client as client:  # asked for again, it is the same object
        kind = {"Content-Type": "application/dicom", "Accept": "application/dicom"}
        assert client.post("/v1/findings", content=data, headers=kind).content == first
    assert answer["report"] == {
        "sop_instance_uid": report.SOPInstanceUID, "queued": True, "reason": None
    }  # fmt: skip
    assert report.StudyInstanceUID == study_of(data)
    assert is_own(report)
    assert reports(orthanc, study_of(data)) == [report.SOPInstanceUID]
    assert study_of(data) in said[0][-2]
    assert json.loads(said[1][0])["00081199"]["Value"][0]["00081155"]
    time.sleep(1)  # what came by STOW-RS too is the same image: its report is the same object
    assert reports(orthanc, study_of(data)) == [report.SOPInstanceUID]
    with triton.InferenceServerClient(hospital.url.removeprefix("http://")) as caller:
        file = triton.InferInput("file", [1], "BYTES")
        file.set_data_from_numpy(np.array([data], object))
        told = caller.infer("medqua", [file]).as_numpy("probability")[0]
    assert told == pytest.approx([f["probability"] for f in answer["findings"]], abs=1e-4)


def test_an_archive_sends_by_either_door_and_has_one_report(
    hospital, orthanc, chest, eventually: Callable[..., Any]
) -> None:
    by_dimse, by_web = chest(), chest()
    for data in (by_dimse, by_web):
        orthanc.web(data)
    peer = {"AET": "MEDQUA", "Host": "127.0.0.1", "Port": hospital.door, "LocalAet": "ORTHANC"}
    orthanc.send("PUT", "/modalities/medqua", peer)
    orthanc.send("PUT", "/dicom-web/servers/medqua", {"Url": f"{hospital.url}/dicom-web/"})

    def instances(data: bytes) -> list[str]:
        query = {"Level": "Instance", "Query": {"StudyInstanceUID": study_of(data)}}
        return json.loads(orthanc.send("POST", "/tools/find", query))

    for _ in range(2):  # the second time nothing is new
        orthanc.send("POST", "/modalities/medqua/store", instances(by_dimse)[:1])
        orthanc.send("POST", "/dicom-web/servers/medqua/stow", {"Resources": instances(by_web)[:1]})
        for data in (by_dimse, by_web):
            eventually(lambda data=data: reports(orthanc, study_of(data)))
    for data in (by_dimse, by_web):
        assert len(reports(orthanc, study_of(data))) == 1
    sent = json.loads(  # the whole study, with our report in it: no loop
        orthanc.send(
            "POST", "/dicom-web/servers/medqua/stow", {"Resources": sorted(instances(by_web))}
        )
    )
    assert sent is not None
    with hospital.client as client:
        numbers = client.get("/metrics").text
        assert "medqua_job_files_waiting 0.0" in numbers
        assert "medqua_outbox_dead 0.0" in numbers
        assert client.get("/v1/admin/status").json()["outbox"] == {"waiting": 0, "dead": 0}
        assert client.post("/v1/admin/outbox/revive").json() == {"revived": 0}


def test_stow_names_what_became_of_each(hospital, chest) -> None:
    data = chest()
    client = DICOMwebClient(f"{hospital.url}/dicom-web")
    image = dcmread(BytesIO(data))
    told = client.store_instances([image], study_instance_uid=image.StudyInstanceUID)
    assert [i.ReferencedSOPInstanceUID for i in told.ReferencedSOPSequence] == [
        image.SOPInstanceUID
    ]
    other = dcmread(BytesIO(chest()))
    other.SOPClassUID = other.file_meta.MediaStorageSOPClassUID = SR
    stream = BytesIO()
    other.save_as(stream)
    with hospital.client as http:
        report = http.post(
            "/v1/findings", content=data,
            headers={"Content-Type": "application/dicom", "Accept": "application/dicom"},
        )  # fmt: skip
        assert report.headers["content-type"] == "application/dicom"
        parts = [data, report.content, stream.getvalue(), b"no DICOM"]
        mixed = stow(http, parts)
        assert mixed.status_code == 202
        answer = Dataset.from_json(mixed.json())
        assert [i.get("WarningReason", 0) for i in answer.ReferencedSOPSequence] == [0, 0xB006]
        assert [i.FailureReason for i in answer.FailedSOPSequence] == [0x0122, 0xC000]
        wrong = stow(http, [data], "/1.2.3")
        assert wrong.status_code == 409
        failed = Dataset.from_json(wrong.json()).FailedSOPSequence
        assert [i.FailureReason for i in failed] == [0xA900]
        refused = http.post("/v1/findings", files={"f": report.content}).json()["results"][0]
        assert refused["status"] == 422


def stow(http: httpx.Client, parts: list[bytes], path: str = "", boundary: str = "b") -> Any:
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    body = b"".join(head + part + b"\r\n" for part in parts) + f"--{boundary}--".encode()
    kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
    return http.post(f"/dicom-web/studies{path}", content=body, headers={"Content-Type": kind})


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("multipart/related; type=application/dicom; boundary=b", b"", 400),
        ("multipart/related; type=application/dicom; boundary=b", b"--b\r\n\r\nhalf", 400),
        ("multipart/related; type=application/dicom; boundary=b", b"--b--", 400),
        ("multipart/related; type=application/dicom; boundary=b", b"--c\r\n\r\nx\r\n--c--", 400),
        ("multipart/related; type=application/dicom; boundary=b", b"--b\r\n: x\r\n\r\n", 400),
        ("multipart/related; type=application/dicom; boundary=b", 1100 * b"--b\r\n\r\n\r\n", 413),
        ("multipart/related; type=application/dicom", b"x", 400),
        (f"multipart/related; type=application/dicom; boundary={'b' * 300}", b"x", 400),
        ('multipart/related; type="application/dicom+xml"; boundary=b', b"--b--", 415),
        ("multipart/form-data; boundary=b", b"--b--", 415),
        ("application/json", b"{}", 415),
        ("", b"", 415),
        ("application/dicom", b"", 400),
        ("application/dicom", b"x", 409),
        ("application/dicom", NESTED, 409),
    ],
)  # fmt: skip
def test_hostile_bodies_are_refused(hospital, kind: str, body: bytes, status: int) -> None:
    with hospital.client as http:
        answer = http.post("/dicom-web/studies", content=body, headers={"Content-Type": kind})
        assert answer.status_code == status, answer.text
        assert http.get("/readyz").status_code == 200


def test_other_answers_and_studies_that_are_none(hospital) -> None:
    with hospital.client as http:
        wanted = {"Content-Type": "application/dicom", "Accept": "text/html"}
        assert http.post("/dicom-web/studies", content=b"x", headers=wanted).status_code == 406
        assert http.post("/dicom-web/studies/1..2", content=b"x").status_code == 400


@pytest.mark.slow
def test_killed_between_any_two_steps_each_study_has_one_report(
    orthanc,
    chest,
    start_service: Callable[..., Any],
    eventually: Callable[..., Any],
    tmp_path: Path,
) -> None:
    sources = [chest() for _ in range(3)]
    for data in sources:
        orthanc.web(data)
    archive = f"archive.url={orthanc.web.url}"
    arguments = (archive, 'door.peers=["PACS"]', "door.port=0", "batching.threads=1")
    for pause in (0.0, 2.5, None):  # before a report is written, about when it is, and never
        served = start_service(DEMO, tmp_path, *arguments)
        door = door_of(served)
        for data in sources if pause == 0.0 else sources[:1]:
            assert send(door, data) == 0
        if pause is None:
            for data in sources:
                eventually(lambda data=data: reports(orthanc, study_of(data)))
            with served.client as http:
                eventually(lambda: "medqua_outbox_waiting 0.0" in http.get("/metrics").text)
            served.end()
        else:
            time.sleep(pause)
            served.process.send_signal(signal.SIGKILL)
            served.process.wait()
            served.end()
    assert [len(reports(orthanc, study_of(data))) for data in sources] == [1, 1, 1]


def send(port: int, data: bytes) -> int:
    image = dcmread(BytesIO(data))
    ae = AE(ae_title="PACS")
    ae.add_requested_context(image.SOPClassUID, image.file_meta.TransferSyntaxUID)
    link = ae.associate("127.0.0.1", port, ae_title="MEDQUA")
    assert link.is_established
    try:
        return int(link.send_c_store(image).Status)
    finally:
        link.release()
