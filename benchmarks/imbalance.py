"""A dataset made imbalanced, so that it can be measured what helps rare classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.table import Table

from doublehead.common.errors import DoubleheadError
from doublehead.data.dataset import open_dataset
from doublehead.data.records import Split
from doublehead.data.to_coco import write_splits

TRAIN = "train"


def imbalance(data: str | Path, output: Path, rare: Sequence[str], keep: float = 0.1, seed: int = 0) -> Table:
    """Write a dataset whose training images seldom hold some classes; the other splits stay as they are.

    Of the training images that hold one of these classes, a share is kept, drawn at random, and the rest left out with
    all that they show. The folder holds COCO's layout with links to the images.

    Args:
        data: the dataset's folder or YAML; never written to.
        output: an empty or new folder.
        rare: names of the classes.
        keep: share of their images that stays; one image at least.
        seed: another seed, other images.

    Returns:
        Images and boxes of each class in the training split, before and after.

    Raises:
        DoubleheadError: the dataset has a fault or not these classes, or the folder is not empty.
    """
    dataset = open_dataset(data)
    splits = {name: dataset.read(name) for name in dataset.distinct}
    whole = splits[TRAIN]
    if unknown := [name for name in rare if name not in whole.categories.names]:
        raise DoubleheadError(
            f"{data}: has no class `{unknown[0]}`; its classes are {', '.join(whole.categories.names)}"
        )
    labels = [whole.categories.names.index(name) + 1 for name in rare]
    holding = [place for place, record in enumerate(whole.records) if np.isin(record.labels, labels).any()]
    if not holding:
        raise DoubleheadError(f"{data}: no training image holds {' or '.join(rare)}")
    dropped = np.random.default_rng(seed).permutation(holding)[max(1, round(keep * len(holding))) :]
    left = set(range(len(whole.records))).difference(dropped.tolist())
    splits[TRAIN] = replace(whole, records=[whole.records[place] for place in sorted(left)])
    write_splits(list(splits.values()), output, link=True, progress=True)
    return _table(whole, splits[TRAIN], rare)


def _table(before: Split, after: Split, rare: Sequence[str]) -> Table:
    table = Table("class", "", "images", "boxes", caption="in the training split, before and after")
    for label, name in enumerate(before.categories.names, 1):
        held = [[(record.labels == label).sum() for record in split.records] for split in (before, after)]
        images, boxes = ([f"{function(counts)}" for counts in held] for function in (np.count_nonzero, sum))
        table.add_row(name, "rare" if name in rare else "", " -> ".join(images), " -> ".join(boxes))
    table.add_row("all", "", f"{len(before.records)} -> {len(after.records)}", "")
    return table
