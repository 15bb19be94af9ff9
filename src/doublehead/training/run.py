"""The run folder: what a run writes, how far it is, and how it resumes.

config.yaml           the resolved config; where it stands, a run has begun
environment.json      versions, command, git state and data, for each time the run was started, and why it ended
training.csv          losses every `train.log_every` steps (the recorder `csv`)
validation.csv        the twelve COCO figures and the losses on the val split, every measurement (the same)
last.safetensors      the newest weights and the state that resumes the run
previous.safetensors  the one before, until the run is done
best.safetensors      the weights with the best `train.metric` on the val split
not-finite/           the images of steps whose loss was not finite
curves.png, predictions.jpg
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from doublehead.common.errors import DoubleheadError, sentence
from doublehead.common.files import remove_unfinished, whole, writing
from doublehead.config import Config, read_yaml
from doublehead.model.checkpoint import Checkpoint, load_checkpoint
from doublehead.training.changes import differences
from doublehead.training.csv_files import TRAINING, VALIDATION


class RunFolder:
    """Paths and writers of one run."""

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

    def require_free(self) -> None:
        """Refuse to write over another run.

        Raises:
            DoubleheadError: a run is there already.
        """
        if self.config.exists():
            raise DoubleheadError(
                f"{self.path}: already holds a run; resume it with `doublehead resume {self.path}`, or give another "
                "--output"
            )

    def require_config(self, config: Config) -> None:
        """Refuse to resume a run of other settings.

        Raises:
            DoubleheadError: the run that is there has others.
        """
        if self.stored_config() != config:
            raise DoubleheadError(f"{self.path}: holds a run with other settings; give another --output")

    def begin(self, config: Config, environment: Mapping[str, Any]) -> None:
        """Make the folder; the config comes last, since it tells that a run is there.

        Raises:
            Fault: it cannot be written.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self._write_environment([environment])
        self._write_config(config)

    def go_on(self, config: Config, environment: Mapping[str, Any]) -> None:
        """Remove unfinished files and note with what the run continues, and which settings change from here on.

        Raises:
            Fault: the folder cannot be written.
        """
        remove_unfinished(self.path)
        changes = differences(self.stored_config(), config)
        self._write_environment([*self.environments(), {**environment, **({"changed": changes} if changes else {})}])
        if changes:
            self._write_config(config)

    def changed_at(self, step: int) -> bool:
        """Whether settings were changed where the run continued from this step."""
        return any(entry.get("from_step") == step and "changed" in entry for entry in self.environments())

    def end(self, step: int, why: str) -> None:
        """Note at which step the run has ended, and why.

        Raises:
            Fault: the folder cannot be written.
        """
        *entries, last = self.environments() or [{}]
        self._write_environment([*entries, last | {"ended": {"step": step, "why": why}}])

    def environments(self) -> list[dict[str, Any]]:
        """What the run was made with, for each time that it was started; empty where nothing is known of it.

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
        """Refuse to resume with other data than the run's.

        Args:
            data: the fingerprint of each split.

        Raises:
            DoubleheadError: names the splits that differ.
        """
        known = (self.environments() or [{"data": data}])[-1]["data"]
        other = sorted(split for split in {*known, *data} if known.get(split) != data.get(split))
        if other:
            raise DoubleheadError(
                f"{self.path}: its {' and '.join(other)} data has changed (other files, boxes or classes): "
                f"restore it, or resume with `doublehead resume {self.path} --other-data`"
            )

    def newest(self, say: Callable[[str], object]) -> Checkpoint | None:
        """The newest whole checkpoint of a state; None where nothing has been saved yet.

        Args:
            say: told where another than the last one has to do.

        Raises:
            DoubleheadError: none is whole.
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
        """The config of the existing run, to resume it.

        Raises:
            DoubleheadError: no run is there, or its config has a mistake.
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
        """The first of runs/name, runs/name-2, runs/name-3 ... that does not exist."""
        number = 1
        while (path := Path("runs") / (name if number == 1 else f"{name}-{number}")).exists():
            number += 1
        return path
