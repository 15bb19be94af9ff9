"""The run folder: what a run writes, where it stands, and how it goes on from there.

config.yaml          the resolved config
training.csv         losses every `train.log_every` steps
validation.csv       the twelve COCO figures, every measurement
last.safetensors     the newest weights and the state that resumes the run
best.safetensors     the weights with the highest AP on the val split
curves.png, predictions.jpg
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import yaml
from pydantic import ValidationError

from doublehead.config import Config, read_yaml, sentence
from doublehead.errors import DoubleheadError


class RunFolder:
    """Paths and writers of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.training = path / "training.csv"
        self.validation = path / "validation.csv"
        self.last = path / "last.safetensors"
        self.best = path / "best.safetensors"
        self.curves = path / "curves.png"
        self.pictures = path / "predictions.jpg"

    def require_free(self) -> None:
        """Refuse to write over another run.

        Raises:
            DoubleheadError: a run is there already.
        """
        if self.config.exists():
            mend = f"go on with `doublehead resume {self.path}`" if self.last.exists() else "remove it"
            raise DoubleheadError(f"{self.path}: holds a run already; {mend}, or give another --output")

    def begin(self, config: Config) -> None:
        """Make the folder, with the config in it."""
        self.path.mkdir(parents=True, exist_ok=True)
        values = config.model_dump(mode="json")
        self.config.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")

    def stored_config(self) -> Config:
        """The config of the run that is there, to go on with.

        Raises:
            DoubleheadError: no run is there, or none that was ever saved, or its config has a mistake.
        """
        if not self.config.exists():
            raise DoubleheadError(f"{self.path}: holds no run; give the folder that `doublehead train` wrote")
        if not self.last.exists():
            raise DoubleheadError(f"{self.path}: stopped before anything was saved; remove it and train again")
        try:
            return Config.model_validate(read_yaml(self.config))
        except ValidationError as error:
            raise DoubleheadError(f"{self.config}: {sentence(error)}") from error

    @staticmethod
    def free(name: str) -> Path:
        """The first of runs/name, runs/name-2, runs/name-3 ... that does not exist."""
        number = 1
        while (path := Path("runs") / (name if number == 1 else f"{name}-{number}")).exists():
            number += 1
        return path


def append_row(path: Path, row: Mapping[str, float | int]) -> None:
    """Add a row to a CSV; the first one brings the header."""
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        if fresh:
            writer.writeheader()
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})


def cut_rows(path: Path, step: int) -> None:
    """Drop the rows after a step: a run resumed from there will write them again."""
    if not path.exists():
        return
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["step"].isdigit() and int(row["step"]) <= step]
    path.unlink()
    for row in rows:
        append_row(path, row)  # type: ignore[arg-type]
