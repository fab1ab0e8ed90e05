"""MLflow, by its client: it writes no user, source file or commit of its own."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from medqua.core.errors import ConfigError
from medqua.train.trackers.shared import scalars, summary

IDENTITY = "medqua.run"
"""Tag by which a resumed run finds itself."""

STATES = {"complete": "FINISHED", "interrupted": "KILLED"}
"""How a run ended, in MLflow's words; else FAILED."""

LONGEST = 500
"""Characters of a setting that every store takes."""


class MLflow:
    """One MLflow run at `MLFLOW_TRACKING_URI`; without it, in `mlflow.db` of the run folder.

    Args:
        folder: The run folder.
        project: The experiment.
        name: What it is called.
        identity: Its id, by which a resumed run goes on in it.
        config: Settings to show.

    Raises:
        ConfigError: The store is out of reach or refuses the run.
    """

    def __init__(
        self, folder: Path, project: str, name: str, identity: str, config: Mapping[str, Any]
    ) -> None:
        local = f"sqlite:///{(folder / 'mlflow.db').resolve()}"
        uri = os.environ.get("MLFLOW_TRACKING_URI") or local
        try:
            self.client = MlflowClient(tracking_uri=uri)
            known = self.client.get_experiment_by_name(project)
            where = (folder / "mlflow").resolve().as_uri() if uri == local else None
            experiment = (
                self.client.create_experiment(project, artifact_location=where)
                if known is None
                else known.experiment_id
            )
            found = self.client.search_runs([experiment], f"tags.`{IDENTITY}` = '{identity}'")
            if found:
                self.run = found[0].info.run_id
                self.client.update_run(self.run, status="RUNNING")
            else:
                tags = {IDENTITY: identity}
                created = self.client.create_run(experiment, tags=tags, run_name=name)
                self.run = created.info.run_id
                params = [Param(key, str(value)[:LONGEST]) for key, value in config.items()]
                for start in range(0, len(params), 100):
                    self.client.log_batch(self.run, params=params[start : start + 100])
        except (MlflowException, OSError) as error:
            raise ConfigError(
                f"MLflow refuses the run: {error}. Check MLFLOW_TRACKING_URI, or leave it out to "
                "keep the run in its folder"
            ) from error

    def log(self, line: Mapping[str, Any]) -> None:
        """A line of the training log."""
        self._send(scalars(line), int(line["step"]))

    def figures(self, metrics: Mapping[str, Any]) -> None:
        """The figures, as metrics of the last step."""
        self._send(summary(metrics), int(metrics["steps"]))

    def pictures(self, folder: Path) -> None:
        """The pictures of a folder, as artifacts."""
        for path in sorted(folder.glob("*.png")):
            self.client.log_artifact(self.run, str(path), "plots")

    def close(self, state: str) -> None:
        """End the run as complete, interrupted or failed."""
        self.client.set_terminated(self.run, STATES.get(state, "FAILED"))

    def _send(self, values: Mapping[str, float], step: int) -> None:
        found = [
            Metric(_name(key), value, 0, step)
            for key, value in values.items()
            if math.isfinite(value)
        ]
        for start in range(0, len(found), 1000):
            self.client.log_batch(self.run, metrics=found[start : start + 1000])


def _name(key: str) -> str:
    """A name that MLflow takes: letters, digits, spaces and `_-./`."""
    return "".join(sign if sign.isalnum() or sign in " _-./" else "-" for sign in key)
