"""How fast the service answers real radiographs, beside the plain pipeline of transformers.

    hatch run bench:serve                                  # every part, about ten minutes
    hatch run bench:serve --part demo --images 64
    hatch run bench:serve --part memory --requests 10000

Ours: `medqua-serve app` on an export, asked over HTTP by one client, then by 16 at once; an image
counts from the DICOM file's bytes to its findings. The peer: `serve_models.plain_pipeline` on the
same bundle, in one process without HTTP, which gains nothing from more clients. Both may use all
cores. The files are the genuine chest radiographs of the shared data, in turn. What the adapter
costs is the time of an image in the session less that of the same export without an adapter.

Parts: demo, width (models), decode (the largest file), start (to ready), memory (over requests).
Each writes its figures into `results/serve.json` and leaves the others' alone.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from io import BytesIO
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track
from serve_clients import ask, service
from serve_models import plain_pipeline, plain_pixels, save
from serve_table import CLIENTS, RESULTS, show

from medqua.core.vision.image import Decoder, ImageSpec
from medqua.serve.inference.session import ServingSession

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("MEDQUA_TEST_DATA", ROOT.parent / "shared" / "data"))
PACKAGES = ("torch", "transformers", "onnxruntime", "pydicom", "uvicorn", "medqua-serve")
LARGE = "cxr_RG1_J2KI.dcm"  # 1955 x 1841, 15 bits, JPEG 2000
PARTS = ("demo", "width", "decode", "start", "memory")


def median(work: Callable[[], object], times: int) -> float:
    """Return the median seconds of a call, the first two left out."""
    took = []
    for _ in range(times + 2):
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    return statistics.median(took[2:])


def contents() -> list[bytes]:
    """Return the genuine chest radiographs."""
    return [path.read_bytes() for path in sorted((DATA / "dicom").glob("cxr_*.dcm"))]


def exported(name: str, models: Path) -> tuple[Path, Path]:
    """Return bundle and export of a model of `serve_models.save`, made where they are not there."""
    bundle, export = models / name, models / f"{name}-export"
    if not export.is_dir():
        if not bundle.is_dir():
            save(name, bundle)
        command = [sys.executable, "-m", "medqua.serve", "export", str(bundle), str(export)]
        subprocess.run([*command, "--json", "--limit", "2"], check=True, stdout=subprocess.DEVNULL)
    return bundle, export


def inside(export: Path, times: int) -> float:
    """Return the median seconds of one image in the session, decoding and HTTP left out."""
    with ServingSession.open(export) as session:
        side = session.image.size or 448
        image = np.linspace(0, 1, side * side, dtype=np.float32).reshape(side, side)
        return median(lambda: session.read([image]), times)


def throughput(name: str, images: int, models: Path) -> dict[str, Any]:
    """Measure a model: images a second of service and peer, latencies, the adapter's share."""
    files = contents()
    turn = list(islice(cycle(files), images))
    bundle, export = exported(name, models)
    _, bare = exported(f"{name}-bare", models)
    whole, without = inside(export, images), inside(bare, images)
    peer = plain_pipeline(bundle)
    for content in files:
        peer(content)
    rates: dict[str, list[float]] = {"peer": [], "one": [], "many": []}
    alone, under = [], []
    with service(export) as (url, _, _):
        ask(url, files * 2, CLIENTS)
        for _ in range(3):  # in turn, so that what else the machine does meets all alike
            start = time.perf_counter()
            for content in turn:
                peer(content)
            rates["peer"].append(images / (time.perf_counter() - start))
            rate, seconds = ask(url, turn, 1)
            rates["one"].append(rate)
            alone += seconds
            rate, seconds = ask(url, turn * 2, CLIENTS)
            rates["many"].append(rate)
            under += seconds
    p50, p99 = np.percentile(under, (50, 99))
    return {
        "images": images,
        "peer_images_per_second": statistics.median(rates["peer"]),
        "one_client_images_per_second": statistics.median(rates["one"]),
        "many_clients_images_per_second": statistics.median(rates["many"]),
        "one_client_p50_seconds": statistics.median(alone),
        "many_clients_p50_seconds": float(p50),
        "many_clients_p99_seconds": float(p99),
        "session_seconds": whole,
        "session_seconds_without_adapter": without,
    }


def decoding(times: int) -> dict[str, Any]:
    """Measure the largest file to an image, beside pydicom and numpy alone."""
    large, spec = (DATA / "dicom" / LARGE).read_bytes(), ImageSpec(size=448)
    ours, plain = [], []
    with Decoder() as decoder:
        for _ in range(times + 2):
            for took, work in (
                (ours, lambda: decoder.read(large, spec)),
                (plain, lambda: plain_pixels(large)),
            ):
                start = time.perf_counter()
                work()
                took.append(time.perf_counter() - start)
    return {
        "file": LARGE,
        "seconds": statistics.median(ours[2:]),
        "pydicom_numpy_seconds": statistics.median(plain[2:]),
    }


def starting(times: int, models: Path) -> dict[str, Any]:
    """Measure from the command to a service that is ready, for the demo bundle and its export."""
    found: dict[str, Any] = {}
    for name, model in (("bundle", None), ("export", exported("demo", models)[1])):
        took = []
        for _ in range(times):
            with service(model) as (_, _, ready):
                took.append(ready)
        found[f"{name}_seconds"] = statistics.median(took)
    return found


def memory(requests: int, models: Path) -> dict[str, Any]:
    """Measure the resident memory of all processes over requests of small images."""
    random = np.random.default_rng(0)
    files = []
    for _ in range(16):
        stream = BytesIO()
        Image.fromarray(random.integers(0, 256, (224, 224), dtype=np.uint8)).save(stream, "PNG")
        files.append(stream.getvalue())
    steps, asked, resident = 40, [], []
    _, export = exported("demo", models)
    with service(export) as (url, process, _):
        ask(url, files * 4, 4)
        for step in track(range(steps), "requests", transient=True):
            ask(url, list(islice(cycle(files), requests // steps)), 4)
            family = [process, *process.children(recursive=True)]
            asked.append((step + 1) * (requests // steps))
            resident.append(sum(p.memory_info().rss for p in family) / 1024)
    settled = steps // 4  # pools and arenas have grown
    fit, covariance = np.polyfit(asked[settled:], resident[settled:], 1, cov=True)
    return {
        "requests": asked[-1],
        "first_mib": resident[0] / 1024,
        "last_mib": resident[-1] / 1024,
        "slope_bytes_per_request": float(1024 * fit[0]),
        "slope_error_bytes": float(1024 * covariance[0, 0] ** 0.5),
    }


def keep(name: str, found: dict[str, Any]) -> None:
    """Write a part's figures beside those of other parts, whole or not at all."""
    RESULTS.parent.mkdir(exist_ok=True)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    part = RESULTS.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(kept | {name: found}, indent=2) + "\n")
    part.replace(RESULTS)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, action="append", help="one part; all by default")
    parser.add_argument("--requests", type=int, default=10_000, help="requests of part memory")
    parser.add_argument("--images", type=int, default=32, help="images of one timing")
    parser.add_argument("--models", type=Path, help="keep models and exports here for other runs")
    arguments = parser.parse_args()
    if not (DATA / "dicom").is_dir():
        raise SystemExit(f"no {DATA / 'dicom'}: set MEDQUA_TEST_DATA")
    with tempfile.TemporaryDirectory() as scratch:
        models = arguments.models or Path(scratch)
        run(arguments.part or PARTS, arguments.images, arguments.requests, models)


def run(parts: Sequence[str], images: int, requests: int, models: Path) -> None:
    """Measure parts, print and keep each."""
    measured: dict[str, Callable[[], dict[str, Any]]] = {
        "demo": lambda: throughput("demo", images, models),
        "width": lambda: throughput("width", max(4, images // 4), models),
        "decode": lambda: decoding(15),
        "start": lambda: starting(3, models),
        "memory": lambda: memory(requests, models),
    }
    for name in parts:
        load = os.getloadavg()[0]
        found = measured[name]() | {
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "load_before": round(load, 2),
            "versions": {package: version(package) for package in PACKAGES},
        }
        keep(name, found)
        show({name: found})


if __name__ == "__main__":
    main()
