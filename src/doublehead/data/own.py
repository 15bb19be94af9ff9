"""Datasets that are Python objects: any sequence of (image, {"boxes", "labels"}) with class names."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from doublehead.common.errors import DoubleheadError, brief
from doublehead.data.dataset import Dataset
from doublehead.data.inputs import as_picture
from doublehead.data.records import Box, Categories, Findings, Record, Split, note_box

BACKGROUND = ("__background__", "_background_", "background")
"""Names of what torchvision's detectors count as class 0: it is no class here."""


def is_own(data: Any) -> bool:
    """Whether this is a dataset itself, and not the path of one."""
    return not isinstance(data, str | os.PathLike)


def own_dataset(data: Any, classes: Sequence[str] | None = None) -> Dataset:
    """Objects as a dataset.

    Args:
        data: one sequence, which is `train`; or a mapping of the names of splits to sequences. An item is (image,
            target). The image is anything that `Predictor.predict` takes. The target holds `boxes`, (N, 4) xyxy in
            pixels, and `labels`, (N,) names or indices of the class names.
        classes: the class names. None: the sequence's own `classes` or `class_names`. A first name `__background__` is
            no class, so that labels of torchvision's detectors, which count from 1, fit too.

    Raises:
        DoubleheadError: it is no such dataset, or has no class names.
    """
    splits = dict(data) if isinstance(data, Mapping) else {"train": data}
    if not splits:
        raise DoubleheadError("the dataset given is empty: give a sequence of (image, target), or such by split")
    names = list(classes or _class_names(next(iter(splits.values()))))
    readers = {str(name): partial(own_split, str(name), items, names) for name, items in splits.items()}
    return Dataset(Path("the dataset given"), "objects", dict(readers))


def own_split(name: str, items: Any, classes: Sequence[str] | None = None) -> Split:
    """One sequence as a split, every item looked at; see `own_dataset`."""
    names = list(classes or _class_names(items))
    if not hasattr(items, "__getitem__") or not hasattr(items, "__len__"):
        raise DoubleheadError(f"{brief(items)}: is no dataset; give a sequence of (image, target) with a length")
    index = {str(label): place for place, label in enumerate(names)}
    without = names and names[0].lower() in BACKGROUND
    known = tuple(str(label) for label in (names[1:] if without else names))
    categories, findings, records = Categories(known, tuple(range(1, len(known) + 1))), Findings(), list[Record]()
    for number in range(len(items)):
        where = f"item {number} of {name}"
        with findings.collect("items that cannot be read"):
            records.append(_record(items, number, where, index, bool(without), findings))
    return Split(name, records, categories, findings)


@dataclass(frozen=True)
class ItemImage:
    """The image of an item, encoded without loss when it is asked for."""

    items: Any
    number: int

    def read(self) -> bytes:
        """As a PNG file."""
        buffer = io.BytesIO()
        as_picture(self.items[self.number][0]).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()


def _record(
    items: Any, number: int, where: str, index: Mapping[str, int], without_first: bool, findings: Findings
) -> Record:
    try:
        image, target = items[number]
        boxes, labels = target["boxes"], target["labels"]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DoubleheadError(f'{where}: must be (image, {{"boxes": ..., "labels": ...}}) ({error!r})') from error
    try:
        picture = as_picture(image)
    except DoubleheadError as error:
        raise DoubleheadError(f"{where}: {error}") from error
    values, places = _boxes(boxes, where), [_label(label, index, where) for label in _plain(labels)]
    if len(values) != len(places):
        raise DoubleheadError(f"{where}: has {len(values)} boxes but {len(places)} labels")
    if without_first and 0 in places:
        raise DoubleheadError(f"{where}: has a box labelled as the background")
    path = Path(where)
    kept = []
    for place, values_of_box in enumerate(values):
        box: Box = tuple(map(float, values_of_box))  # type: ignore[assignment]
        if note_box(box, picture.width, picture.height, f"{where}, box {place}", path, findings):
            kept.append(place)
    xyxy = values[kept].astype(np.float32).reshape(-1, 4)
    return Record(
        image_id=number + 1,
        path=path,
        width=picture.width,
        height=picture.height,
        boxes=xyxy,
        labels=np.array([places[k] + (0 if without_first else 1) for k in kept], dtype=np.int64),
        crowd=np.zeros(len(kept), dtype=bool),
        areas=((xyxy[:, 2] - xyxy[:, 0]) * (xyxy[:, 3] - xyxy[:, 1])).astype(np.float32),
        content=ItemImage(items, number),
    )


def _boxes(boxes: Any, where: str) -> np.ndarray:
    try:
        values = np.asarray(_plain(boxes), dtype=np.float64).reshape(-1, 4) if len(boxes) else np.zeros((0, 4))
    except (TypeError, ValueError) as error:
        raise DoubleheadError(f"{where}: boxes must be (N, 4) numbers, x1, y1, x2, y2 in pixels") from error
    if not np.isfinite(values).all() or (len(values) and np.abs(values).max() > 1e9):
        raise DoubleheadError(f"{where}: has a box whose coordinates are not finite, or beyond a billion")
    return values


def _label(label: Any, index: Mapping[str, int], where: str) -> int:
    """The index of a class among the names."""
    if isinstance(label, str):
        if label not in index:
            raise DoubleheadError(
                f"{where}: has the label `{label}`, which is not among the classes {brief(list(index))}"
            )
        return index[label]
    if not float(label).is_integer() or not 0 <= int(label) < len(index):
        raise DoubleheadError(
            f"{where}: has the label {label}, but labels are names or 0 to {len(index) - 1}, indices of "
            f"{brief(list(index))}; if yours count from 1, give classes=['__background__', ...]"
        )
    return int(label)


def _plain(values: Any) -> Any:
    """Tensors and arrays as lists."""
    values = values.detach().cpu() if hasattr(values, "detach") else values
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _class_names(items: Any) -> Sequence[str]:
    """The names that a dataset has itself.

    Raises:
        DoubleheadError: it has none.
    """
    for attribute in ("classes", "class_names"):
        names = getattr(items, attribute, None)
        if isinstance(names, Sequence) and not isinstance(names, str) and len(names):
            return [str(name) for name in names]
    raise DoubleheadError(
        "the dataset given has no class names: give it an attribute `classes`, or say classes=['cat', 'dog']"
    )
