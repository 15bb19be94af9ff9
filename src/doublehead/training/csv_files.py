"""The recorder `csv`: training.csv and validation.csv, each a row per event, on the disk once it is told."""

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
    """A Recorder that writes two CSV files into the run folder; a resumed run cuts the rows it will write again."""

    folder: Path

    def begin(self, config: Config, folder: Path, step: int, measured: int) -> None:  # noqa: D102
        self.folder = folder
        cut_rows(folder / TRAINING, step)
        cut_rows(folder / VALIDATION, measured)

    def losses(self, step: int, epoch: float, values: Mapping[str, float]) -> None:  # noqa: D102
        append_row(self.folder / TRAINING, {"step": step, "epoch": epoch, **values})

    def machine(self, step: int, values: Mapping[str, float]) -> None:
        """What the machine does differs from run to run; these files are the same for the same run."""

    def metrics(self, step: int, epoch: float, values: Mapping[str, float]) -> None:  # noqa: D102
        append_row(self.folder / VALIDATION, {"step": step, "epoch": epoch, **values})

    def picture(self, step: int, name: str, path: Path) -> None:
        """Pictures are in the run folder already."""

    def end(self, done: bool) -> None:
        """Every row is on the disk already."""


def append_row(path: Path, row: Mapping[str, float | int]) -> None:
    """Add a row to a CSV and bring it to the disk; the first one brings the header, which stays.

    Raises:
        Fault: it cannot be written.
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
