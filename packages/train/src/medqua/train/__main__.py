"""`medqua-train`: train and evaluate on MIMIC-CXR, ChestMNIST, a folder of one's own, or phantoms.

hatch run train:mimic                                   # synthetic radiographs, no download
hatch run train:mimic data.root=/data/mimic-cxr-jpg data.workers=8 data.keep_in_memory=false
NPROC=2 hatch run train:folder data.root=../images optim.epochs=20
hatch run train:mimic --arm lora                        # an arm of the experiment
torchrun --nproc-per-node=4 -m medqua.train chestmnist data.root=. data.download=true
"""

import sys

import typer

from medqua.core.console import run as run_app
from medqua.train.commands import experiment, phantoms, push, report, runs, sweep

app = typer.Typer(
    help="Train and evaluate MedQua.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
for verbs in (runs, report, phantoms, experiment, sweep, push):
    verbs.add_to(app)


def main() -> int:
    """Entry point of the console script."""
    return run_app(app)


if __name__ == "__main__":
    sys.exit(main())
