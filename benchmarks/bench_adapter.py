"""What the adapter costs on a backbone of the real width, beside PEFT's LoRA and nothing at all.

    hatch run bench:adapter                                     # CPU: 6 decoder layers of 36
    hatch run gpu:adapter --batch 8                             # the whole shape, bfloat16

The backbone is Qwen2.5-VL-3B's shape with random weights. On a CPU it is cut: to six decoder
layers with one adapter, as six serve 36, to two blocks of the vision tower and to a small
vocabulary. The adapter of the cut stack is on its first layer, so that gradients go back through
five layers of six, as through 30 of 36 (LoRA's through all); at its end it would spare nearly all
of the backward pass.
Each model lives in a process of its own; their steps are timed in turn, and medians compared.
Trainable parameters are counted at the whole shape, without memory for it.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from adapter_steps import MODELS, Shape, build, serve, trainable
from rich.progress import Progress

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "peft", "medqua-core")
GIB = 2**30


@contextmanager
def processes(shape: Shape) -> Iterator[dict[str, Connection]]:
    """The models, each in a fresh process, ready to be asked."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    running = []
    for name in MODELS:
        pipes[name], theirs = context.Pipe()
        running.append(context.Process(target=serve, args=(name, shape, theirs), daemon=True))
        running[-1].start()
        theirs.close()
    try:
        yield pipes
        for pipe in pipes.values():
            pipe.send("end")
    finally:
        for process in running:
            process.join(10)
            process.kill()


def ask(pipe: Connection, what: str) -> object:
    pipe.send(what)
    return pipe.recv()


def measure(shape: Shape, repeats: int) -> tuple[dict[str, dict[str, float]], dict[str, dict]]:
    """Median seconds of a training step and of a prediction, and the facts of each model.

    Training first, two steps unmeasured: so the peak memory is that of training, and predictions
    are made with a threshold that routes a share of tokens.
    """
    seconds: dict[str, dict[str, list[float]]] = {}
    with processes(shape) as pipes, Progress(transient=True) as progress:
        task = progress.add_task("Steps", total=2 * (repeats + 2) * len(pipes))
        for what in ("train", "predict"):
            seconds[what] = {name: [] for name in pipes}
            for turn in range(repeats + 2):
                for name, pipe in pipes.items():
                    taken = ask(pipe, what)
                    if turn >= 2:
                        seconds[what][name].append(taken)
                    progress.advance(task)
        facts = {name: ask(pipe, "facts") for name, pipe in pipes.items()}
    medians = {
        what: {name: round(statistics.median(values), 4) for name, values in found.items()}
        for what, found in seconds.items()
    }
    return medians, facts


def row(case: str, ours: float, peer: str, theirs: float, goal: str) -> dict:
    return {
        "case": case,
        "ours": ours,
        "peers": {peer: theirs},
        "best_peer": peer,
        "ratio": round(ours / theirs, 4),
        "goal": goal,
    }


def rows(shape: Shape, repeats: int) -> list[dict]:
    medians, facts = measure(shape, repeats)
    whole = Shape(device="meta")
    counts = {name: trainable(build(name, whole)) for name in ("lora", "medqua")}
    where = f"{shape.layers} decoder layers, batch {shape.batch}, {shape.dtype}, {shape.device}"
    peaks = {name: round(found["peak_bytes"] / GIB, 3) for name, found in facts.items()}
    grown = {
        name: round((found["peak_bytes"] - found["loaded_bytes"]) / GIB, 3)
        for name, found in facts.items()
    }
    train, predict = medians["train"], medians["predict"]
    return [
        row(
            f"training step, seconds ({where})",
            train["medqua"],
            "LoRA r=16 q,k,v,o",
            train["lora"],
            "at most 1.05",
        ),
        row(
            f"peak memory of a process that trains, GiB ({where})",
            peaks["medqua"],
            "LoRA r=16 q,k,v,o",
            peaks["lora"],
            "at most 1",
        ),
        row(
            f"of it above the loaded model, GiB ({where})",
            grown["medqua"],
            "LoRA r=16 q,k,v,o",
            grown["lora"],
            "at most 1",
        ),
        row(
            "trainable parameters, whole 3B shape",
            counts["medqua"],
            "LoRA r=16 q,k,v,o",
            counts["lora"],
            "at most 0.1",
        ),
        row(
            f"prediction, seconds ({where})",
            predict["medqua"],
            "backbone alone",
            predict["bare"],
            "at most 1.03",
        )
        | {"lora": predict["lora"], "quantum_share": facts["medqua"]["quantum_share"]},
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=6, help="decoder layers")
    parser.add_argument("--vision-layers", type=int, default=2, help="blocks of the vision tower")
    parser.add_argument("--vocabulary", type=int, default=2000, help="rows of the embedding")
    parser.add_argument("--batch", type=int, default=1, help="images of a step")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", help="of the backbone")
    parser.add_argument("--repeats", type=int, default=7, help="timings, the median counts")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations")
    parser.add_argument("--output", type=Path, help="default: results/adapter[-cuda].json")
    arguments = parser.parse_args()
    shape = Shape(
        layers=arguments.layers,
        vision_layers=arguments.vision_layers,
        vocabulary=arguments.vocabulary,
        batch=arguments.batch,
        device=arguments.device,
        dtype=arguments.dtype,
        threads=os.cpu_count() or 1,
        checkpointing=arguments.checkpointing,
        blocks=[1] if arguments.layers == 6 else None,
    )
    found = rows(shape, arguments.repeats)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
    if arguments.device != "cpu":
        machine += f", {torch.cuda.get_device_name()}"
    report = {
        "machine": machine,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in PACKAGES},
        "date": datetime.now(UTC).date().isoformat(),
        "shape": vars(shape),
        "rows": found,
    }
    name = "adapter.json" if arguments.device == "cpu" else "adapter-cuda.json"
    output = arguments.output or RESULTS / name
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
