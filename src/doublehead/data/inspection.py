"""`doublehead check`: find errors and suspects in a dataset before training and evaluation."""

from __future__ import annotations

import hashlib
import json
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from doublehead.common.console import Console, shorten
from doublehead.common.errors import DoubleheadError
from doublehead.common.threads import in_threads
from doublehead.config import Config
from doublehead.data.advice import Advice, advise
from doublehead.data.check import read_record_picture, require_trainable
from doublehead.data.dataset import Dataset, open_dataset
from doublehead.data.near_copies import perceptual_hash
from doublehead.data.records import Finding, Findings, Record, Split
from doublehead.data.suspects import (
    class_counts,
    suspect_boxes,
    suspect_classes,
    suspect_files,
    suspect_images,
    suspect_near_copies,
    suspect_overlap,
)
from doublehead.model.presets import SMALL_DATA_MODEL, preset

LONGEST_NAME = 36
"""Columns of a console that a name takes in a warning; --json and the page have it whole."""


@dataclass(frozen=True)
class Inspection:
    """Findings in a dataset."""

    path: Path
    splits: list[Split]  # those that could be read, each with its findings
    findings: Findings  # of the dataset as a whole, and of splits that could not be read
    advice: Advice | None = None  # what would suit the training split better; None: nothing to look at
    note: str = ""  # how a dataset without splits was split

    @property
    def rows(self) -> list[tuple[str, Finding]]:
        """Findings with the names of their splits ("" for the whole), errors first."""
        rows = [("", finding) for finding in self.findings]
        rows += [(split.name, finding) for split in self.splits for finding in split.findings]
        return sorted(rows, key=lambda row: not row[1].error)

    @property
    def errors(self) -> int:
        """Number of findings that prevent training or evaluation."""
        return sum(finding.count for _, finding in self.rows if finding.error)

    @property
    def warnings(self) -> int:
        """Number of findings that do not prevent training."""
        return sum(finding.count for _, finding in self.rows if not finding.error)

    @property
    def verdict(self) -> str:
        """One line."""
        if self.errors:
            return f"errors to fix before training: {self.errors}; warnings: {self.warnings}"
        return f"no errors: this can be trained on; warnings: {self.warnings}"

    def table(self) -> Table:
        """Counts and examples, for the console."""
        table = Table("", "split", "found", "what", "such as", expand=False)
        table.columns[2].justify = "right"
        for place in (1, 3, 4):
            table.columns[place].overflow = "fold"
        for split, finding in self.rows:
            if finding.error:  # its path stays whole, to be copied
                level, examples = Text("error", "bold red"), finding.places[0].text
            else:
                texts = [place.text for place in finding.places[:2]]
                level, examples = Text("warning", "yellow"), "\n".join(shorten(text, LONGEST_NAME) for text in texts)
            name = shorten(split, LONGEST_NAME // 2)
            table.add_row(level, Text(name), f"{finding.count}", Text(finding.kind), Text(examples))
        return table

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values for `json.dump`; of each finding the first thousand places."""
        return {
            "data": str(self.path),
            "errors": self.errors,
            "warnings": self.warnings,
            "shared_out": self.note or None,
            "advice": self.advice and self.advice.to_json(),
            "splits": [
                {
                    "name": split.name,
                    "images": len(split.records),
                    "boxes_per_image": _boxes_per_image(split),
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
                        {
                            "text": place.text,
                            "image": place.image and str(place.image),
                            "box": place.box,
                            "beside": place.beside and str(place.beside),
                        }
                        for place in finding.places
                    ],
                }
                for split, finding in self.rows
            ],
        }

    def write_json(self, file: Path) -> None:
        """Write `to_json` to a file."""
        file.write_text(json.dumps(self.to_json(), indent=1), encoding="utf-8")


def inspect(
    path: str | Path,
    progress: bool = False,
    model: str = SMALL_DATA_MODEL,
    config: Config | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Inspection:
    """Check every file of a dataset as training and evaluation would, and find likely mistakes.

    Args:
        path: dataset folder or YAML.
        progress: whether to show a progress bar.
        model: name of the model whose input size and anchors boxes are compared with.
        config: settings of the model and of the data; None: those of the preset `model`.
        settings: settings given by the user, which the suggested command repeats.

    Raises:
        DoubleheadError: the preset does not exist.
    """
    config = config or Config(model=preset(model))
    findings = Findings()
    splits: list[Split] = []
    note = ""
    with findings.collect("datasets that cannot be read"):
        dataset = open_dataset(path, config.data.split)
        note = dataset.note
        for name in dataset.distinct:
            with findings.collect("splits that cannot be read"):
                splits.append(dataset.look(name))
        _training(path, dataset, splits, findings)
    if not findings.errors and not any(split.findings.errors for split in splits):  # else records are missing
        suspect_files(splits, findings)
    digests, hashes = _look_at_images(splits, Console(progress))
    suspect_overlap(splits, digests, findings)
    suspect_near_copies(splits, digests, hashes, findings)
    suspect_images(splits)
    for split in splits:
        suspect_boxes(split)
        suspect_classes(split)
    training = next((split for split in splits if split.name == "train"), None)
    advice = advise(training, config.model, model, settings) if training and training.records else None
    return Inspection(Path(path), splits, findings, advice, note)


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
        findings.warn("splits missing", "no val split: training does not evaluate")


def _boxes_per_image(split: Split) -> dict[int, int]:
    """How many images have so many boxes, crowds not counted."""
    return dict(sorted(Counter(int((~record.crowd).sum()) for record in split.records).items()))


@dataclass(frozen=True)
class _Look:
    """What an image file turned out to be."""

    error: DoubleheadError | None
    notes: tuple[tuple[str, str], ...] = ()  # kinds of warnings, each with what is to be said of this image
    digest: bytes = b""  # of its pixels
    looks: int | None = None  # its perceptual hash; None: too plain


def _look(record: Record) -> _Look:
    try:
        picture = read_record_picture(record)
    except DoubleheadError as error:
        return _Look(error)
    notes = []
    if picture.orientation not in (0, 1):
        notes.append(("images rotated upright by their EXIF orientation", f" (orientation {picture.orientation})"))
    if picture.mode != "RGB":
        notes.append(("images of other colour modes, converted to RGB", f" ({picture.mode})"))
    if picture.several:
        notes.append(("images of several frames or pages, the first one read", ""))
    if not np.ptp(picture.rgb.getextrema(), axis=-1).any():
        notes.append(("images of a single colour", ""))
    size = struct.pack("2q", *picture.rgb.size)
    digest = hashlib.blake2b(picture.rgb.tobytes(), digest_size=16, person=size).digest()
    return _Look(None, tuple(notes), digest, perceptual_hash(picture.rgb))


def _look_at_images(splits: list[Split], console: Console) -> tuple[dict[Path, bytes], dict[Path, int]]:
    """Decode every image once, note in the splits' findings what is to be said.

    Returns:
        Digests of the pixels, and perceptual hashes of those that have one.
    """
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
    whole = {path: look for (path, _, _), look in seen.items() if not look.error}
    hashes = {path: look.looks for path, look in whole.items() if look.looks is not None}
    return {path: look.digest for path, look in whole.items()}, hashes
