"""`doublehead suggest`: a model and a dataset in; labels to look at again and images to label next out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from doublehead.common.categories import Categories
from doublehead.common.console import Console
from doublehead.common.errors import DoubleheadError
from doublehead.data.dataset import open_dataset
from doublehead.data.folder import Folder
from doublehead.data.images import IMAGE_SUFFIXES, image_size
from doublehead.data.loader import default_workers
from doublehead.data.records import Findings, Record, Split
from doublehead.data.suspects import unnamed_files
from doublehead.evaluation.suggest.asking import look_at
from doublehead.evaluation.suggest.images import Teaching, by_teaching
from doublehead.evaluation.suggest.labels import KINDS, Suspect, suspects
from doublehead.inference.predictor import load

LIKELY = 0.5
"""Doubt from which a label is counted as likely wrong."""

UNLABELLED = "unlabelled"


@dataclass(frozen=True)
class Suggestions:
    """What to look at, most urgent first."""

    weights: str
    data: Path
    categories: Categories
    splits: list[Split]
    suspects: list[Suspect]  # of all splits
    images: list[Teaching]  # without labels

    @property
    def labels(self) -> int:
        """Labels that were looked at, crowds left out."""
        return sum(map(_labels, self.splits))

    @property
    def likely(self) -> list[Suspect]:
        """Suspects that are more likely wrong than right."""
        return [suspect for suspect in self.suspects if suspect.doubt >= LIKELY]

    def rows(self) -> list[list[str]]:
        """Of each split its name, images, labels, and how many are likely wrong of each kind."""
        result = []
        for split in self.splits:
            kinds = Counter(suspect.kind for suspect in self.likely if suspect.split == split.name)
            counts = (len(split.records), _labels(split), *(kinds[kind] for kind in KINDS))
            result.append([split.name, *(f"{count:,}" for count in counts)])
        return result

    def table(self) -> Table:
        """The same for the console."""
        table = Table("split", "images", "labels", *KINDS)
        for column in table.columns[1:]:
            column.justify = "right"
        for row in self.rows():
            table.add_row(*row)
        return table


def _labels(split: Split) -> int:
    return sum(int((~record.crowd).sum()) for record in split.records)


def suggest(
    weights: str | Path,
    data: str | Path,
    splits: Sequence[str] = (),
    batch_size: int = 4,
    workers: int | None = None,
    device: str = "auto",
    precision: str = "fp32",
    settings: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Suggestions:
    """Find labels that are likely wrong, and images that would teach the model most.

    Args:
        weights: a checkpoint or published name.
        data: the dataset's folder or YAML: its labels are judged, and image files that no split names are ranked. Or a
            folder of images alone, which are ranked.
        splits: those to look at; none: all.
        batch_size: images that go through the model at once.
        workers: processes that decode images; None: by the cores.
        device: where to compute.
        precision: as of `load`.
        settings: inference options by their names; see `config.InferenceOptions`.
        progress: whether to show a bar.

    Raises:
        DoubleheadError: weights or data have a mistake, the data has classes unknown to the weights, or the model
            cannot be looked into: an exported file, tiles or views.
    """
    predictor = load(weights, device, precision, settings)
    _ = predictor.model  # refuses what cannot be looked into
    labelled, files = _read(Path(data).expanduser(), splits)
    categories = labelled[0].categories if labelled else predictor.categories
    records = [Record.of(number, path, image_size(path), [], []) for number, path in enumerate(files, 1)]
    unlabelled = Split(UNLABELLED, records, categories, Findings())
    workers = default_workers() if workers is None else workers
    found: list[Suspect] = []
    with Console(progress).progress("looking", len(records) + sum(len(split.records) for split in labelled)) as advance:
        for split in labelled:
            found += suspects(list(look_at(predictor, split, batch_size, workers, advance)), split.name)
        images = by_teaching(list(look_at(predictor, unlabelled, batch_size, workers, advance)))
    found.sort(key=lambda suspect: -suspect.doubt)
    return Suggestions(str(weights), Path(data), categories, labelled, found, images)


def _read(data: Path, splits: Sequence[str]) -> tuple[list[Split], list[Path]]:
    """Labelled splits, and images without labels."""
    if data.is_dir():
        folder = Folder(data)
        if folder.files and all(file.lower().endswith(tuple(IMAGE_SUFFIXES)) for file in folder.files):
            if splits:
                raise DoubleheadError(f"{data}: holds images without annotations, so there is no split `{splits[0]}`")
            return [], [folder.path(file) for file in folder.files]
    dataset = open_dataset(data)
    if splits:
        return [dataset.read(name) for name in splits], []
    read = [dataset.read(name) for name in (["all"] if dataset.whole else dataset.distinct)]
    return read, unnamed_files(read)
