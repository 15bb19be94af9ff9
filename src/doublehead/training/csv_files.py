"""The recorder `csv`: training.csv and validation.csv, with one row per event, flushed to disk."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from doublehead.common.files import whole, writing

if TYPE_CHECKING:
    from doublehead.config import Config

TRAINING = "training.csv"
VALIDATION = "validation.csv"


class CSVFiles:
    """Recorder that writes two CSV files to the run folder. A resumed run removes the rows it will write again."""

    folder: Path

    def begin(self, config: Config, folder: Path, step: int, measured: int) -> None:  # noqa: D102
        self.folder = folder
        cut_rows(folder / TRAINING, step)
        cut_rows(folder / VALIDATION, measured)

    def losses(self, step: int, epoch: float, values: Mapping[str, float]) -> None:  # noqa: D102
        append_row(self.folder / TRAINING, {"step": step, "epoch": epoch, **values})

    def machine(self, step: int, values: Mapping[str, float]) -> None:
        """Not recorded: these files are reproducible, and timings are not."""

    def metrics(self, step: int, epoch: float, values: Mapping[str, float]) -> None:  # noqa: D102
        append_row(self.folder / VALIDATION, {"step": step, "epoch": epoch, **values})

    def picture(self, step: int, name: str, path: Path) -> None:
        """Not recorded: pictures are already in the run folder."""

    def end(self, done: bool) -> None:
        """Nothing to do: rows are already on disk."""


def append_row(path: Path, row: Mapping[str, float | int]) -> None:
    """Append a row to a CSV file and flush it to disk. The first row also writes the header.

    Raises:
        Fault: the file cannot be written.
    """
    with writing(path), path.open("a+", newline="", encoding="utf-8") as file:
        file.seek(0)
        header = next(csv.reader(file), None)
        writer = csv.DictWriter(file, header or list(row), extrasaction="ignore")
        file.seek(0, os.SEEK_END)
        if header is None:
            writer.writeheader()
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
        file.flush()
        os.fsync(file.fileno())


def cut_rows(path: Path, step: int) -> None:
    """Remove the rows after a step, which a resumed run will write again, and incomplete rows.

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
