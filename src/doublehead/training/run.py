"""The run folder: what a run writes, where it stands, and how it goes on from there.

config.yaml           the resolved config; where it stands, a run has begun
environment.json      versions, command, git state and data, for each time the run was started
training.csv          losses every `train.log_every` steps
validation.csv        the twelve COCO figures, every measurement
last.safetensors      the newest weights and the state that resumes the run
previous.safetensors  the one before, until the run is done
best.safetensors      the weights with the highest AP on the val split
not-finite/           the images of steps whose loss was not finite
curves.png, predictions.jpg
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from doublehead.common.errors import DoubleheadError
from doublehead.common.files import remove_unfinished, whole, writing
from doublehead.config import Config, read_yaml, sentence
from doublehead.model.checkpoint import Checkpoint, load_checkpoint


class RunFolder:
    """Paths and writers of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.environment = path / "environment.json"
        self.training = path / "training.csv"
        self.validation = path / "validation.csv"
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
                f"{self.path}: holds a run already; go on with `doublehead resume {self.path}`, or give another "
                "--output"
            )

    def require_config(self, config: Config) -> None:
        """Refuse to go on with a run of other settings.

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
        with whole(self.config) as path:
            path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")

    def go_on(self, step: int, measured: int, environment: Mapping[str, Any]) -> None:
        """Undo what was written after the checkpoint: the run will write it again.

        Args:
            step: of the checkpoint.
            measured: the last step that it has measured.
            environment: of the run as it goes on.

        Raises:
            Fault: the folder cannot be written.
        """
        remove_unfinished(self.path)
        cut_rows(self.training, step)
        cut_rows(self.validation, measured)
        self._write_environment([*self.environments(), environment])

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
                f"{self.environment}: is damaged ({error}); remove it to go on, whether the data is the same or not"
            ) from error

    def require_data(self, data: Mapping[str, str]) -> None:
        """Refuse to go on with other data than the run's.

        Args:
            data: the fingerprint of each split.

        Raises:
            DoubleheadError: names the splits that differ.
        """
        known = (self.environments() or [{"data": data}])[-1]["data"]
        other = sorted(split for split in {*known, *data} if known.get(split) != data.get(split))
        if other:
            raise DoubleheadError(
                f"{self.path}: its {' and '.join(other)} data is not what it was (other files, boxes or classes): put "
                f"it back, or go on with `doublehead resume {self.path} --other-data`"
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
                found = faults[0] if faults else f"{self.last}: is not there"
                say(f"{found}; going on from the one before, {path.name} of step {checkpoint.notes.get('step')}")
            return checkpoint
        if faults:
            raise DoubleheadError(f"{faults[0]}; and no other checkpoint is left to go on from: train again")
        say(f"{self.path}: nothing was saved yet; beginning anew")
        return None

    def stored_config(self) -> Config:
        """The config of the run that is there, to go on with.

        Raises:
            DoubleheadError: no run is there, or its config has a mistake.
        """
        if not self.config.exists():
            raise DoubleheadError(f"{self.path}: holds no run; give the folder that `doublehead train` wrote")
        try:
            return Config.model_validate(read_yaml(self.config))
        except ValidationError as error:
            raise DoubleheadError(f"{self.config}: {sentence(error)}") from error

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


def append_row(path: Path, row: Mapping[str, float | int]) -> None:
    """Add a row to a CSV and bring it to the disk; the first one brings the header.

    Raises:
        Fault: it cannot be written.
    """
    with writing(path), path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        if not file.tell():
            writer.writeheader()
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
        file.flush()
        os.fsync(file.fileno())


def cut_rows(path: Path, step: int) -> None:
    """Drop the rows after a step, which a run resumed from there will write again, and those not written to the end.

    Raises:
        Fault: the file cannot be written.
    """
    if not path.exists():
        return
    header, *lines = path.read_bytes().splitlines(keepends=True) or [b""]
    steps = [line.partition(b",")[0] if line.endswith(b"\n") else b"" for line in lines]
    rows = [line for line, number in zip(lines, steps, strict=True) if number.isdigit() and int(number) <= step]
    if rows:
        with whole(path) as temporary:
            temporary.write_bytes(b"".join([header, *rows]))
    else:
        path.unlink()
