"""The recorder `mlflow`: a run on an MLflow server, or in a local database."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doublehead.common.errors import require
from doublehead.training.loggers.common import Identity, finite

if TYPE_CHECKING:
    from doublehead.config import Config

PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""Defaults of environment variables: with MLflow's own, a server that is down would block the run for minutes."""
LONGEST = 500
"""Maximum characters of a parameter that every MLflow version accepts."""


class MLflow:
    """Sends scalars, pictures, the config and the best checkpoint to MLflow.

    Its own environment variables apply: MLFLOW_TRACKING_URI names the server, MLFLOW_EXPERIMENT_NAME the experiment.
    """

    def begin(self, config: Config, folder: Path, step: int, measured: int) -> None:  # noqa: D102
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        self.mlflow: Any = require("mlflow", "mlflow")
        self.folder, self.client = folder, self.mlflow.MlflowClient()
        identity = Identity(folder, "mlflow")
        self.run = identity.read() or ""
        if self.run:
            self.client.update_run(self.run, status="RUNNING")
        else:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "doublehead")
            known = self.client.get_experiment_by_name(name)
            experiment = known.experiment_id if known else self.client.create_experiment(name)
            self.run = self.client.create_run(experiment, run_name=folder.name).info.run_id
            identity.write(self.run)
            parameters = [
                self.mlflow.entities.Param(key, value[:LONGEST])
                for key, value in _flat(config.model_dump(mode="json")).items()
            ]
            for start in range(0, len(parameters), 100):  # as many as a request may hold
                self.client.log_batch(self.run, params=parameters[start : start + 100])
        self.client.log_artifact(self.run, str(folder / "config.yaml"))

    def losses(self, step: int, epoch: float, values: Mapping[str, float]) -> None:  # noqa: D102
        self._scalars({"epoch": epoch, **finite(values, "train")}, step)

    def machine(self, step: int, values: Mapping[str, float]) -> None:  # noqa: D102
        self._scalars(finite(values, "machine"), step)

    def metrics(self, step: int, epoch: float, values: Mapping[str, float]) -> None:  # noqa: D102
        self._scalars(finite(values, "val"), step)

    def picture(self, step: int, name: str, path: Path) -> None:  # noqa: D102
        self.client.log_artifact(self.run, str(path), f"pictures/step-{step}")

    def end(self, done: bool) -> None:  # noqa: D102
        best = self.folder / "best.safetensors"
        if done and best.exists():
            self.client.log_artifact(self.run, str(best))
        self.client.set_terminated(self.run, "FINISHED" if done else "KILLED")

    def _scalars(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        entries = [
            self.mlflow.entities.Metric(re.sub(r"[^\w/.\- ]", "_", name), value, now, step)
            for name, value in values.items()
        ]
        self.client.log_batch(self.run, metrics=entries)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested settings to text by key."""
    found: dict[str, str] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": str(value)}
    return found
