"""C-STORE over TLS, in and out, with Orthanc and with whoever has no right to it."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian

from medqua.core.errors import ConfigError
from medqua.serve.jobs.outgoing import sender
from medqua.serve.pacs.dimse import DimseArchive, StorePort, StorePortOptions
from medqua.serve.pacs.errors import PacsUnreachableError
from medqua.serve.pacs.spool import Spool
from medqua.serve.pacs.tls import Certificates
from medqua.serve.report.sr import to_bytes
from medqua.serve.settings import Settings

# pynetdicom leaves the socket of a refused connection to the garbage collector
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed <s:ResourceWarning"),
    pytest.mark.usefixtures("refused_connections"),
]


Peer = Callable[[Certificates | None], DimseArchive]


def image(uid: str) -> bytes:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.7", "1.2.7.2"
    ds.PatientName, ds.PatientID, ds.Modality = "Fictitious^Ada", "X1", "CR"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows = ds.Columns = ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    ds.PixelData = bytes(64)
    return to_bytes(ds)


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory, issue: Callable[..., Any]) -> Path:
    """Certificates of an authority for both sides, and a stranger's own."""
    folder = tmp_path_factory.mktemp("papers")
    authority = issue("authority")
    authority.write(folder, "authority")
    for name in ("medqua", "pacs"):
        issue(name, authority).write(folder, name)
    issue("stranger").write(folder, "stranger")
    return folder


def shown(papers: Path, name: str | None, authority: str = "authority") -> Certificates:
    own = (None, None) if name is None else (papers / f"{name}.pem", papers / f"{name}.key")
    return Certificates(*own, papers / f"{authority}.pem")


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


@pytest.fixture
def door(spool: Spool, papers: Path, patience: float) -> Iterator[StorePort]:
    options = StorePortOptions(
        ("PACS",), port=0, idle_seconds=patience, certificates=shown(papers, "medqua")
    )
    port = StorePort(spool, options)
    yield port
    port.close()


@pytest.fixture
def peer(door: StorePort, patience: float) -> Peer:
    """Who comes to the door with certificates."""
    return partial(DimseArchive, "127.0.0.1", door.port, "MEDQUA", "PACS", patience)


def test_a_peer_of_the_authority_sends_what_then_is_on_disk(
    peer: Peer, spool: Spool, papers: Path
) -> None:
    link = peer(shown(papers, "pacs"))
    link.echo()
    link(image("1.2.7.1"))
    [name] = spool.waiting()
    assert dcmread(BytesIO(spool.read(name))).SOPInstanceUID == "1.2.7.1"


@pytest.mark.parametrize("who", ["nobody", "stranger", "plain", "believes another"])
def test_nobody_else_is_heard(peer: Peer, spool: Spool, papers: Path, who: str) -> None:
    certificates = {
        "nobody": shown(papers, None),
        "stranger": shown(papers, "stranger"),
        "plain": None,
        "believes another": shown(papers, "pacs", "stranger"),
    }[who]
    with pytest.raises(PacsUnreachableError, match=r"cannot be reached|connection"):
        peer(certificates)(image("1.2.7.2"))
    assert not list(spool.waiting())
    peer(shown(papers, "pacs")).echo()  # the door stays open for who may


def test_orthanc_takes_and_sends_over_tls(
    start_orthanc: Callable[..., AbstractContextManager[Any]],
    door: StorePort,
    spool: Spool,
    papers: Path,
    patience: float,
) -> None:
    with start_orthanc(
        DicomTlsEnabled=True, DicomTlsRemoteCertificateRequired=True,
        DicomTlsCertificate=str(papers / "pacs.pem"), DicomTlsPrivateKey=str(papers / "pacs.key"),
        DicomTlsTrustedCertificates=str(papers / "authority.pem"),
    ) as orthanc:  # fmt: skip
        archive = {
            "host": "127.0.0.1", "port": orthanc.dicom, "title": "ORTHANC", "tls": True,
            "certificate": papers / "medqua.pem", "private_key": papers / "medqua.key",
            "authorities": papers / "authority.pem", "answer_seconds": patience,
        }  # fmt: skip
        settings = Settings.from_dict({"archive": archive, "storage": {"spool": papers}})
        sender(settings.archive)(image("1.2.7.3"))
        with pytest.raises(PacsUnreachableError, match="certificates of both sides"):
            DimseArchive(
                "127.0.0.1", orthanc.dicom, "ORTHANC", "MEDQUA", patience, shown(papers, "stranger")
            ).echo()
        found = json.loads(orthanc.send("POST", "/tools/find", {"Level": "Instance", "Query": {}}))
        assert len(found) == 1
        modality = {
            "AET": "MEDQUA", "Host": "127.0.0.1", "Port": door.port, "LocalAet": "PACS",
            "UseDicomTls": True,
        }  # fmt: skip
        orthanc.send("PUT", "/modalities/medqua", modality)
        orthanc.send("POST", "/modalities/medqua/store", found)
    [name] = spool.waiting()
    assert dcmread(BytesIO(spool.read(name))).SOPInstanceUID == "1.2.7.3"


def test_files_that_are_no_certificates_are_refused_by_name(tmp_path: Path, papers: Path) -> None:
    text = tmp_path / "text.pem"
    text.write_text("none")
    with pytest.raises(ConfigError, match=r"text\.pem"):
        Certificates(text, text).for_peers()
    with pytest.raises(ConfigError, match=r"No such file"):
        Certificates(authorities=tmp_path / "absent.pem").for_archive()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"door": {"certificate": "a.pem"}}, "both door.certificate and"),
        ({"door": {"authorities": "a.pem"}}, "goes with door.certificate"),
        ({"archive": {"url": "https://pacs", "tls": True}}, "goes with archive.host"),
        ({"archive": {"host": "a", "title": "A", "certificate": "a.pem"}}, "goes with archive.tls"),
        (
            {"archive": {"host": "a", "title": "A", "tls": True, "private_key": "a.key"}},
            "both archive.certificate and",
        ),
    ],
)
def test_settings_of_tls_that_do_not_fit_are_refused(
    section: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings.from_dict({"storage": {"spool": tmp_path}, **section})
