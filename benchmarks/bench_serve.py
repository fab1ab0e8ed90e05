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
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from io import BytesIO
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from serve_models import plain_pipeline, plain_pixels, save

from medqua.core.vision.image import Decoder, ImageSpec
from medqua.serve.inference.session import ServingSession

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "serve.json"
DATA = Path(os.environ.get("MEDQUA_TEST_DATA", ROOT.parent / "shared" / "data"))
PACKAGES = ("torch", "transformers", "onnxruntime", "pydicom", "uvicorn", "medqua-serve")
LARGE = "cxr_RG1_J2KI.dcm"  # 1955 x 1841, 15 bits, JPEG 2000
CLIENTS = 16
PARTS = ("demo", "width", "decode", "start", "memory")


@contextmanager
def service(model: Path | None) -> Iterator[tuple[str, psutil.Process, float]]:
    """A service in a process of its own: its address, the process, seconds until it was ready."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "medqua.serve", "app", *([str(model)] if model else [])]
    command += ["listen.port=0", "limits.requests_per_second=0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                entry = json.loads(line) if line.startswith("{") else {}
                if entry.get("event") == "listening":
                    break
            url = f"http://{entry['host']}:{entry['port']}"
            threading.Thread(target=process.stderr.read, daemon=True).start()
            httpx.get(f"{url}/readyz").raise_for_status()
            yield url, psutil.Process(process.pid), time.perf_counter() - start
        finally:
            process.terminate()
            process.wait(60)


def ask(url: str, files: list[bytes], clients: int) -> tuple[float, list[float]]:
    """Have files answered by clients at once; return images a second and each one's seconds."""
    sessions = [httpx.Client(base_url=url, timeout=120) for _ in range(clients)]
    kinds = {b"\x89PNG": "image/png"}

    def one(number: int) -> list[float]:
        took = []
        for content in files[number::clients]:
            kind = kinds.get(content[:4], "application/dicom")
            start = time.perf_counter()
            response = sessions[number].post(
                "/v1/findings", content=content, headers={"Content-Type": kind}
            )
            took.append(time.perf_counter() - start)
            if response.status_code != 200:
                raise RuntimeError(f"{response.status_code}: {response.text[:300]}")
        return took

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        seconds = [second for took in threads.map(one, range(clients)) for second in took]
    rate = len(files) / (time.perf_counter() - start)
    for session in sessions:
        session.close()
    return rate, seconds


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


def exported(name: str, scratch: Path) -> tuple[Path, Path]:
    """Return bundle and export of a model of `serve_models.save`."""
    bundle, export = save(name, scratch / name), scratch / f"{name}-export"
    command = [sys.executable, "-m", "medqua.serve", "export", str(bundle), str(export), "--json"]
    subprocess.run([*command, "--limit", "2"], check=True, stdout=subprocess.DEVNULL)
    return bundle, export


def inside(export: Path, times: int) -> float:
    """Return the median seconds of one image in the session, decoding and HTTP left out."""
    with ServingSession.open(export) as session:
        side = session.image.size or 448
        image = np.linspace(0, 1, side * side, dtype=np.float32).reshape(side, side)
        return median(lambda: session.read([image]), times)


def throughput(name: str, images: int) -> dict[str, Any]:
    """Measure a model: images a second of service and peer, latencies, the adapter's share."""
    files = contents()
    turn = list(islice(cycle(files), images))
    with tempfile.TemporaryDirectory() as folder:
        bundle, export = exported(name, Path(folder))
        _, bare = exported(f"{name}-bare", Path(folder))
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


def starting(times: int) -> dict[str, Any]:
    """Measure from the command to a service that is ready, for the demo bundle and its export."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in (("bundle", None), ("export", exported("demo", Path(folder))[1])):
            took = []
            for _ in range(times):
                with service(model) as (_, _, ready):
                    took.append(ready)
            found[f"{name}_seconds"] = statistics.median(took)
    return found


def memory(requests: int) -> dict[str, Any]:
    """Measure the resident memory of all processes over requests of small images."""
    random = np.random.default_rng(0)
    files = []
    for _ in range(16):
        stream = BytesIO()
        Image.fromarray(random.integers(0, 256, (224, 224), dtype=np.uint8)).save(stream, "PNG")
        files.append(stream.getvalue())
    steps, asked, resident = 40, [], []
    with tempfile.TemporaryDirectory() as folder:
        _, export = exported("demo", Path(folder))
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


def rows(found: dict[str, Any]) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield what was measured, ours, the peer's, the ratio, and the goal with its verdict."""

    def row(what: str, ours: str, peer: str, ratio: float, goal: str, met: bool) -> tuple[str, ...]:
        return what, ours, peer, f"{ratio:.2f}", f"{goal}: {'met' if met else 'not met'}"

    for name in ("demo", "width"):
        if name not in found:
            continue
        f = found[name]
        peer, one = f["peer_images_per_second"], f["one_client_images_per_second"]
        many = f["many_clients_images_per_second"]
        yield row(
            f"{name}: one client, images/s",
            f"{one:.2f}",
            f"{peer:.2f}",
            one / peer,
            "at least 2",
            one >= 2 * peer,
        )
        yield row(
            f"{name}: {CLIENTS} clients, images/s",
            f"{many:.2f}",
            f"{peer:.2f}",
            many / peer,
            "at least 3",
            many >= 3 * peer,
        )
        spent = f["session_seconds"] - f["session_seconds_without_adapter"]
        request = f["one_client_p50_seconds"]
        yield row(
            f"{name}: adapter of a request",
            f"{1000 * spent:.1f} ms",
            f"{1000 * request:.1f} ms",
            spent / request,
            "at most 0.05",
            spent <= 0.05 * request,
        )
        p50, p99 = f["many_clients_p50_seconds"], f["many_clients_p99_seconds"]
        yield row(
            f"{name}: p99 to p50 under load",
            f"{p99:.2f} s",
            f"{p50:.2f} s",
            p99 / p50,
            "at most 3",
            p99 <= 3 * p50,
        )
    if "decode" in found:
        ours, plain = found["decode"]["seconds"], found["decode"]["pydicom_numpy_seconds"]
        yield row(
            "large file to image",
            f"{1000 * ours:.0f} ms",
            f"{1000 * plain:.0f} ms",
            ours / plain,
            "at most 1",
            ours <= plain,
        )
    for name in ("bundle", "export"):
        if "start" in found:
            ready = found["start"][f"{name}_seconds"]
            yield row(
                f"start to ready, demo {name}",
                f"{ready:.1f} s",
                "",
                ready / 10,
                "under 10 s",
                ready < 10,
            )
    if "memory" in found:
        f = found["memory"]
        slope, error = f["slope_bytes_per_request"], f["slope_error_bytes"]
        yield row(f"memory, {f['requests']:,} requests", f"{slope:.0f} ± {error:.0f} bytes each",
                  "", slope * f["requests"] / 2**20 / f["first_mib"], "flat",
                  slope * 10_000 < 0.02 * 2**20 * f["first_mib"])  # fmt: skip


def show(found: dict[str, Any]) -> None:
    """Print the figures."""
    table = Table("", "ours", "peer", "ratio", "goal")
    for row in rows(found):
        table.add_row(*row)
    Console().print(table)


def keep(found: dict[str, Any]) -> None:
    """Write the figures whole or not at all."""
    RESULTS.parent.mkdir(exist_ok=True)
    part = RESULTS.with_suffix(".part")
    part.write_text(json.dumps(found, indent=2) + "\n")
    part.replace(RESULTS)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, action="append", help="one part; all by default")
    parser.add_argument("--requests", type=int, default=10_000, help="requests of part memory")
    parser.add_argument("--images", type=int, default=32, help="images of one timing")
    arguments = parser.parse_args()
    if not (DATA / "dicom").is_dir():
        raise SystemExit(f"no {DATA / 'dicom'}: set MEDQUA_TEST_DATA")
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    measured: dict[str, Callable[[], dict[str, Any]]] = {
        "demo": lambda: throughput("demo", arguments.images),
        "width": lambda: throughput("width", max(4, arguments.images // 4)),
        "decode": lambda: decoding(15),
        "start": lambda: starting(3),
        "memory": lambda: memory(arguments.requests),
    }
    for name in arguments.part or PARTS:
        load = os.getloadavg()[0]
        kept[name] = measured[name]() | {
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "load_before": round(load, 2),
            "versions": {package: version(package) for package in PACKAGES},
        }
        keep(kept)
        show({name: kept[name]})


if __name__ == "__main__":
    main()
