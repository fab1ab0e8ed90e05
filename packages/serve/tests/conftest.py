"""The small bundle, opened; certificates; folders of pictures."""

import gc
import ipaddress
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from PIL import Image

if TYPE_CHECKING:
    from medqua.core.model import Bundle


@dataclass
class Identity:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
        certificate.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        private = self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        key.write_bytes(private)
        return certificate, key


def make_identity(name: str, authority: Identity | None = None) -> Identity:
    """Make a certificate, of an authority or of its own."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer = subject if authority is None else authority.certificate.subject
    signer = key if authority is None else authority.key
    now = datetime.now(UTC)
    address = x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(identifier, critical=False)
        .sign(signer, hashes.SHA256())
    )
    return Identity(certificate, key)


@pytest.fixture(scope="session")
def issue() -> Callable[..., Identity]:
    """Make certificates of this machine's loopback address: `issue(name, authority=None)`."""
    return make_identity


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio."""
    return "asyncio"


@pytest.fixture
def fill() -> Callable[[Path, int], Path]:
    """Make a folder of so many different pictures."""

    def make(folder: Path, count: int) -> Path:
        folder.mkdir()
        for seed in range(count):
            levels = np.random.default_rng(seed).integers(0, 256, (70, 66), dtype=np.uint8)
            Image.fromarray(levels).save(folder / f"{seed:03}.png")
        return folder

    return make


@pytest.fixture(scope="session")
def bundle(bundle_folder: Path) -> "Bundle":
    """The same, opened."""
    from medqua.core.model import Bundle  # after jaxtyping's hook on the packages

    return Bundle.open(bundle_folder)


@pytest.fixture(scope="module")
def refused_connections() -> Iterator[None]:
    """Collect, with their module, the sockets that pynetdicom leaves where nobody listens."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
