"""`doublehead check`: all that training and evaluation would meet in a dataset, found beforehand."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from doublehead.common.console import Console
from doublehead.common.errors import DoubleheadError
from doublehead.data.check import in_threads, read_record_picture, require_trainable
from doublehead.data.dataset import Dataset, open_dataset
from doublehead.data.records import Finding, Findings, Record, Split
from doublehead.data.suspects import (
    class_counts,
    suspect_boxes,
    suspect_classes,
    suspect_files,
    suspect_images,
    suspect_overlap,
)


@dataclass(frozen=True)
class Inspection:
    """What was found in a dataset."""

    path: Path
    splits: list[Split]  # those that could be read, each with its findings
    findings: Findings  # of the dataset as a whole, and of splits that could not be read

    @property
    def rows(self) -> list[tuple[str, Finding]]:
        """Findings with the names of their splits ("" for the whole), errors first."""
        rows = [("", finding) for finding in self.findings]
        rows += [(split.name, finding) for split in self.splits for finding in split.findings]
        return sorted(rows, key=lambda row: not row[1].error)

    @property
    def errors(self) -> int:
        """How many things keep a split from being trained on or measured."""
        return sum(finding.count for _, finding in self.rows if finding.error)

    @property
    def warnings(self) -> int:
        """How many things training can live with."""
        return sum(finding.count for _, finding in self.rows if not finding.error)

    @property
    def verdict(self) -> str:
        """One line."""
        if self.errors:
            return f"errors to mend before training: {self.errors}; warnings: {self.warnings}"
        return f"no errors: this can be trained on; warnings: {self.warnings}"

    def table(self) -> Table:
        """Counts and examples, for the console."""
        table = Table("", "split", "found", "what", "such as")
        table.columns[2].justify = "right"
        table.columns[4].overflow = "fold"  # paths stay whole
        for split, finding in self.rows:
            level = Text("error", "bold red") if finding.error else Text("warning", "yellow")
            examples = Text("\n".join(place.text for place in finding.places[: 1 if finding.error else 2]))
            table.add_row(level, Text(split), f"{finding.count}", Text(finding.kind), examples)
        return table

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values for `json.dump`; of each finding the first thousand places."""
        return {
            "data": str(self.path),
            "errors": self.errors,
            "warnings": self.warnings,
            "splits": [
                {
                    "name": split.name,
                    "images": len(split.records),
                    "classes": [
                        {"name": name, "id": number, "boxes": int(count)}
                        for (name, number), count in zip(split.categories.pairs, class_counts(split), strict=True)
                    ],
                }
                for split in self.splits
            ],
            "findings": [
                {
                    "level": "error" if finding.error else "warning",
                    "split": split or None,
                    "kind": finding.kind,
                    "count": finding.count,
                    "places": [
                        {"text": place.text, "image": place.image and str(place.image), "box": place.box}
                        for place in finding.places
                    ],
                }
                for split, finding in self.rows
            ],
        }

    def write_json(self, file: Path) -> None:
        """Write `to_json` to a file."""
        file.write_text(json.dumps(self.to_json(), indent=1), encoding="utf-8")


def inspect(path: str | Path, progress: bool = False) -> Inspection:
    """Look at every file of a dataset, as training and evaluation would, and at what is likely a mistake besides.

    Args:
        path: the dataset's folder or YAML.
        progress: whether to show a bar.
    """
    findings = Findings()
    splits: list[Split] = []
    with findings.collect("datasets that cannot be read"):
        dataset = open_dataset(path)
        if dataset.note:
            findings.warn("datasets without splits, shared out by content", dataset.note)
        for name in dataset.distinct:
            with findings.collect("splits that cannot be read"):
                splits.append(dataset.look(name))
        _training(path, dataset, splits, findings)
    if not findings.errors and not any(split.findings.errors for split in splits):  # else records are missing
        suspect_files(splits, findings)
    suspect_overlap(splits, _look_at_images(splits, Console(progress)), findings)
    suspect_images(splits)
    for split in splits:
        suspect_boxes(split)
        suspect_classes(split)
    return Inspection(Path(path), splits, findings)


def _training(path: str | Path, dataset: Dataset, splits: list[Split], findings: Findings) -> None:
    """What `read_for_training` asks of the two splits together."""
    by_name = {split.name: split for split in splits}
    with findings.collect("datasets that cannot be trained on"):
        train, val = (by_name.get(dataset.name_of(split) or "") for split in ("train", "val"))
        if train and not train.findings.errors:
            require_trainable(path, train, val)
        elif not dataset.has("train"):
            dataset.look("train")  # says what is missing
    if not dataset.has("val"):
        findings.warn("splits missing", "no val split: nothing is measured during training")


@dataclass(frozen=True)
class _Look:
    """What an image file turned out to be."""

    error: DoubleheadError | None
    notes: tuple[tuple[str, str], ...] = ()  # kinds of warnings, each with what is to be said of this image
    digest: bytes = b""  # of its pixels


def _look(record: Record) -> _Look:
    try:
        picture = read_record_picture(record)
    except DoubleheadError as error:
        return _Look(error)
    notes = []
    if picture.orientation not in (0, 1):
        notes.append(("images turned upright by their EXIF orientation", f" (orientation {picture.orientation})"))
    if picture.mode != "RGB":
        notes.append(("images of other colours, turned into RGB", f" ({picture.mode})"))
    if picture.several:
        notes.append(("images of several frames or pages, the first one read", ""))
    if not np.ptp(picture.rgb.getextrema(), axis=-1).any():
        notes.append(("images of one colour alone", ""))
    size = struct.pack("2q", *picture.rgb.size)
    return _Look(None, tuple(notes), hashlib.blake2b(picture.rgb.tobytes(), digest_size=16, person=size).digest())


def _look_at_images(splits: list[Split], console: Console) -> dict[Path, bytes]:
    """Decode every image once, note in the splits' findings what is to be said, and give digests of the pixels."""
    unique = {(record.path, record.width, record.height): record for split in splits for record in split.records}
    with console.progress("checking images", len(unique)) as advance:
        seen = dict(zip(unique, in_threads(_look, list(unique.values()), advance), strict=True))
    for split in splits:
        for record in split.records:
            look = seen[record.path, record.width, record.height]
            if look.error:
                split.findings.fault(look.error.kind, str(look.error), record.path)
            for kind, text in look.notes:
                split.findings.warn(kind, f"{record.path.name}{text}", record.path)
    return {path: look.digest for (path, _, _), look in seen.items() if not look.error}
