"""Make the bundle of a run the demo bundle that ships with medqua-serve.

    hatch run train:mimic --output runs/demo
    hatch run python tools/ship_demo.py runs/demo

Refused: a run on anything but phantoms, one without a card, and one that is too large with the
backbone that medqua-core ships.
"""

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

import medqua.core.model.tiny_cxr as tiny_cxr
from medqua.core.model.bundle import Bundle
from medqua.serve.demo import DEMO

LARGEST = 8_000_000
"""Bytes of the demo bundle and the small backbone together."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    run: Path = parser.parse_args().run
    record = json.loads((run / "run.json").read_text())
    if record["state"] != "complete" or "PHANTOMS" not in record["data"]["source"]:
        raise SystemExit(f"{run} is not a finished run on phantoms: nothing else may be shipped")
    bundle = Bundle.open(run / "bundle")
    if not bundle.card.partition("## Measured")[2]:
        raise SystemExit(f"the bundle of {run} has no card with measured figures: train it again")
    title = f"# {record['recipe']['name']}\n" if "name" in record["recipe"] else "# mimic\n"
    card = bundle.card.replace(title, "# The demo bundle, trained on phantoms\n", 1)
    partial = DEMO.with_name(f".{DEMO.name}.unfinished")
    shutil.rmtree(partial, ignore_errors=True)
    replace(bundle, card=card).save(partial)
    folders = (partial, Path(tiny_cxr.__path__[0]))
    size = sum(file.stat().st_size for f in folders for file in f.rglob("*") if file.is_file())
    if size > LARGEST:
        shutil.rmtree(partial)
        raise SystemExit(f"{size:,} bytes with the small backbone: needed at most {LARGEST:,}")
    shutil.rmtree(DEMO, ignore_errors=True)
    partial.replace(DEMO)
    print(f"{DEMO}: {size:,} bytes with the small backbone")


if __name__ == "__main__":
    main()
