"""Write the figures of `results/bottleneck.json`, each with its goal, into `docs/bottleneck.md`.

python benchmarks/tell_bottleneck.py [--page docs/bottleneck.md] [--results FILE]
"""

import argparse
import json
import re
from pathlib import Path

RATIOS = {
    "n=4 L=2 N=65536": 15,
    "n=6 L=4 N=65536": 70,
    "n=8 L=4 N=65536": 60,
    "n=8 L=4 N=1024": 10,
    "n=10 L=4 N=8192": 12,
    "n=12 L=4 N=512": 6,
}
"""Goals: case -> times the best peer."""

FLAT = 1.25
"""Peak memory over that at 4 layers up to which it is called flat."""

BEGIN = "<!-- written by benchmarks/tell_bottleneck.py -->"
END = "<!-- end of what is written -->"


def verdict(met: bool) -> str:
    return "met" if met else "**not met**"


def told(result: dict) -> str:
    """Return the figures in Markdown."""
    dates = sorted({row["date"] for row in result["rows"]} | {result["date"]})
    machine = result["machine"]
    lines = [
        f"Tokens per core-second, forward and backward, {' to '.join(dict.fromkeys(dates))}, "
        f"{machine['cpu']}, {machine['cores']} cores:",
        "",
        "| case | engine | ours | best peer | ratio | goal | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        peer, goal = row["best_peer"], RATIOS[row["case"]]
        lines.append(
            f"| {row['case']} | `{row['engine']}` | {row['ours']:,.0f} | "
            f"{peer} {row['peers'][peer]:,.0f} | {row['ratio']:.1f} | {goal} | "
            f"{verdict(row['ratio'] >= goal)} |"
        )
    lines += ["", "| beside it, 8 qubits | figure | goal | |", "| --- | --- | --- | --- |"]
    for name, value, goal, met in beside(result):
        lines.append(f"| {name} | {value} | {goal} | {verdict(met)} |")
    return "\n".join(lines)


def beside(result: dict) -> list[tuple[str, str, str, bool]]:
    """Return (what, figure, goal, whether it is met) of what is not a ratio to a peer."""
    share = next(r["gemm_share"] for r in result["rows"] if r["case"] == "n=8 L=4 N=65536")
    extras = result["extras"]
    peaks = extras["peak_bytes"]
    latency, noise = extras["eval_latency_us"], extras["noisy_step"]["ratio"]
    rows = [
        (
            "share of the machine's float32 matrix product, 4 layers, 65,536 tokens",
            f"{share:.0%}",
            "65%",
            share >= 0.65,
        ),
        ("51 tokens with a kept table", f"{latency:.0f} us", "100 us", latency <= 100),
        ("noisy step over noiseless one", f"{noise:.3f}", "1.1", noise <= 1.1),
        (
            "peak memory of a step, 65,536 tokens",
            ", ".join(f"{case} {size / 1e6:.0f} MB" for case, size in peaks.items()),
            "1,500 MB, flat in depth",
            max(peaks.values()) < 1.5e9 and max(peaks.values()) <= FLAT * peaks["L=4"],
        ),
    ]
    if matrix := extras["density_matrix"]:
        name = "noisy, 4 qubits, 2 layers, over CUDA-Q `density-matrix-cpu`"
        rows.append((name, f"{matrix['ratio']:,.0f}", "10,000", matrix["ratio"] >= 1e4))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, default=Path("docs/bottleneck.md"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/bottleneck.json"))
    arguments = parser.parse_args()
    text = told(json.loads(arguments.results.read_text()))
    old = arguments.page.read_text()
    between = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not between.search(old):
        raise SystemExit(f"{arguments.page} has no {BEGIN!r} with {END!r} after it: add both")
    arguments.page.write_text(between.sub(lambda _: f"{BEGIN}\n\n{text}\n\n{END}", old))
    print(text)


if __name__ == "__main__":
    main()
