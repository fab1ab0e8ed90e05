"""The table of what `bench_serve` measured: ours, what it is held against, the goal, whether met.

python benchmarks/serve_table.py        # the same as Markdown, for docs/serving.md
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "serve.json"
PAGE = ROOT / "docs" / "serving.md"
MARKS = ("<!-- speed: written by hatch run bench:serve-page -->", "<!-- /speed -->")
CLIENTS = 16
HEAD = ("", "measured", "beside", "ratio", "goal")


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
    table = Table(*HEAD)
    for row in rows(found):
        table.add_row(*row)
    Console().print(table)


def markdown(found: dict[str, Any]) -> str:
    """Return the table for the documentation, and when and under which load it was measured."""
    lines = ["| " + " | ".join(HEAD) + " |", "| --- | --- | --- | --- | --- |"]
    lines += ["| " + " | ".join(row) + " |" for row in rows(found)]
    parts = "; ".join(
        f"{name} {part['when'][:16].replace('T', ' ')} UTC, {part['load_before']}"
        for name, part in found.items()
    )
    first = next(iter(found.values()))
    versions = ", ".join(f"{name} {number}" for name, number in first["versions"].items())
    about = f"{first['machine']}; part, time and load average before it: {parts}. {versions}."
    return "\n".join([*lines, "", about])


def main() -> None:
    """Write the table between its two marks."""
    page = PAGE.read_text()
    head, rest = page.split(MARKS[0])
    _, tail = rest.split(MARKS[1])
    table = markdown(json.loads(RESULTS.read_text()))
    PAGE.write_text(f"{head}{MARKS[0]}\n\n{table}\n\n{MARKS[1]}{tail}")


if __name__ == "__main__":
    main()
