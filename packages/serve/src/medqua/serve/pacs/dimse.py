"""The archive's own protocol: C-STORE in and out, C-ECHO (PS3.7, PS3.8).

A received image is on disk before success is answered. Only known peers may connect; what they
send is bounded in size and time while it arrives. Structured reports are not among the classes
that are negotiated, and other objects of ours are discarded with a warning status, so that no
route of an archive can make us read our own results.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Protocol, runtime_checkable

from pydicom import dcmread
from pydicom.uid import AllTransferSyntaxes, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
    Verification,
)

from medqua.core.errors import ConfigError, ImageError
from medqua.serve.objects.heads import read_head
from medqua.serve.objects.identity import is_own_uid, is_uid
from medqua.serve.pacs.errors import (
    PacsRejectedError,
    PacsTimeoutError,
    PacsUnreachableError,
    SpoolError,
)
from medqua.serve.pacs.tls import Certificates

log = logging.getLogger(__name__)

IMAGES = (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
)
"""SOP classes that are taken: those a radiograph comes as."""


@runtime_checkable
class Keeps(Protocol):
    """Where received objects go: a `Spool`, or what makes jobs of them."""

    def put(self, data: bytes) -> str:
        """Keep an object on disk; return its name.

        Raises:
            SpoolError: It cannot be kept.
        """
        ...


SUCCESS, DISCARDED, DUPLICATE = 0x0000, 0xB006, 0x0111
OUT_OF_RESOURCES, NOT_UNDERSTOOD = 0xA700, 0xC000


@dataclass(frozen=True)
class StorePortOptions:
    """Who may send, and how much."""

    peers: tuple[str, ...]
    """AE titles that may connect; none stands for nobody."""
    title: str = "MEDQUA"
    """Own AE title; peers must call it."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 11112
    """TCP port; 0 takes a free one."""
    associations: int = 8
    """Associations at a time."""
    pdu_bytes: int = 65536
    """Largest PDU, in bytes."""
    object_bytes: int = 128 << 20
    """Largest object, in bytes; the association that sends more is cut."""
    idle_seconds: float = 30.0
    """Silence after which an association is ended, in seconds."""
    object_seconds: float = 120.0
    """Time in which one object must have arrived, in seconds."""
    certificates: Certificates | None = None
    """Ours, and who vouches for the peers'; None listens without TLS."""

    def __post_init__(self) -> None:
        if not self.peers:
            raise ConfigError("no AE title may connect: name the archives that send images")
        for title in (self.title, *self.peers):
            if not 0 < len(title.strip()) <= 16 or "\\" in title or not title.isascii():
                raise ConfigError(f"AE title {title!r}: needed 1 to 16 ASCII characters")


class StorePort:
    """A C-STORE and C-ECHO provider in front of a spool; it runs in threads of its own.

    Args:
        spool: Where received objects wait.
        options: Who may send.
        received: Called with an object's name once it is on disk.
        refused: Called with a word and the peer's address where an association or an object of ours
            was refused.

    Raises:
        ConfigError: The port cannot be listened on, or a certificate is none.
    """

    def __init__(
        self,
        spool: Keeps,
        options: StorePortOptions,
        received: Callable[[str], None] | None = None,
        refused: Callable[[str, str], None] | None = None,
    ) -> None:
        self._spool, self._options, self._received = spool, options, received
        self._refused = refused
        self._arriving: dict[int, tuple[float, int]] = {}
        self._lock = threading.Lock()
        certificates = options.certificates
        ae = AE(ae_title=options.title)
        ae.require_called_aet = True
        ae.require_calling_aet = list(options.peers)
        ae.maximum_associations = options.associations
        ae.maximum_pdu_size = options.pdu_bytes
        ae.network_timeout = ae.acse_timeout = ae.dimse_timeout = options.idle_seconds
        ae.add_supported_context(Verification)
        for sop_class in IMAGES:
            ae.add_supported_context(sop_class, AllTransferSyntaxes)
        handlers: list[Any] = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_DATA_RECV, self._bound),
            (evt.EVT_CONN_CLOSE, self._gone),
            (evt.EVT_REJECTED, self._rejected),
        ]
        try:
            server = ae.start_server(
                (options.host, options.port),
                block=False,
                ssl_context=None if certificates is None else certificates.for_peers(),
                evt_handlers=handlers,
            )
        except OSError as error:
            raise ConfigError(
                f"port {options.port} cannot be listened on ({error.strerror}); choose another"
            ) from None
        assert server is not None  # it does not block
        self._server = server

    @property
    def port(self) -> int:
        """TCP port that is listened on."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """End all associations; what was received stays on disk."""
        self._server.shutdown()

    def _store(self, event: evt.Event) -> int:
        """Answer a C-STORE request (PS3.4 table B.2-1)."""
        self._restart(event)
        uid = str(event.request.AffectedSOPInstanceUID or "")  # type: ignore[union-attr]
        if not is_uid(uid):
            return NOT_UNDERSTOOD
        data = event.encoded_dataset()
        try:
            own = read_head(data).own
        except ImageError:  # judged when it is decoded; here only its owner matters
            own = False
        if own or is_own_uid(uid):
            log.warning("own object discarded")
            self._tell_refused("C-STORE of an own object", event)
            return DISCARDED
        try:
            name = self._spool.put(data)
        except SpoolError as error:
            log.error("object refused", extra={"told": {"error": str(error)}})
            return OUT_OF_RESOURCES
        if self._received is not None:
            self._received(name)
        return SUCCESS

    def _bound(self, event: evt.Event) -> None:
        """Cut an association whose object is too large or too slow."""
        now = time.monotonic()
        with self._lock:
            since, so_far = self._arriving.get(id(event.assoc), (now, 0))
            so_far += len(event.data)
            self._arriving[id(event.assoc)] = since, so_far
        allowed = self._options.object_bytes + (1 << 20)  # commands, headers of PDUs
        if so_far > allowed or now - since > self._options.object_seconds:
            log.warning("association cut: over its limit of size or time")
            connection = event.assoc.dul.socket
            if connection is not None:
                with suppress(OSError):
                    connection.close()

    def _restart(self, event: evt.Event) -> None:
        with self._lock:
            self._arriving.pop(id(event.assoc), None)

    def _rejected(self, event: evt.Event) -> None:
        log.warning("association rejected")
        self._tell_refused("association", event)

    def _tell_refused(self, what: str, event: evt.Event) -> None:
        if self._refused is not None:
            self._refused(what, str(event.assoc.remote.get("address") or ""))

    def _gone(self, event: evt.Event) -> None:
        self._restart(event)


@dataclass(frozen=True)
class DimseArchive:
    """An archive's C-STORE service; called with an object, it stores it."""

    host: str
    """Its address."""
    port: int
    """Its TCP port."""
    title: str
    """Its AE title."""
    own_title: str = "MEDQUA"
    """AE title that is shown to it."""
    seconds: float = 30.0
    """Wait for a connection and for each answer, in seconds."""
    certificates: Certificates | None = None
    """Ours, and who vouches for the archive's; None connects without TLS."""

    def echo(self) -> None:
        """Ask whether it is there (C-ECHO).

        Raises:
            PacsError: As in a call.
        """
        self._exchange(str(Verification), ImplicitVRLittleEndian, lambda link: link.send_c_echo())

    def __call__(self, data: bytes) -> None:
        """Store an object.

        Raises:
            PacsUnreachableError: Nobody answers, or the connection broke.
            PacsTimeoutError: No answer in time.
            PacsRejectedError: It refuses the association, the class, or the object.
        """
        ds = dcmread(BytesIO(data))
        syntax = ds.file_meta.get("TransferSyntaxUID", ExplicitVRLittleEndian)
        self._exchange(str(ds.SOPClassUID), syntax, lambda link: link.send_c_store(ds))

    def _exchange(self, sop_class: str, syntax: str, ask: Callable[[Any], Any]) -> None:
        ae = AE(ae_title=self.own_title)
        ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = self.seconds
        ae.network_timeout = self.seconds
        ae.add_requested_context(sop_class, syntax)
        start = time.monotonic()
        tls = None
        if self.certificates is not None:
            tls = self.certificates.for_archive(), self.host
        link = ae.associate(self.host, self.port, ae_title=self.title, tls_args=tls)
        late = time.monotonic() - start >= self.seconds
        if link.is_rejected:
            raise PacsRejectedError("the archive refuses the association; check both AE titles")
        if not link.is_established:
            if link.accepted_contexts or link.rejected_contexts:
                raise PacsRejectedError("the archive does not take this class of object")
            if late:
                raise PacsTimeoutError(f"no association within {self.seconds:g} s")
            raise PacsUnreachableError(
                "the archive cannot be reached; check host and port"
                + (", and the certificates of both sides" if tls else "")
            )
        start = time.monotonic()
        try:
            status = ask(link)
        except (ValueError, RuntimeError):
            raise PacsRejectedError("the archive does not take this class of object") from None
        finally:
            if link.is_established:
                link.release()
        code = status.get("Status") if status else None
        if code is None:
            if time.monotonic() - start >= self.seconds:
                raise PacsTimeoutError(f"no answer within {self.seconds:g} s")
            raise PacsUnreachableError("the connection to the archive broke")
        if code == DUPLICATE:  # PS3.7 C.4.2: as after an answer that was lost
            return
        if code != SUCCESS and (int(code) >> 12) != 0xB:  # warnings: it is stored (PS3.4 B.2.3)
            raise PacsRejectedError(f"the archive answered status 0x{int(code):04X}")
