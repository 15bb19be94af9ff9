"""The run folder: files, progress and resuming of a run.

config.yaml           the resolved config; marks the folder as a run
environment.json      versions, command, git state and data of each start, and why the run ended
training.csv          losses every `train.log_every` steps (recorder `csv`)
validation.csv        COCO's twelve metrics and the losses on the val split, per validation (recorder `csv`)
last.safetensors      the newest weights and the state for resuming
previous.safetensors  the checkpoint before, until the run is complete
best.safetensors      the weights with the best `train.metric` on the val split
not-finite/           images of steps with a non-finite loss
curves.png, predictions.jpg
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from doublehead.common.errors import DoubleheadError, sentence
from doublehead.common.files import held, remove_unfinished, whole, writing
from doublehead.config import Config, read_yaml
from doublehead.model.checkpoint import Checkpoint, load_checkpoint
from doublehead.training.changes import differences
from doublehead.training.csv_files import TRAINING, VALIDATION


class RunFolder:
    """Paths and files of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.environment = path / "environment.json"
        self.training = path / TRAINING
        self.validation = path / VALIDATION
        self.last = path / "last.safetensors"
        self.previous = path / "previous.safetensors"
        self.best = path / "best.safetensors"
        self.not_finite = path / "not-finite"
        self.curves = path / "curves.png"
        self.pictures = path / "predictions.jpg"
        self._held = ExitStack()

    def require_free(self) -> None:
        """Require a folder without a run.

        Raises:
            DoubleheadError: the folder already contains a run.
        """
        if self.config.exists():
            raise DoubleheadError(
                f"{self.path}: already holds a run; resume it with `doublehead resume {self.path}`, or give another "
                "--output"
            )

    def require_config(self, config: Config) -> None:
        """Require that the run in the folder has these settings.

        Raises:
            DoubleheadError: its settings differ.
        """
        if self.stored_config() != config:
            raise DoubleheadError(f"{self.path}: holds a run with other settings; give another --output")

    def hold(self) -> None:
        """Keep other processes from training into this folder until `release`.

        Raises:
            DoubleheadError: another process is training into it.
            Fault: the folder is missing.
        """
        self._held.enter_context(held(self.path))

    def release(self) -> None:
        """Let other processes train into this folder."""
        self._held.close()

    def begin(self, config: Config, environment: Mapping[str, Any]) -> None:
        """Create the folder and hold it. The config is written last, since it marks the folder as a run.

        Raises:
            DoubleheadError: another process has just begun a run there.
            Fault: the folder cannot be written.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self.hold()
        self.require_free()
        self._write_environment([environment])
        self._write_config(config)

    def go_on(self, config: Config, environment: Mapping[str, Any]) -> None:
        """Remove incomplete files, and record the environment and the changed settings of the resumed run.

        Raises:
            Fault: the folder cannot be written.
        """
        remove_unfinished(self.path)
        changes = differences(self.stored_config(), config)
        self._write_environment([*self.environments(), {**environment, **({"changed": changes} if changes else {})}])
        if changes:
            self._write_config(config)

    def changed_at(self, step: int) -> bool:
        """Whether settings were changed when the run was resumed at this step."""
        return any(entry.get("from_step") == step and "changed" in entry for entry in self.environments())

    def end(self, step: int, why: str) -> None:
        """Record the step at which the run ended, and why.

        Raises:
            Fault: the folder cannot be written.
        """
        *entries, last = self.environments() or [{}]
        self._write_environment([*entries, last | {"ended": {"step": step, "why": why}}])

    def environments(self) -> list[dict[str, Any]]:
        """Read the environment of each start of the run; empty if not recorded.

        Raises:
            DoubleheadError: the file is damaged.
        """
        if not self.environment.exists():
            return []
        try:
            return json.loads(self.environment.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DoubleheadError(
                f"{self.environment}: is damaged ({error}); remove it to resume without comparing the data"
            ) from error

    def require_data(self, data: Mapping[str, str]) -> None:
        """Require that the data equals the run's.

        Args:
            data: fingerprint of each split.

        Raises:
            DoubleheadError: splits differ; the message names them.
        """
        known = (self.environments() or [{"data": data}])[-1]["data"]
        other = sorted(split for split in {*known, *data} if known.get(split) != data.get(split))
        if other:
            raise DoubleheadError(
                f"{self.path}: its {' and '.join(other)} data has changed (other files, boxes or classes): "
                f"restore it, or resume with `doublehead resume {self.path} --other-data`"
            )

    def newest(self, say: Callable[[str], object]) -> Checkpoint | None:
        """Load the newest intact checkpoint of the state; None if nothing has been saved yet.

        Args:
            say: called with a message if the last checkpoint cannot be used.

        Raises:
            DoubleheadError: no checkpoint is intact.
        """
        faults = []
        for path in (self.last, self.previous):
            try:
                checkpoint = load_checkpoint(path)
            except DoubleheadError as error:
                faults += [str(error)] if path.exists() else []
                continue
            if path != self.last:
                found = faults[0] if faults else f"{self.last}: is missing"
                step = checkpoint.notes.get("step")
                say(f"{found}; resuming from the previous checkpoint, {path.name} of step {step}")
            return checkpoint
        if faults:
            raise DoubleheadError(f"{faults[0]}; there is no other checkpoint to resume from: train again")
        say(f"{self.path}: nothing was saved yet; starting from the beginning")
        return None

    def stored_config(self) -> Config:
        """Read the config of the run in this folder.

        Raises:
            DoubleheadError: the folder contains no run, or its config is invalid.
        """
        if not self.config.exists():
            raise DoubleheadError(f"{self.path}: holds no run; give the folder that `doublehead train` wrote")
        try:
            return Config.model_validate(read_yaml(self.config))
        except ValidationError as error:
            raise DoubleheadError(f"{self.config}: {sentence(error)}") from error

    def _write_config(self, config: Config) -> None:
        with whole(self.config) as path:
            path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")

    def _write_environment(self, entries: list[Mapping[str, Any]]) -> None:
        with whole(self.environment) as path:
            path.write_text(json.dumps(entries, indent=1), encoding="utf-8")

    @staticmethod
    def free(name: str) -> Path:
        """Return the first of runs/name, runs/name-2, runs/name-3 ... that does not exist."""
        number = 1
        while (path := Path("runs") / (name if number == 1 else f"{name}-{number}")).exists():
            number += 1
        return path
