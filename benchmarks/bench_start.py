"""How soon the first answer is there: `serve:predict` with an export, and the viewer's first page.

    python benchmarks/bench_start.py --baseline OLD        # about a quarter of an hour
    python benchmarks/bench_start.py --part predict

Predict: `medqua-serve predict EXPORT FILE` beside `start_bare.py`, which reads the same file with
pydicom, samples its pixels down and runs the same export's single-file graph once. From the start
of the process to its end; memory is the largest sum of what the processes of the tree hold at a
time (RSS, looked at every 3 ms, in runs that are not timed).

Viewer: `medqua-ui --samples` (and `--pictures-only`) from the start of the process until GET / is
answered by a page that takes files and GET /worklist by its session's list; `OLD` is a clone of
another version with an environment of its own (`hatch env create`), measured in the same run. How
long the whole page and the model's first findings take is told beside it.

Warm and cold are told apart: before a cold run the files of the environment, of Python and of the
packages are put out of the page cache. The bytecode of both environments is compiled before; the
rows "without bytecode" are runs that find none and write none, as where PYTHONDONTWRITEBYTECODE is
set. Every row is the median of five, ours and the peer in turn.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "start.json"
DATA = Path(os.environ.get("MEDQUA_TEST_DATA", ROOT.parent / "shared" / "data"))
FILE = DATA / "dicom" / "cxr_txrv_CR_PA_jpegbaseline_mono2.dcm"
BARE = "onnxruntime and pydicom, bare"
LONGEST = 600.0
"""Seconds that a page is waited for."""


def environment(*, bytecode: bool, scratch: str) -> dict[str, str]:
    """Return the environment of a run, with or without compiled bytecode."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    kept |= {"PYTHONUNBUFFERED": "1", "TMPDIR": scratch}
    if not bytecode:
        kept |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": f"{scratch}/none"}
    return kept


def files_of(clone: Path) -> list[Path]:
    """Return the folders whose files a command of a clone reads."""
    python = clone / ".venv" / "bin" / "python"
    told = subprocess.run(
        [python, "-c", "import sys; print(sys.base_prefix)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return [clone / ".venv", clone / "packages", Path(told.stdout.strip())]


def compile_bytecode(clone: Path) -> None:
    """Compile the bytecode of an environment and of the packages in it."""
    python = clone / ".venv" / "bin" / "python"
    sources = [clone / ".venv" / "lib", *clone.glob("packages/*/src")]
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    command = [python, "-m", "compileall", "-q", "-j", "0", *sources]
    subprocess.run(command, env=kept, stdout=subprocess.DEVNULL, check=False)  # some are templates


def evict(folders: list[Path]) -> str:
    """Put the files of folders out of the page cache; return how."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        pass
    else:
        return "drop_caches"
    for folder in folders:
        for root, _, names in os.walk(folder):
            for path in (Path(root, name) for name in names):
                if path.is_file() and not path.is_symlink():
                    descriptor = os.open(path, os.O_RDONLY)
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                    os.close(descriptor)
    return "posix_fadvise DONTNEED over the files of the environment, Python and the packages"


def seconds_of(command: list[str | Path], **settings: Any) -> float:
    """Return the seconds of a command, from start to end."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, **settings)
    took = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{command}: {done.stderr}")
    return took


def peak_of(command: list[str | Path], **settings: Any) -> float:
    """Return the largest sum of the memory of a command's processes, MiB."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **settings
    )
    most = 0
    while process.poll() is None:
        most = max(most, sum(map(_resident, _tree(process.pid))))
        time.sleep(0.003)
    return most * os.sysconf("SC_PAGE_SIZE") / 2**20


def _tree(pid: int) -> Iterator[int]:
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield from _tree(int(child))


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0


@contextmanager
def viewer(clone: Path, scratch: str, *options: str, bytecode: bool) -> Iterator["Viewer"]:
    """Start the viewer of a clone."""
    command = [clone / ".venv" / "bin" / "python", "-m", "medqua.ui", "--port", "0"]
    command += ["--audit", Path(scratch) / "audit.jsonl", *map(Path, options)]
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(bytecode=bytecode, scratch=scratch),
        text=True,
        cwd=clone,
    )
    assert process.stdout is not None
    try:
        found = re.search(r"http://([^/]+)/", process.stdout.readline())
        if found is None:
            raise SystemExit(f"the viewer of {clone} did not start")
        yield Viewer(found.group(1), start)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


class Viewer:
    """A running viewer, and the clock since its start."""

    def __init__(self, host: str, start: float) -> None:
        self._host, self._start, self._cookie = host, start, ""

    def first_page(self) -> float:
        """Return the seconds until a page takes files and its session has a list."""
        self._until(lambda: "open-files" in self._get("/"))
        self._until(lambda: '"studies"' in self._get("/worklist"))
        return self._passed()

    def whole_page(self) -> float:
        """Return the seconds until the page is Gradio's."""
        self._until(lambda: "gradio" in self._get("/").lower().replace(".gradio-container", ""))
        return self._passed()

    def findings(self) -> float:
        """Return the seconds until the samples have findings."""

        def read() -> bool:
            studies = json.loads(self._get("/worklist") or "{}").get("studies", ())
            return bool(studies) and all(s["state"] in ("read", "refused") for s in studies)

        self._until(read)
        return self._passed()

    def _passed(self) -> float:
        return time.perf_counter() - self._start

    def _until(self, done: Callable[[], bool]) -> None:
        while not done():
            if self._passed() > LONGEST:
                raise SystemExit("the viewer gave no page")
            time.sleep(0.02)

    def _get(self, path: str) -> str:
        connection = HTTPConnection(self._host, timeout=LONGEST)
        try:
            connection.request("GET", path, headers={"Cookie": self._cookie})
            answer = connection.getresponse()
            if given := answer.headers.get("Set-Cookie"):
                self._cookie = given.split(";")[0]
            text = answer.read().decode()
            return text if answer.status == 200 else ""
        except (OSError, HTTPException):
            return ""
        finally:
            connection.close()


class Table:
    """The rows, printed as they come."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, case: str, ours: list[float], peer: str = "", theirs: list[float] = ()) -> None:  # type: ignore[assignment]
        """Add the medians of one case."""
        own = round(statistics.median(ours), 3)
        peers = {peer: round(statistics.median(theirs), 3)} if peer else {}
        row = {"case": case, "ours": own, "peers": peers, "best_peer": peers.get(peer)}
        row["ratio"] = round(own / peers[peer], 3) if peer else None
        self.rows.append(row)
        print(f"{case:60} {own:9.3f}  {peers}  ratio {row['ratio']}", flush=True)


def predict(
    table: Table, export: Path, file: Path, times: int, scratch: str, *, cold: bool
) -> None:
    """Measure `serve:predict` with an export beside the bare script."""
    python = ROOT / ".venv" / "bin" / "python"
    ours: list[str | Path] = [python, "-m", "medqua.serve", "predict", export, file]
    bare: list[str | Path] = [python, ROOT / "benchmarks" / "start_bare.py", export, file]
    folders = files_of(ROOT)
    for cache in ("warm", "cold") if cold else ("warm",):
        taken: tuple[list[float], list[float]] = ([], [])
        for turn in range(times + (cache == "warm")):
            for command, found in zip((ours, bare), taken, strict=True):
                if cache == "cold":
                    evict(folders)
                found.append(seconds_of(command, env=environment(bytecode=True, scratch=scratch)))
            if cache == "warm" and not turn:  # the first fills the cache
                taken = ([], [])
        table.add(f"predict EXPORT FILE, {cache}, seconds", taken[0], BARE, taken[1])
    peaks = [
        [peak_of(command, env=environment(bytecode=True, scratch=scratch)) for _ in range(times)]
        for command in (ours, bare)
    ]
    table.add("predict EXPORT FILE, memory of all processes, MiB", peaks[0], BARE, peaks[1])


def pages(table: Table, baseline: Path | None, times: int, scratch: str, *, cold: bool) -> None:
    """Measure the viewer's start beside that of another version."""
    clones = [ROOT] if baseline is None else [ROOT, baseline]
    peer = "" if baseline is None else _name(baseline)
    folders = [folder for clone in clones for folder in files_of(clone)]

    def run(case: str, *options: str, fresh: bool = False, bytecode: bool = True) -> None:
        if fresh and not cold:
            return
        taken: list[list[float]] = [[], []]
        for turn in range(times + (not fresh)):
            for clone, found in zip(clones, taken, strict=False):
                if fresh:
                    evict(folders)
                with viewer(clone, scratch, *options, bytecode=bytecode) as running:
                    seconds = running.first_page()
                if fresh or turn:  # the first fills the cache
                    found.append(seconds)
        table.add(f"viewer to its first page, {case}, seconds", taken[0], peer, taken[1])

    run("warm", "--samples")
    run("cold", "--samples", fresh=True)
    run("pictures only, warm", "--pictures-only")
    run("pictures only, cold", "--pictures-only", fresh=True)
    run("without bytecode, warm", "--samples", bytecode=False)
    whole: list[list[float]] = [[], []]
    findings: list[list[float]] = [[], []]
    for _ in range(times):
        for clone, pages_of, findings_of in zip(clones, whole, findings, strict=False):
            with viewer(clone, scratch, "--samples", bytecode=True) as running:
                pages_of.append(running.whole_page())
            with viewer(clone, scratch, "--samples", bytecode=True) as running:
                running.first_page()
                _open_samples(running)
                findings_of.append(running.findings())
    table.add("viewer to its whole page, warm, seconds", whole[0], peer, whole[1])
    table.add("viewer to the findings of the samples, warm, s", findings[0], peer, findings[1])


def _open_samples(running: Viewer) -> None:
    """Open the samples, as Gradio's page would when a browser has run it."""
    if '"name"' in running._get("/worklist"):
        return
    connection = HTTPConnection(running._host, timeout=LONGEST)
    connection.request("POST", "/worklist/samples", headers={"Cookie": running._cookie})
    connection.getresponse().read()
    connection.close()


def _name(clone: Path) -> str:
    """Return what a clone's version is called."""
    told = subprocess.run(
        ["git", "-C", clone, "rev-parse", "--short=7", "HEAD"],
        capture_output=True,
        text=True,
        check=True,
    )
    return f"build {told.stdout.strip()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--baseline", type=Path, help="clone of another version, with its .venv")
    parser.add_argument("--export", type=Path, help="an export; made of the demo bundle if absent")
    parser.add_argument("--file", type=Path, default=FILE)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--warm", action="store_true", help="leave the file cache alone")
    parser.add_argument("--part", nargs="+", default=["predict", "viewer"])
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if not arguments.file.is_file():
        raise SystemExit(f"{arguments.file} is absent: give a radiograph with --file")
    baseline = arguments.baseline and arguments.baseline.resolve()
    for clone in filter(None, (ROOT, baseline)):
        if not (clone / ".venv" / "bin" / "python").exists():
            raise SystemExit(f"no .venv in {clone}: run hatch env create there")
        compile_bytecode(clone)
    table, cold = Table(), not arguments.warm
    with tempfile.TemporaryDirectory() as scratch:
        if "predict" in arguments.part:
            export = arguments.export
            if export is None:
                export = Path(scratch) / "export"
                demo = ROOT / "packages" / "serve" / "src" / "medqua" / "serve" / "demo_bundle"
                words = [sys.executable, "-m", "medqua.serve", "export", demo, export]
                subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
            predict(table, export, arguments.file, arguments.times, scratch, cold=cold)
        if "viewer" in arguments.part:
            pages(table, baseline, arguments.times, scratch, cold=cold)
    cases = [row["case"] for row in table.rows]
    kept = json.loads(arguments.output.read_text())["rows"] if arguments.output.is_file() else []
    document = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("gradio", "onnxruntime", "pydicom", "torch")},
        },
        "date": datetime.now(UTC).date().isoformat(),
        "cold": evict([]) if cold else "not measured",
        "bytecode": "compiled in both environments before the runs, unless a row says otherwise",
        "rows": table.rows + [row for row in kept if row["case"] not in cases],
    }
    arguments.output.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
