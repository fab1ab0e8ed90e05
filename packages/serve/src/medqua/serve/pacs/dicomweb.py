"""Objects to an archive by DICOMweb: STOW-RS (PS3.18 10.5), and a look at what it then holds.

An archive that has another object of the same UID keeps that one, and most say "stored" all the
same. So what was stored is read back (WADO-RS, PS3.18 10.4) and compared.
"""

import logging
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import requests
from dicomweb_client import DICOMwebClient
from pydicom import Dataset, dcmread

from medqua.serve.pacs.errors import (
    PacsConflictError,
    PacsGarbledError,
    PacsRejectedError,
    PacsTimeoutError,
    PacsUnreachableError,
)

log = logging.getLogger("medqua.serve")

_CONTENT = ("StudyInstanceUID", "ContentDate", "ContentTime", "ContentSequence")


@dataclass(frozen=True)
class DicomWebArchive:
    """An archive's DICOMweb service; called with an object, it stores it."""

    url: str
    """Its base, such as `https://pacs.example/dicom-web`."""
    token: str = ""
    """Bearer token; empty sends none."""
    authorities: Path | None = None
    """Certificate authorities, PEM; the system's by default."""
    connect_seconds: float = 5.0
    """Wait for a connection, in seconds."""
    read_seconds: float = 30.0
    """Wait for the next bytes of an answer, in seconds."""
    read_back: bool = True
    """Whether to look at what it holds after an object was stored."""

    def __call__(self, data: bytes) -> None:
        """Store an object.

        Raises:
            PacsUnreachableError: Nobody answers, or the connection broke.
            PacsTimeoutError: No answer in time.
            PacsRejectedError: An HTTP status above 299, or the object is among the failed.
            PacsGarbledError: An answer that does not tell that the object was stored.
            PacsConflictError: It holds another object under this UID.
        """
        ds = dcmread(BytesIO(data))
        with requests.Session() as session:
            session.max_redirects = 0  # reports go to the archive that was named, nowhere else
            session.trust_env = False
            if self.token:
                session.headers["Authorization"] = f"Bearer {self.token}"
            if self.authorities is not None:
                session.verify = str(self.authorities)
            client = DICOMwebClient(
                self.url, session=session, timeout=(self.connect_seconds, self.read_seconds)
            )
            client.set_http_retry_params(retry=False)  # the outbox retries
            try:
                answer = client.store_instances([ds])
            except requests.Timeout:
                raise PacsTimeoutError(
                    f"the archive did not answer within {self.read_seconds:g} s"
                ) from None
            except requests.TooManyRedirects:
                raise PacsRejectedError("the archive redirects; give its final address") from None
            except requests.HTTPError as error:
                status = "" if error.response is None else error.response.status_code
                raise PacsRejectedError(f"the archive answered HTTP status {status}") from None
            except requests.exceptions.InvalidJSONError:
                raise PacsGarbledError("the archive's answer is no JSON") from None
            except requests.RequestException as error:
                raise PacsUnreachableError(
                    f"the archive cannot be reached ({type(error).__name__})"
                ) from None
            except Exception as error:  # parsers of what it answered raise anything
                raise PacsGarbledError(
                    f"the archive's answer cannot be read ({type(error).__name__})"
                ) from None
            _check(answer, str(ds.SOPInstanceUID))
            if self.read_back:
                self._compare(client, ds)

    def _compare(self, client: DICOMwebClient, ds: Dataset) -> None:
        """Hold what the archive has against an object; one that gives nothing back is believed."""
        try:
            held = client.retrieve_instance(
                ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID
            )
            same = _says(held) == _says(ds)
        except Exception as error:  # it may not allow it, or not have it ready yet
            log.info("not read back", extra={"told": {"error": type(error).__name__}})
            return
        if not same:
            raise PacsConflictError("the archive holds another object under this UID")


def _says(ds: Dataset) -> list[object]:
    """Return what an object says, less what archives may rewrite: names, numbers, encoding."""
    told = [ds[name].to_json_dict(None, 0) for name in _CONTENT if name in ds]
    return [*told, ds.get("PixelData")]


def _check(answer: Dataset, uid: str) -> None:
    """Believe that an object is stored only if the answer names it among the stored."""
    try:
        refused = answer.get("FailedSOPSequence", ())
        failed = [str(item.ReferencedSOPInstanceUID) for item in refused]
        taken = answer.get("ReferencedSOPSequence", ())
        stored = [str(item.ReferencedSOPInstanceUID) for item in taken]
    except (AttributeError, TypeError, ValueError):
        raise PacsGarbledError("the archive's answer names no objects") from None
    if failed:
        raise PacsRejectedError("the archive refused the object")
    if uid not in stored:
        raise PacsGarbledError("the archive's answer does not name the object among the stored")
