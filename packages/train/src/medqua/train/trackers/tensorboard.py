"""TensorBoard: events in the run folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from medqua.train.trackers.shared import scalars


class TensorBoard:
    """Writes the log into `tensorboard/`; figures and pictures lie beside it already."""

    def __init__(self, folder: Path) -> None:
        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, line: Mapping[str, Any]) -> None:
        """A line of the training log."""
        for name, value in scalars(line).items():
            self.writer.add_scalar(name, value, int(line["step"]))

    def figures(self, metrics: Mapping[str, Any]) -> None:
        """Nothing: `metrics.json` holds them."""

    def pictures(self, folder: Path) -> None:
        """Nothing: they are in the folder."""

    def close(self, state: str) -> None:
        """Flush."""
        self.writer.close()
