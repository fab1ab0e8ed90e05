"""Write what MIMIC would take into `docs/scaling.md`, from what was measured and what is assumed.

python tools/scaling_table.py                         # the page's tables, rewritten
python tools/scaling_table.py --peak 312 --gpus 1 8   # printed: another GPU, other numbers of them
python tools/scaling_table.py --check                 # status 1 if the page is not up to date

Measured: `benchmarks/results/scaling.json` (step, CPU and memory) and `data.json` (the loader). The
rest is an **estimate**: operations of a forward and a backward pass, counted from parameters and
tokens, over an assumed part of a GPU's peak; gradients over an assumed network as a ring.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "scaling.md"
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Assumed:
    """What an estimate rests on: none of it was measured here."""

    images: int = 377_110
    """Images of MIMIC-CXR-JPG 2.1.0, all views."""
    decoder: float = 2.77e9
    """Parameters of Qwen2.5-VL-3B's decoder, without embeddings."""
    vision: float = 0.63e9
    """Parameters of its vision tower."""
    tokens: int = 288
    """Tokens of an image at 448 px: 256 visual, 32 of text."""
    patches: int = 1024
    """Patches of an image at 448 px."""
    above: float = 30 / 36
    """Part of the decoder that the backward pass goes through (adapters every 6 layers)."""
    peak: float = 989.0
    """TFLOP/s of a GPU, dense bfloat16 (data sheet of an H100 SXM)."""
    used: float = 0.40
    """Part of the peak that is reached."""
    batch: int = 32
    """Images of a step on each GPU, so that the global batch grows with the GPUs."""
    gradients: float = 2.6e6
    """Bytes of gradients of a step: 0.66 million float32 numbers."""
    bandwidth: float = 25e9
    """Bytes a second between machines, for each GPU (200 Gbit/s)."""
    latency: float = 20e-6
    """Seconds of each of the 2 (GPUs - 1) hops of a ring."""

    @property
    def operations(self) -> float:
        """Floating-point operations of an image.

        2 a parameter and token forward; the same again for gradients of activations; none for
        gradients of frozen weights.
        """
        decoder = 2 * self.decoder * self.tokens
        return decoder * (1 + self.above) + 2 * self.vision * self.patches

    def row(self, gpus: int) -> dict[str, float]:
        """What so many GPUs would do."""
        compute = self.batch * self.operations / (self.peak * 1e12 * self.used)
        hops = 2 * (gpus - 1)
        reduce = hops * self.latency + hops / gpus * self.gradients / self.bandwidth
        step = compute + reduce
        steps = -(-self.images // (self.batch * gpus))
        return {
            "batch": self.batch * gpus,
            "steps": steps,
            "reduced": reduce / step,
            "rate": self.batch * gpus / step,
            "epoch": steps * step,
        }


def estimate(assumed: Assumed, gpus: list[int]) -> list[str]:
    """The table of what so many GPUs would do, labelled as the estimate that it is."""
    lines = [
        "| GPUs | global batch | steps an epoch | images per second | reductions | an epoch |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for number in gpus:
        row = assumed.row(number)
        lines.append(
            f"| {number:,} | {row['batch']:,} | {row['steps']:,} | {row['rate']:,.0f} "
            f"| {row['reduced']:.1%} of a step | {_time(row['epoch'])} |"
        )
    lines += [
        "",
        f"Estimate, not a measurement: {assumed.operations / 1e12:.2f} TFLOP an image, "
        f"{assumed.peak:g} TFLOP/s at {assumed.used:.0%}, {assumed.batch} images a GPU and step, "
        f"{assumed.gradients / 1e6:g} MB of gradients over {assumed.bandwidth / 1e9:g} GB/s and "
        f"{assumed.latency * 1e6:g} us a hop.",
    ]
    return lines


def measured(found: dict[str, Any]) -> list[str]:
    """The table of what was measured."""
    load = found["load_average"]
    busy = max(load) > 3  # more than the two processes and a breath
    lines = [
        "| processes | a step, s | CPU s a step | CPU s an image | memory of each, MiB |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['processes']} | {row['seconds_a_step']:.2f} | {row['cpu_seconds_a_step']:.2f} "
        f"| {row['cpu_seconds_an_image']:.3f} | {row['memory_mib_a_process']:,.0f} |"
        for row in found["rows"]
    ]
    said = (
        "**The machine was busy with other work, so that seconds by the clock say little; "
        "seconds of CPU do.**"
        if busy
        else "The machine was quiet."
    )
    lines += [
        "",
        f"Measured on {found['date']} on {found['machine']}, recipe `mimic` on phantoms with "
        f"`tiny-cxr`, global batch {found['global_batch']}, one thread a process, gloo; load "
        f"average {load[0]:.1f} before and {load[1]:.1f} after. {said}",
    ]
    return lines


def filled(text: str, name: str, lines: list[str]) -> str:
    """The page with what is between the marks of a name replaced."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    head, rest = text.split(begin, 1)
    return head + begin + "\n" + "\n".join(lines) + "\n\n" + end + rest.split(end, 1)[1]


def _time(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


if __name__ == "__main__":
    plain = Assumed()
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--gpus", type=int, nargs="+")
    parser.add_argument("--peak", type=float, default=plain.peak)
    parser.add_argument("--used", type=float, default=plain.used)
    parser.add_argument("--batch", type=int, default=plain.batch)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    if given.gpus:
        assumed = Assumed(peak=given.peak, used=given.used, batch=given.batch)
        print("\n".join(estimate(assumed, given.gpus)))
        sys.exit()
    now = PAGE.read_text("utf-8")
    then = filled(now, "measured", measured(json.loads((RESULTS / "scaling.json").read_text())))
    then = filled(then, "estimate", estimate(plain, [1, 10, 1000]))
    if given.check:
        sys.exit(now != then)
    PAGE.write_text(then, "utf-8")
