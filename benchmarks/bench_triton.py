"""The fused kernels on a GPU: against their floor, and against the torch engines there.

    python benchmarks/bench_triton.py [--qubits 4 8] [--precision ieee tf32x3] [--output FOLDER]

Every engine runs one training step (table or unitary, forward, backward) in float32 and must first
give the values and gradients of `fourier` in float64. Times are medians of CUDA events. For the
fused kernels alone, table given, the floor is what their counted work takes at the rates that this
GPU shows in the same run: `6 n 3^n` operations a token at the rate of a large float32 matrix
product, and the bytes that must be moved at the rate of a large copy, whichever is longer.
"""

import argparse
import datetime
import json
import platform
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from medqua.core import Ansatz, VariationalBottleneck
from medqua.core.quantum.exact.fourier import FourierEngine
from medqua.core.quantum.exact.triton_fourier import PRECISIONS, Layout, TritonEngine

CASES = ((4, 2, 65536), (6, 4, 65536), (8, 4, 65536), (8, 4, 1024), (10, 4, 16384))
"""(qubits, depth, tokens)."""

RUNS = 20
"""Runs that each figure is the median of, after three that warm up."""

TOLERANCES = {"ieee": 1e-5, "tf32x3": 1e-4, "tf32": 5e-2}
"""Largest difference of a value or a gradient, as a share of the largest of its kind."""


def seconds(function: Callable[[], object]) -> float:
    """Return the median time of a function on the GPU."""
    times = []
    for k in range(RUNS + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        torch.cuda.synchronize()
        if k >= 3:
            times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def machine_rates() -> tuple[float, float]:
    """Return operations a second of a float32 matrix product, and bytes a second of a copy."""
    torch.backends.cuda.matmul.allow_tf32 = False
    square = torch.randn(8192, 8192, device="cuda")
    product = torch.empty_like(square)
    operations = 2 * 8192**3 / seconds(lambda: torch.mm(square, square, out=product))
    source = torch.zeros(2**28, device="cuda")
    target = torch.empty_like(source)
    return operations, 2 * source.nbytes / seconds(lambda: target.copy_(source))


def work(n: int, tokens: int) -> tuple[int, int]:
    """Return operations and bytes of one forward and backward of the fused kernels.

    Bytes: angles and values once; cosines, sines and slopes written and read; gradients in and
    out; the table read and its gradient written. What caches serve again is not counted.
    """
    layout = Layout.of(n)
    numbers = 2 * n + 2 * (2 * n + layout.last * n) + 2 * n + n
    return 6 * n * 3**n * tokens, 4 * (tokens * numbers + 3 * layout.shape[0] * layout.shape[1])


def problem(n: int, depth: int, tokens: int) -> list[torch.Tensor]:
    """Return angles, parameters and weights of the values."""
    generator = torch.Generator().manual_seed(0)
    shapes = (tokens, n), Ansatz(n, depth).theta_shape, (tokens, n)
    return [torch.randn(shape, generator=generator).cuda() for shape in shapes]


def agree(got: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float) -> None:
    """Stop where values or gradients differ."""
    for ours, theirs in zip(got, expected, strict=True):
        off = ((ours.double() - theirs).abs().max() / theirs.abs().max()).item()
        if not off <= tolerance:
            sys.exit(f"results differ by {off:.1e} of the largest: nothing is timed")


def step(
    bottleneck: VariationalBottleneck, angles: torch.Tensor, depth: int, weights: torch.Tensor
) -> list[torch.Tensor]:
    """Return values and gradients of one training step."""
    angles = angles.detach().requires_grad_()
    z = bottleneck(angles, depth)
    return [z.detach(), *torch.autograd.grad(z, (angles, bottleneck.theta), weights)]


def measure(
    n: int, depth: int, tokens: int, precisions: list[str], rates: tuple[float, float]
) -> dict:
    """Return the row of one case."""
    angles, theta, weights = problem(n, depth, tokens)
    reference = VariationalBottleneck(n, depth, engine="fourier").cuda().double()
    reference.theta.data.copy_(theta)
    expected = step(reference, angles.double(), depth, weights.double())

    steps = {}
    for engine in ("triton", "fourier", "dense"):
        bottleneck = VariationalBottleneck(n, depth, engine=engine).cuda()
        bottleneck.theta.data.copy_(theta)
        agree(step(bottleneck, angles, depth, weights), expected, TOLERANCES["ieee"])
        steps[engine] = seconds(lambda b=bottleneck: step(b, angles, depth, weights))

    operations, moved = work(n, tokens)
    floor = max(operations / rates[0], moved / rates[1])
    kernels = {}
    table = FourierEngine(Ansatz(n, depth))
    for precision in precisions:
        engine = TritonEngine(Ansatz(n, depth), precision=precision)
        program = engine.compile(theta, (depth,))[depth]
        program.table.requires_grad_()
        phi = angles.detach().requires_grad_()
        exact = table.compile(theta.double(), (depth,))[depth](angles.double())
        agree([program(phi).detach()], [exact], TOLERANCES[precision])

        def run(program=program, phi=phi):
            return torch.autograd.grad(program(phi), (phi, program.table), weights)

        kernels[precision] = seconds(run)
    torch_best = min(steps["fourier"], steps["dense"])
    return {
        "case": f"n={n} L={depth} N={tokens}",
        "operations": operations,
        "bytes": moved,
        "floor_seconds": floor,
        "bound_by": "operations" if operations / rates[0] > moved / rates[1] else "bytes",
        "kernel_seconds": kernels,
        "share_of_floor": {name: floor / value for name, value in kernels.items()},
        "ours": tokens / steps["triton"],
        "peers": {name: tokens / steps[name] for name in ("fourier", "dense")},
        "ratio": torch_best / steps["triton"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--qubits", type=int, nargs="*", help="only these numbers of qubits")
    parser.add_argument("--precision", nargs="*", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit(
            "this measures a GPU, and torch finds none: run it on a machine with a CUDA device, "
            "with a torch built for CUDA (`hatch run gpu:triton`)"
        )
    import triton

    rates = machine_rates()
    cases = [case for case in CASES if not arguments.qubits or case[0] in arguments.qubits]
    rows = [measure(*case, arguments.precision, rates) for case in cases]
    result = {
        "machine": torch.cuda.get_device_name(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": triton.__version__,
        },
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "matrix_product_flops": rates[0],
        "copy_bytes_per_second": rates[1],
        "unit": "tokens per second, one training step, float32",
        "rows": rows,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "triton.json"
    path.write_text(json.dumps(result, indent=1) + "\n")

    console = Console(width=None if sys.stdout.isatty() else 140)
    table = Table(title=f"{result['machine']}: tokens/s of one training step, float32")
    for heading in ("case", "triton", "fourier", "dense", "ratio", "floor by"):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    for name in arguments.precision:
        table.add_column(f"floor/{name}", justify="right")
    for row in rows:
        table.add_row(
            row["case"],
            *(f"{rate:.3g}" for rate in (row["ours"], *row["peers"].values())),
            f"{row['ratio']:.2f}",
            row["bound_by"],
            *(f"{share:.0%}" for share in row["share_of_floor"].values()),
        )
    console.print(table)
    console.print(
        f"float32 matrix product {rates[0] / 1e12:.1f} TFLOP/s, copy {rates[1] / 1e12:.2f} TB/s; "
        f"written to {path}"
    )


if __name__ == "__main__":
    main()
