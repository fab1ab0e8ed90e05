"""A small bundle, built once."""

import csv
import gc
import ipaddress
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from filelock import FileLock
from PIL import Image

from medqua.core.adapter import EntropyRouter, QuasarConfig
from medqua.core.findings import CHEXPERT_NAMES, Calibration
from medqua.core.model import Bundle, MedQuaClassifier, TinyArchitecture, load_backbone
from medqua.core.vision.image import ImageSpec

SMALL = TinyArchitecture(
    vision_depth=1, vision_hidden=16, vision_heads=2, vision_mlp=16,
    decoder_layers=2, hidden=32, heads=2, mlp=32,
)  # fmt: skip


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
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an adapter and a random head, saved."""
    torch.manual_seed(0)  # equal bits in every worker of pytest-xdist, which share the export
    backbone = load_backbone(architecture=SMALL, seed=5)
    config = QuasarConfig(n_qubits=2, max_depth=2, every=1, rank=4, engine="dense")
    classifier = MedQuaClassifier(peft.get_peft_model(backbone.model, config), 14, tune="full")
    for name, parameter in classifier.named_parameters():
        if "head" in name or "gamma" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    for module in classifier.modules():
        if isinstance(module, EntropyRouter):  # as after training: some tokens are routed
            module.threshold_logit.fill_(1.25)
    bundle = Bundle(
        classifier,
        backbone,
        ImageSpec(size=112),
        CHEXPERT_NAMES,
        calibration=Calibration((2.0,) * 14),
    )
    return bundle.save(tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture(scope="session")
def bundle(bundle_folder: Path) -> Bundle:
    """The same, opened."""
    return Bundle.open(bundle_folder)


@pytest.fixture(scope="session")
def validation_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images in a table of the bundle's labels, one column missing, one value unknown."""
    folder = tmp_path_factory.mktemp("validation")
    random = np.random.default_rng(7)
    with (folder / "table.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["image", "split", *CHEXPERT_NAMES[:-1]])
        for number in range(7):
            levels = random.integers(0, 256, (70, 66 + number), dtype=np.uint8)
            Image.fromarray(levels).save(folder / f"{number}.png")
            split = "train" if number == 6 else "validate"
            labels = ["", *(number % 2 for _ in CHEXPERT_NAMES[2:])]
            rows.writerow([f"{number}.png", split, *labels])
    return folder / "table.csv"


@pytest.fixture(scope="session")
def export_folder(
    bundle_folder: Path, validation_table: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An export of the bundle, by the command, with its single-file graph laid out for Triton."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder = root / "export-of-the-session"
    command = ["-m", "medqua.serve", "export", str(bundle_folder), str(folder), "--triton"]
    command += ["--validation", str(validation_table)]
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            subprocess.run([sys.executable, *command], check=True)
    return folder


@pytest.fixture(scope="module")
def refused_connections() -> Iterator[None]:
    """Collect, with their module, the sockets that pynetdicom leaves where nobody listens."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
