"""Fixtures shared by every package's tests, and the order in which they run."""

import csv
import gc
import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import hypothesis
import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

# a busy machine pauses for longer than any deadline; speed has its place in benchmarks/
hypothesis.settings.register_profile("medqua", deadline=None)
hypothesis.settings.load_profile("medqua")

if not torch.cuda.is_available():  # before Triton is imported: its kernels then run on the CPU
    os.environ.setdefault("TRITON_INTERPRET", "1")

WIDTH = shutil.get_terminal_size().columns
os.environ["COLUMNS"] = "10000"  # printed text is compared: no terminal's width may wrap it
os.environ.pop("FORCE_COLOR", None)

ROOT = Path(__file__).resolve().parent
T = TypeVar("T")

PATIENCE = float(os.environ.get("MEDQUA_TEST_PATIENCE", "900"))
"""Seconds that a test waits for anything at most. It ends a hang; no busy machine comes near it."""


@pytest.fixture(scope="session")
def patience() -> float:
    """Seconds after which a wait is a hang: the timeout of whatever takes one."""
    return PATIENCE


@pytest.fixture(scope="session")
def eventually() -> Callable[[Callable[[], T]], T]:
    """Wait until a condition holds, and return what it gave: `eventually(file.exists)`."""

    def wait(condition: Callable[[], T]) -> T:
        until = time.monotonic() + PATIENCE
        while not (found := condition()):
            assert time.monotonic() < until, f"it did not happen within {PATIENCE:.0f} s"
            time.sleep(0.01)
        return found

    return wait


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Keep pytest's own lines as wide as the terminal."""
    if config.pluginmanager.has_plugin("terminalreporter"):
        config.get_terminal_writer().fullwidth = WIDTH


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Leave what was imported out of garbage collections: training asks for one in every run."""
    gc.disable()
    try:
        if "PYTEST_XDIST_WORKER" in os.environ:  # CUDA-Q looks through all that is loaded, for each
            _compile_kernels()  # of its kernels: it is quick while that is little
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def _compile_kernels() -> None:
    from medqua.core.errors import MedQuaError  # after jaxtyping's hook on the packages

    with suppress(MedQuaError):
        importlib.import_module("medqua.core.quantum.runtime.kernels")


def pytest_unconfigure() -> None:
    """Let all go at the end."""
    gc.unfreeze()


TOGETHER = (  # files that share what is dear to start; the dearest first, so that none is the tail
    (
        "ui/tests/test_app", "ui/tests/test_workplace", "ui/tests/test_viewer_pixels",
        "ui/tests/test_orders",
    ),
    (
        "http/test_findings_route", "http/test_inference_protocol", "http/test_explanation_route",
        "http/test_job_routes", "http/test_serving_page",
    ),
    ("export/test_export", "inference/test_session"),
    ("tests/test_flow", "tests/test_skew"),
    ("ui/tests/test_overlay",),
    ("quantum/test_queue",),
    ("http/test_hospital", "ui/tests/test_hospital"),
    ("ui/tests/test_login",),
    ("train/tests/test_distributed_training",),
    ("quantum/test_conformance",),
    ("adapter/test_ranks", "adapter/test_distributed"),
    ("offline/test_offline", "processes/test_reader", "processes/test_start"),
    ("train/tests/test_run", "train/tests/test_card"),
)  # fmt: skip


def place(nodeid: str) -> int:
    """Where in `TOGETHER` a test's file stands; after the last for all others."""
    file = nodeid.partition(".py::")[0]
    found = (place for place, files in enumerate(TOGETHER) if file.endswith(files))
    return next(found, len(TOGETHER))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what is dear."""
    items.sort(key=lambda item: place(item.nodeid))


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """One worker more than cores: a fifth of the time tests wait for browsers and servers."""
    cores = yield
    return cores if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ else cores + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Let a worker of `--dist loadfile` have what stands together in `TOGETHER`."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            at = place(nodeid)
            return str(at) if at < len(TOGETHER) else str(super()._split_scope(nodeid))

    config.option.loadscopereorder = False  # by the number of tests
    return Scheduling(config, log)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of genuine radiographs and hostile files (`MEDQUA_TEST_DATA`)."""
    root = Path(os.environ.get("MEDQUA_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no real files at {root}: set MEDQUA_TEST_DATA")
    return root


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an adapter and a random head, saved."""
    import peft

    from medqua.core.adapter import EntropyRouter, QuasarConfig
    from medqua.core.findings import CHEXPERT_NAMES, Calibration
    from medqua.core.model import Bundle, MedQuaClassifier, TinyArchitecture, load_backbone
    from medqua.core.vision.image import ImageSpec

    small = TinyArchitecture(
        vision_depth=1, vision_hidden=16, vision_heads=2, vision_mlp=16,
        decoder_layers=2, hidden=32, heads=2, mlp=32,
    )  # fmt: skip
    torch.manual_seed(0)  # equal bits in every worker of pytest-xdist, which share the export
    backbone = load_backbone(architecture=small, seed=5)
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
def validation_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images in a table of the bundle's labels, one column missing, one value unknown."""
    from medqua.core.findings import CHEXPERT_NAMES

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


@pytest.fixture(scope="session")
def missing_peer() -> Callable[[str], NoReturn]:
    """What to call where a program that tests talk to is not installed (Orthanc, Chromium...).

    The test is skipped, and fails with `MEDQUA_TEST_PEERS=required`, which `.ci/run` sets.
    """

    def missing(reason: str) -> NoReturn:
        if os.environ.get("MEDQUA_TEST_PEERS") == "required":
            pytest.fail(reason)
        pytest.skip(reason)

    return missing


class Orthanc:
    """A running Orthanc."""

    def __init__(self, http: int, dicom: int) -> None:
        from medqua.serve.pacs.dicomweb import DicomWebArchive
        from medqua.serve.pacs.dimse import DimseArchive

        self.http, self.dicom = http, dicom
        address = f"http://127.0.0.1:{http}/dicom-web"
        self.web = DicomWebArchive(address, connect_seconds=PATIENCE, read_seconds=PATIENCE)
        self.dimse = DimseArchive("127.0.0.1", dicom, "ORTHANC", seconds=PATIENCE)

    def ask(self, path: str) -> object:
        """Return what a path of its own interface answers."""
        address = f"http://127.0.0.1:{self.http}{path}"
        with urllib.request.urlopen(address, timeout=PATIENCE) as answer:
            return json.load(answer)

    @property
    def ready(self) -> bool:
        """Whether it answers."""
        try:
            self.ask("/dicom-web/studies?limit=1")
        except OSError:
            return False
        return True

    def send(self, method: str, path: str, body: object) -> bytes:
        """Send a JSON body."""
        address = f"http://127.0.0.1:{self.http}{path}"
        content = json.dumps(body).encode()
        request = urllib.request.Request(address, content, method=method)
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            told: bytes = answer.read()
        return told

    def modalities(self, study: str) -> list[str]:
        """Return the modalities of a study's series."""
        found = self.ask(f"/dicom-web/studies/{study}/series")
        assert isinstance(found, list)
        return sorted(series["00080060"]["Value"][0] for series in found)


@contextmanager
def kept_port() -> Iterator[int]:
    """A port that nobody gets who asks for a free one.

    Nobody listens there, until a server that was told the number does: servers set `SO_REUSEADDR`.
    """
    with socket.socket() as kept:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", 0))
        yield int(kept.getsockname()[1])


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port where nobody listens but whom the test starts there."""
    with kept_port() as port:
        yield port


@pytest.fixture(scope="session")
def start_orthanc(
    tmp_path_factory: pytest.TempPathFactory,
    missing_peer: Callable[[str], NoReturn],
    eventually: Callable[[Callable[[], Any]], Any],
) -> Callable[..., AbstractContextManager[Orthanc]]:
    """Run archives that listen for DICOMweb and DIMSE on this machine alone; keywords configure."""

    @contextmanager
    def start(**more: Any) -> Iterator[Orthanc]:
        with kept_port() as http, kept_port() as dicom, running(http, dicom, more) as server:
            yield server

    @contextmanager
    def running(http: int, dicom: int, more: dict[str, Any]) -> Iterator[Orthanc]:
        program = shutil.which("Orthanc")
        plugins = Path("/usr/share/orthanc/plugins")
        if program is None or not list(plugins.glob("*DicomWeb*")):
            missing_peer("Orthanc is not installed: apt-get install orthanc orthanc-dicomweb")
        folder = tmp_path_factory.mktemp("orthanc")
        settings = {
            "Name": "test", "StorageDirectory": str(folder), "IndexDirectory": str(folder),
            "Plugins": [str(plugin) for plugin in plugins.glob("*DicomWeb*")],
            "HttpPort": http, "DicomPort": dicom, "DicomAet": "ORTHANC",
            "RemoteAccessAllowed": False, "AuthenticationEnabled": False,
            "DicomAlwaysAllowStore": True, "DicomAlwaysAllowEcho": True, **more,
        }  # fmt: skip
        (folder / "orthanc.json").write_text(json.dumps(settings))
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen([program, folder / "orthanc.json"], stdout=log, stderr=log)
        try:
            server = Orthanc(http, dicom)
            eventually(lambda: process.poll() is not None or server.ready)
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            yield server
        finally:
            process.terminate()
            process.wait(PATIENCE)
            shutil.rmtree(folder)

    return start


@pytest.fixture(scope="session")
def orthanc(start_orthanc: Callable[..., AbstractContextManager[Orthanc]]) -> Iterator[Orthanc]:
    """An archive of all tests of a process."""
    with start_orthanc() as server:
        yield server
