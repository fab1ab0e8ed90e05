"""Weights & Biases, told nothing but what it is handed: no host, command, code or output."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from medqua.core.errors import ConfigError
from medqua.train.trackers.shared import scalars, summary

QUIET: Mapping[str, Any] = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "host": "",
    "program": "medqua-train",
    "program_relpath": "medqua-train",
    "save_code": False,
    "silent": True,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
}
"""Settings of W&B that keep back what it would collect by itself."""


class WandB:
    """One W&B run; `WANDB_MODE=offline` keeps it in the run folder.

    Args:
        folder: The run folder; W&B's own files go there.
        project: Where it is filed.
        name: What it is called.
        identity: Its id, by which a resumed run goes on in it.
        config: Settings to show.

    Raises:
        ConfigError: W&B does not let this run in.
    """

    def __init__(
        self, folder: Path, project: str, name: str, identity: str, config: Mapping[str, Any]
    ) -> None:
        try:
            self.run = wandb.init(
                project=project,
                name=name,
                id=identity,
                resume="allow",
                dir=str(folder),
                config=dict(config),
                settings=wandb.Settings(**QUIET),
            )
        except wandb.errors.Error as error:
            mode = os.environ.get("WANDB_MODE", "online")
            raise ConfigError(
                f"W&B refuses the run (WANDB_MODE={mode}): {error}. Log in by `wandb login`, or "
                "set WANDB_MODE=offline and send it later by `wandb sync`"
            ) from error

    def log(self, line: Mapping[str, Any]) -> None:
        """A line of the training log."""
        self.run.log(scalars(line), step=int(line["step"]))

    def figures(self, metrics: Mapping[str, Any]) -> None:
        """The figures, as the run's summary."""
        self.run.summary.update(summary(metrics))

    def pictures(self, folder: Path) -> None:
        """The pictures of a folder."""
        for path in sorted(folder.glob("*.png")):
            self.run.log({path.stem: wandb.Image(str(path))})

    def close(self, state: str) -> None:
        """End the run as complete, interrupted or failed."""
        self.run.finish(exit_code={"complete": 0, "interrupted": 130}.get(state, 1))
