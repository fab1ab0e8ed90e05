"""Measure the table of `medqua.core.quantum.cost`: seconds of one core, forward and backward.

    python benchmarks/measure_costs.py [--engines fourier dense gates] [--qubits 2 3 4]

For each engine and number of qubits: seconds a layer once, a token, and a token and layer, from
two depths and two numbers of tokens. Prints rows to be pasted into the module.
"""

import argparse
import os

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import torch
from bench_bottleneck import gemm_rate, ours, problem, seconds

from medqua.core import Ansatz

SIZES = {"fourier": range(2, 11), "dense": range(2, 13), "gates": range(2, 17)}
DEPTHS = (2, 5)


def costs(engine: str, n: int) -> tuple[float, float, float]:
    """Return seconds for each layer once, for each token, and for each token and layer."""
    budget = 2**26 // (4**n if engine == "dense" else 3**n if engine == "fourier" else 2**n * 32)
    many = max(16, min(budget, 16_384))
    step, few = ours(Ansatz(n, 4), engine), problem(Ansatz(n, 4), 1)
    layer = seconds(lambda: step(*few), 3) / 4
    if engine != "gates":
        data = problem(Ansatz(n, 4), many)
        return layer, max(seconds(lambda: step(*data), 3) - 4 * layer, 0.0) / many, 0.0
    times = []
    for depth in DEPTHS:
        ansatz = Ansatz(n, depth)
        step, data = ours(ansatz, engine), problem(ansatz, many)
        times.append((seconds(lambda step=step, data=data: step(*data), 3) - depth * layer) / many)
    slope = (times[1] - times[0]) / (DEPTHS[1] - DEPTHS[0])
    return layer, max(times[0] - DEPTHS[0] * slope, 0.0), slope


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--qubits", type=int, nargs="+")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"# {gemm_rate() / 1e9:.0f} GFLOP/s, torch {torch.__version__}")
    for engine in arguments.engines:
        print(f'"{engine}": {{')
        for n in SIZES[engine]:
            if not arguments.qubits or n in arguments.qubits:
                row = ", ".join(f"{value:.1e}" for value in costs(engine, n))
                print(f"    {n}: ({row}),", flush=True)
        print("},")


if __name__ == "__main__":
    main()
