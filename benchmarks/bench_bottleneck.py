# ruff: noqa: E402 - threads are set before the libraries that read them are imported
"""Tokens per core-second of the bottleneck, forward and backward, against other simulators.

    hatch run bench:bottleneck [--qubits 4 8] [--peers Qulacs] [--output benchmarks/results]

Every peer (`simulators.py`) runs the same circuit in float32 on one thread and must first give
equal values and gradients. Time is CPU time of the process, so that a core-second is one even on a
busy machine; each figure is the median of five runs. A peer is run with as many tokens as it does
best with in about a second, and its figure is scaled. The rate of a large float32 matrix product is
measured before and after our run. Beside the table: the latency of
one image, peak memory, the price of noise, and CUDA-Q's density matrix simulator.

What is not run (a case, a peer) is kept from the last run of the same machine and versions.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from simulators import PEERS, Step

from medqua.core import Ansatz, NoiseModel, VariationalBottleneck

torch.set_num_threads(1)

CASES = (
    (4, 2, 65536),
    (6, 4, 65536),
    (8, 4, 65536),
    (8, 4, 1024),
    (10, 4, 8192),
    (12, 4, 512),
)
"""(qubits, depth, tokens) of our runs."""

LARGEST = {"CUDA-Q qpp-cpu": 8, "TensorCircuit-NG jax": 10}
"""Most qubits of peers that would take many minutes: for parameter shift, and to compile."""

RUNS = 5
"""Runs that each figure is the median of."""

ENOUGH = 0.5
"""CPU seconds of a run of a peer from which on it is not given more tokens."""

TOO_LONG = 20.0
"""CPU seconds of a peer's compilation from which on it is not compiled for more tokens."""


def ours(ansatz: Ansatz, engine: str, noise: NoiseModel | None = None) -> Step:
    bottleneck = VariationalBottleneck(
        ansatz.n_qubits, ansatz.max_depth, engine=engine, noise=noise
    )

    def step(angles, theta, weights):
        phi = torch.from_numpy(angles).requires_grad_()
        with torch.no_grad():
            bottleneck.theta.copy_(torch.from_numpy(theta))
        bottleneck.zero_grad()
        z = bottleneck(phi, ansatz.max_depth)
        z.backward(torch.from_numpy(weights))
        return z.detach().numpy(), phi.grad.numpy(), bottleneck.theta.grad.numpy()

    return step


def problem(ansatz: Ansatz, tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    theta = generator.normal(size=ansatz.theta_shape)
    theta[tuple(np.array(ansatz.dead()).T)] = 0.0
    angles = generator.uniform(-np.pi, np.pi, (tokens, ansatz.n_qubits))
    weights = generator.normal(size=angles.shape)
    return tuple(v.astype(np.float32) for v in (angles, theta, weights))


def seconds(function: Callable[[], object], repeats: int = RUNS, warm: bool = False) -> float:
    """Return the median CPU time, after one run that is not counted unless `warm`."""
    if not warm:
        function()
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        function()
        times.append(time.process_time() - begin)
    return statistics.median(times)


def gemm_rate() -> float:
    """FLOP per second of a float32 matrix product on one core."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    return 2 * 1024**3 / seconds(lambda: a @ b, 15)


def agree(step: Step, reference: Step, ansatz: Ansatz, tokens: int) -> None:
    """Refuse to time what is not equal in values and gradients."""
    data = problem(ansatz, tokens)
    for got, expected in zip(step(*data), reference(*data), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=3e-5)


def peer_rate(peer: Step, ansatz: Ansatz, fewest: int, most: int) -> tuple[float, int]:
    """Return tokens per second and the number of tokens that gave it."""
    tokens, best, best_time = min(fewest, most), (0.0, 1), 0.0
    while True:
        data = problem(ansatz, tokens)
        begin = time.process_time()
        peer(*data)
        first = time.process_time() - begin  # compilation included
        spent = seconds(lambda data=data: peer(*data), 1, warm=True)
        if tokens / spent > best[0]:
            best, best_time = (tokens / spent, tokens), spent
        if spent > ENOUGH or first - spent > TOO_LONG or tokens == most:
            break
        tokens = min(most, tokens * (16 if spent < ENOUGH / 20 else 4))
    data = problem(ansatz, best[1])
    runs = RUNS if best_time < 10 else 1
    return best[1] / seconds(lambda: peer(*data), runs, warm=True), best[1]


def versions() -> dict[str, str | None]:
    names = {"torch", "numpy", "cuda-quantum-cu13", "jax"} | {entry[1] for entry in PEERS.values()}
    return {name: version(name) for name in sorted(names)}


def version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def measure_peers(n: int, depth: int, most: int, names: list[str]) -> dict[str, tuple[float, int]]:
    """Return the rate of every peer at the number of tokens that it does best with."""
    ansatz = Ansatz(n, depth)
    reference = ours(ansatz, "gates")
    rates = {}
    for name in names:
        build, distribution, fewest = PEERS[name]
        if version(distribution) is None or n > LARGEST.get(name, n):
            continue
        begin = time.perf_counter()
        peer = build(ansatz)
        agree(peer, reference, ansatz, fewest)
        rates[name] = peer_rate(peer, ansatz, fewest, most)
        print(f"  {name}: {rates[name][0]:.1f} ({time.perf_counter() - begin:.0f} s)", flush=True)
    return rates


def measure(n: int, depth: int, tokens: int, rates: dict[str, tuple[float, int]]) -> dict:
    """Return one row: ours and every peer, in tokens per core-second."""
    ansatz = Ansatz(n, depth)
    data = problem(ansatz, tokens)
    engine = VariationalBottleneck(n, depth).engine_for(tokens)
    step = ours(ansatz, engine)
    before = gemm_rate()
    rate = tokens / seconds(lambda: step(*data))
    gemm = (before + gemm_rate()) / 2
    peers = {name: rate for name, (rate, _) in rates.items()}
    sizes = {name: size for name, (_, size) in rates.items()}
    best = max(peers, key=peers.get, default=None)
    return {
        "case": f"n={n} L={depth} N={tokens}",
        "engine": engine,
        "ours": rate,
        "peers": peers,
        "peer_tokens": sizes,
        "best_peer": best,
        "ratio": rate / peers[best] if best else None,
        "gemm_flops": gemm,
        "gemm_share": rate * 6 * n * 3**n / gemm if engine == "fourier" else None,
        "date": datetime.date.today().isoformat(),
    }


def extras() -> dict:
    """Return the figures beside the table."""
    bottleneck = VariationalBottleneck(8, 4).eval()
    angles = torch.randn(51, 8)
    with torch.no_grad():
        times = []
        for _ in range(2000):
            begin = time.perf_counter()
            bottleneck(angles, 4)
            times.append(time.perf_counter() - begin)
    noise = NoiseModel.depolarising(0.001, 0.01, readout=(0.02, 0.03))
    ansatz = Ansatz(8, 4)
    data = problem(ansatz, 65536)
    plain, noisy = (ours(ansatz, "fourier", model) for model in (None, noise))
    pairs = [
        (seconds(lambda: plain(*data), 1), seconds(lambda: noisy(*data), 1)) for _ in range(RUNS)
    ]
    clean, dirty = (statistics.median(times) for times in zip(*pairs, strict=True))
    memory = {f"L={depth}": peak_bytes(8, depth, 65536) for depth in (1, 4, 16)}
    return {
        "eval_latency_us": 1e6 * statistics.median(times),
        "noisy_step": {"noiseless_s": clean, "noisy_s": dirty, "ratio": dirty / clean},
        "peak_bytes": memory,
        "density_matrix": density_matrix(noise),
    }


PEAK = """
import sys, torch
from pathlib import Path
from medqua.core import VariationalBottleneck
torch.set_num_threads(1)
n, depth, tokens = map(int, sys.argv[1:])
def peak():
    return 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
bottleneck = VariationalBottleneck(n, depth)
bottleneck(torch.randn(300, n, requires_grad=True), depth).sum().backward()  # load libraries
angles = torch.randn(tokens, n, requires_grad=True)
before = peak()
bottleneck(angles, depth).sum().backward()
print(peak() - before)
"""


def peak_bytes(n: int, depth: int, tokens: int) -> int:
    """Return by how much one step raises the peak of a fresh process's memory."""
    arguments = [sys.executable, "-c", PEAK, *map(str, (n, depth, tokens))]
    return int(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)


def density_matrix(noise: NoiseModel) -> dict | None:
    """Return our noisy step against CUDA-Q's density matrix simulator, 4 qubits, 2 layers."""
    if version("cuda-quantum-cu13") is None:
        return None
    ansatz = Ansatz(4, 2)
    bottlenecks = [
        VariationalBottleneck(4, 2, engine="fourier", noise=noise),
        VariationalBottleneck(4, 2, engine="cudaq", target="density-matrix-cpu", noise=noise),
    ]
    bottlenecks[1].load_state_dict(bottlenecks[0].state_dict())

    def step(bottleneck, angles):
        phi = angles.clone().requires_grad_()
        z = bottleneck(phi, 2)
        z.sum().backward()
        return z.detach(), phi.grad

    few = torch.from_numpy(problem(ansatz, 1)[0])
    many = torch.from_numpy(problem(ansatz, 65536)[0])
    for got, expected in zip(*(step(b, few) for b in bottlenecks), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    mine = len(many) / seconds(lambda: step(bottlenecks[0], many))
    theirs = 1 / seconds(lambda: step(bottlenecks[1], few), warm=True)
    return {"ours": mine, "density-matrix-cpu": theirs, "ratio": mine / theirs}


def main() -> None:
    warnings.simplefilter("ignore")  # of the peers
    parser = argparse.ArgumentParser(description=__doc__)
    sizes = sorted({case[0] for case in CASES})
    parser.add_argument("--qubits", type=int, nargs="*", choices=sizes, default=sizes)
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--no-extras", action="store_true", help="measure the table alone")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    path = arguments.output / "bottleneck.json"
    machine = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.system(),
    }
    result = {
        "unit": "tokens per core-second, forward and backward, float32, one thread",
        "machine": machine,
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
    }
    old = json.loads(path.read_text()) if path.exists() else {}
    same = all(old.get(key) == result[key] for key in ("unit", "machine", "versions"))
    rows = {row["case"]: row for row in old["rows"]} if same else {}
    rates: dict[tuple[int, int], dict[str, tuple[float, int]]] = {}
    console = Console(width=None if sys.stdout.isatty() else 160)
    for n, depth, tokens in CASES:
        if n in arguments.qubits:
            if (n, depth) not in rates:
                most = max(case[2] for case in CASES if case[:2] == (n, depth))
                rates[n, depth] = measure_peers(n, depth, most, arguments.peers)
            kept = rows.get(f"n={n} L={depth} N={tokens}", {"peers": {}, "peer_tokens": {}})
            before = {p: (rate, kept["peer_tokens"][p]) for p, rate in kept["peers"].items()}
            row = measure(n, depth, tokens, before | rates[n, depth])
            rows[row["case"]] = row
            console.print(f"measured {row['case']}")
    order = [f"n={n} L={depth} N={tokens}" for n, depth, tokens in CASES]
    result["rows"] = [rows[case] for case in order if case in rows]
    result["extras"] = old.get("extras") if arguments.no_extras and same else None
    if not arguments.no_extras:
        result["extras"] = extras()
    show(console, result)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"written to {path}")


def show(console: Console, result: dict) -> None:
    """Print the table and what stands beside it."""
    table = Table(title=result["unit"], show_lines=True)
    headings = [row["case"].replace(" N", "\nN") + f"\n{row['engine']}" for row in result["rows"]]
    for heading in ("", *headings):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_row("MedQua", *(figure(row["ours"]) for row in result["rows"]))
    for name in PEERS:
        cells = []
        for row in result["rows"]:
            rate = row["peers"].get(name)
            other = row["peer_tokens"].get(name) != int(row["case"].rpartition("=")[2])
            cells.append("" if rate is None else figure(rate) + ("*" if other else ""))
        if any(cells):
            table.add_row(name, *cells)
    ratios = (row["ratio"] for row in result["rows"])
    table.add_row("ratio to the best", *("" if r is None else f"{r:,.1f}" for r in ratios))
    shares = (row["gemm_share"] for row in result["rows"])
    table.add_row("share of the GEMM rate", *("" if s is None else f"{s:.0%}" for s in shares))
    console.print(table)
    console.print("* timed on as many tokens as it does best with in about a second, and scaled")
    left = ", ".join(f"{name} above {n} qubits" for name, n in LARGEST.items())
    console.print(f"left out, since it would take many minutes: {left}")
    absent = [name for name, entry in PEERS.items() if result["versions"][entry[1]] is None]
    if absent:
        console.print(f"not installed: {', '.join(absent)}")
    if extra := result["extras"]:
        latency = extra["eval_latency_us"]
        console.print(f"one image, 51 tokens, n=8, cached table: {latency:.0f} us")
        peaks = ", ".join(f"{case} {size / 1e9:.2f}" for case, size in extra["peak_bytes"].items())
        console.print(f"peak memory of a step, n=8, N=65536 (GB): {peaks}")
        console.print(f"noisy step / noiseless one: {extra['noisy_step']['ratio']:.3f}")
        if matrix := extra["density_matrix"]:
            console.print(f"noisy, n=4 L=2, over density-matrix-cpu: {matrix['ratio']:,.0f}")


def figure(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    main()
