"""Label errors planted in a dataset, so that it is known what `doublehead suggest` should find."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.table import Table

from doublehead.data.dataset import open_dataset
from doublehead.data.records import Record, Split
from doublehead.data.to_coco import write_splits
from doublehead.evaluation.analysis.proposals import iou
from doublehead.evaluation.suggest.labels import Suspect
from doublehead.evaluation.suggest.run import Suggestions, suggest

KINDS = ("class", "place", "missing", "spurious")
"""Another class; a box that overlaps its object by an IoU of SHIFTED; a box removed; a box where nothing is."""

SHIFTED = (0.3, 0.6)
FREE = 0.1  # maximum IoU of a spurious box with any annotated one
DRAWN = 2000  # boxes, of which the first that fits is taken
LIST = "planted.json"


@dataclass(frozen=True)
class Planted:
    """One label error."""

    split: str
    image_id: int
    kind: str
    box: list[float]  # xyxy, as it is annotated now; of a missing one, as it was
    label: str  # the class, likewise


def plant(data: str | Path, output: Path, share: float = 0.05, seed: int = 0) -> list[Planted]:
    """Write a dataset with label errors in a share of each split's boxes, as many of each of KINDS.

    The folder holds COCO's layout with links to the images, and `planted.json` with what was planted.

    Args:
        data: the dataset's folder or YAML, of two classes at least; never written to.
        output: an empty or new folder.
        share: of the boxes of each split, crowds not counted.
        seed: another seed, other errors.

    Raises:
        DoubleheadError: the dataset has a fault, or the folder is not empty.
    """
    dataset = open_dataset(data)
    splits, planted = [], list[Planted]()
    for place, name in enumerate(dataset.distinct):
        split, errors = _plant(dataset.read(name), share, np.random.default_rng((seed, place)))
        splits.append(split)
        planted += errors
    write_splits(splits, output, link=True, progress=True)
    values = {"data": Path(data).name, "share": share, "seed": seed, "planted": [vars(error) for error in planted]}
    (output / LIST).write_text(json.dumps(values, indent=1), encoding="utf-8")
    return planted


def read_planted(data: str | Path) -> list[Planted]:
    """What `plant` has planted in the dataset that it wrote."""
    values = json.loads((Path(data) / LIST).read_text(encoding="utf-8"))
    return [Planted(**error) for error in values["planted"]]


def counts(planted: list[Planted]) -> str:
    """One line: how many of each kind."""
    by_kind = Counter(error.kind for error in planted)
    return ", ".join(f"{by_kind[kind]} {kind}" for kind in KINDS)


@dataclass(frozen=True)
class Recovered:
    """How many planted errors stand at the top of one model's list, as long as there are errors."""

    weights: str
    part: str  # all; train, whose labels the model learned; held out
    labels: int
    planted: int
    precision: float
    chance: float  # the share of the labels that are wrong: what a random order would have
    found: dict[str, int]  # by kind
    of: dict[str, int]


def recover(
    weights: Sequence[str], data: str | Path, batch_size: int = 4, device: str = "auto", splits: Sequence[str] = ()
) -> list[Recovered]:
    """Ask models for suspects in a dataset with planted errors; train them on it first.

    A suspect label is right where that annotation is a planted error, of whatever kind; a missing one where it overlaps
    a removed box by an IoU of 0.5. Each error counts once.

    Args:
        weights: checkpoints of the models.
        data: what `plant` wrote.
        batch_size: images that go through a model at once.
        device: where to compute.
        splits: those to look at; none: all.
    """
    planted = read_planted(data)
    result = []
    for path in weights:
        found = suggest(path, data, splits, batch_size=batch_size, device=device, progress=True)
        seen = {split.name for split in found.splits}
        parts = {"all": seen, "train": seen & {"train"}, "held out": seen - {"train"}}
        result += [_recovered(path, part, names, found, planted) for part, names in parts.items() if names]
    return result


def recovered_table(rows: Sequence[Recovered]) -> Table:
    """A row for each model and part."""
    table = Table("weights", "part", "labels", "planted", "precision", "chance", *KINDS)
    for row in rows:
        kinds = (f"{row.found[kind]} of {row.of[kind]}" for kind in KINDS)
        figures = (f"{row.labels}", f"{row.planted}", f"{row.precision:.3f}", f"{row.chance:.3f}")
        table.add_row(row.weights, row.part, *figures, *kinds)
    return table


def hits(suspects: Sequence[Suspect], planted: Sequence[Planted], names: Sequence[str]) -> list[Planted | None]:
    """The error that each suspect is right about; an error goes to the first."""
    left: dict[tuple[str, int], list[Planted]] = {}
    for error in planted:
        left.setdefault((error.split, error.image_id), []).append(error)
    result: list[Planted | None] = []
    for suspect in suspects:
        here = left.get((suspect.split, suspect.record.image_id), [])
        hit = next((error for error in here if _same(suspect, error, names)), None)
        if hit:
            here.remove(hit)
        result.append(hit)
    return result


def _same(suspect: Suspect, error: Planted, names: Sequence[str]) -> bool:
    if suspect.box is None:
        return error.kind == "missing" and iou(suspect.better_box[None], np.array([error.box]))[0, 0] >= 0.5
    same = error.kind != "missing" and names[suspect.label - 1] == error.label
    return same and np.abs(suspect.box - error.box).max() < 0.1


def _recovered(weights: str, part: str, splits: set[str], found: Suggestions, planted: Sequence[Planted]) -> Recovered:
    errors = [error for error in planted if error.split in splits]
    top = [suspect for suspect in found.suspects if suspect.split in splits][: len(errors)]
    right = Counter(hit.kind for hit in hits(top, errors, found.categories.names) if hit)
    of = Counter(error.kind for error in errors)
    labels = sum(len(record.boxes) for split in found.splits if split.name in splits for record in split.records)
    wrong = len(errors) - of["missing"]
    return Recovered(weights, part, labels, len(errors), right.total() / len(errors), wrong / labels, right, of)


def _plant(split: Split, share: float, random: np.random.Generator) -> tuple[Split, list[Planted]]:
    boxes = [(place, row) for place, record in enumerate(split.records) for row in np.flatnonzero(~record.crowd)]
    used = np.unique(np.concatenate([record.labels for record in split.records]))
    records, planted, removed = list(split.records), list[Planted](), dict[int, list[int]]()
    for number, index in enumerate(random.permutation(len(boxes))[: round(share * len(boxes))]):
        (place, row), kind = boxes[index], KINDS[number % len(KINDS)]
        record = records[place]
        box, label = record.boxes[row], int(record.labels[row])
        if kind == "class":
            label = int(random.choice(used[used != label]))
            records[place] = _with(record, row, box, label)
        elif kind == "place":
            box = _shifted(box, record, random)
            records[place] = _with(record, row, box, label)
        elif kind == "spurious":
            box = _elsewhere(box, record, random)
            records[place] = _with(record, len(record.boxes), box, label)
        else:
            removed.setdefault(place, []).append(row)
        planted.append(Planted(split.name, record.image_id, kind, box.tolist(), split.categories.names[label - 1]))
    for place, rows in removed.items():  # at last: until then rows keep their numbers
        records[place] = _without(records[place], rows)
    return replace(split, records=records), planted


def _with(record: Record, row: int, box: np.ndarray, label: int) -> Record:
    """The record with one row changed, or with one more."""
    columns = [column.copy() for column in _columns(record)]
    values = (box, label, False, (box[2:] - box[:2]).prod())
    if row == len(record.boxes):
        columns = [np.concatenate([column, column[:1]]) for column in columns]
    for column, value in zip(columns, values, strict=True):
        column[row] = value
    return _of(record, columns)


def _without(record: Record, rows: list[int]) -> Record:
    return _of(record, [np.delete(column, rows, 0) for column in _columns(record)])


def _columns(record: Record) -> list[np.ndarray]:
    return [record.boxes, record.labels, record.crowd, record.areas]


def _of(record: Record, columns: list[np.ndarray]) -> Record:
    return replace(record, **dict(zip(("boxes", "labels", "crowd", "areas"), columns, strict=True)))


def _shifted(box: np.ndarray, record: Record, random: np.random.Generator) -> np.ndarray:
    """The box moved and resized."""
    sides = box[2:] - box[:2]
    centres = (box[:2] + box[2:]) / 2 + random.uniform(-0.5, 0.5, (DRAWN, 2)) * sides
    halves = sides / 2 * np.exp(random.uniform(-0.4, 0.4, (DRAWN, 2)))
    moved = _inside(np.concatenate([centres - halves, centres + halves], 1), record)
    overlaps = iou(moved, box[None])[:, 0]
    return moved[((overlaps >= SHIFTED[0]) & (overlaps <= SHIFTED[1])).argmax()]


def _elsewhere(box: np.ndarray, record: Record, random: np.random.Generator) -> np.ndarray:
    """The box where no other is; in a crowded image, where it overlaps others least."""
    sides = box[2:] - box[:2]
    corners = random.uniform(0, 1, (DRAWN, 2)) * np.maximum([record.width, record.height] - sides, 0)
    places = _inside(np.concatenate([corners, corners + sides], 1), record)
    overlaps = iou(places, record.boxes).max(1)
    return places[overlaps.clip(FREE).argmin()]


def _inside(boxes: np.ndarray, record: Record) -> np.ndarray:
    return boxes.clip(0, np.tile([record.width, record.height], 2)).round(1).astype(np.float32)
