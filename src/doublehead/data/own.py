"""Datasets that are Python objects: any sequence of (image, {"boxes", "labels"}) with class names."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision.transforms.v2.functional import convert_bounding_box_format
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat

from doublehead.common.errors import DoubleheadError, brief
from doublehead.data.dataset import Dataset
from doublehead.data.folder import canonical
from doublehead.data.inputs import as_picture
from doublehead.data.records import COORDINATE_LIMIT, Box, Categories, Findings, Record, Split, note_box

BACKGROUND = ("__background__", "_background_", "background")
"""Names that torchvision's detectors give to class 0, which is not a class here."""


def is_own(data: Any) -> bool:
    """Whether `data` is a Python dataset rather than a path."""
    return not isinstance(data, str | os.PathLike)


def own_dataset(data: Any, classes: Sequence[str] | None = None) -> Dataset:
    """Wrap Python objects as a dataset.

    Args:
        data: a sequence, used as `train`; or a mapping of split names to sequences. Items are (image, target), and must
            be the same on every access. The image is anything that `Predictor.predict` accepts. The target has `boxes`,
            (N, 4) xyxy in pixels or torchvision's BoundingBoxes in any format, and `labels`, (N,) class names or
            indices of them. An optional `weight` sets how often the image is seen (`data.image_weights`).
        classes: class names. None: attribute `classes` or `class_names` of each sequence, or else of the first split. A
            first name `__background__` is not a class, so that labels may start at 1.

    Raises:
        DoubleheadError: `data` is not such a dataset, or has no class names.
    """
    splits = dict(data) if isinstance(data, Mapping) else {"train": data}
    if not splits:
        raise DoubleheadError("the dataset is empty: give a sequence of (image, target), or one for each split")
    named = {canonical(str(name)): items for name, items in splits.items()}
    if len(named) < len(splits):
        raise DoubleheadError(f"the dataset has a split twice ({', '.join(map(str, splits))}): give each once")
    first = next(iter(named.values()))
    readers = {
        name: partial(own_split, name, items, (_own_names(items) or _own_names(first)) if classes is None else classes)
        for name, items in named.items()
    }
    return Dataset(Path("the dataset given"), "objects", dict(readers))


def own_split(name: str, items: Any, classes: Sequence[str] | None = None) -> Split:
    """Read all items of a sequence as a split; see `own_dataset`."""
    if not hasattr(items, "__getitem__") or not hasattr(items, "__len__"):
        raise DoubleheadError(f"{brief(items)}: is not a dataset; give a sequence of (image, target) with a length")
    names = _checked_names(_own_names(items) if classes is None else classes)
    offset = 0 if names[0].lower() in BACKGROUND else 1  # from the index of a name to its label
    known = names[1 - offset :]
    categories, findings, records = Categories(known, tuple(range(1, len(known) + 1))), Findings(), list[Record]()
    for number in range(len(items)):
        with findings.collect("items that cannot be read"):
            records.append(_record(items, number, f"item {number} of {name}", names, offset, findings))
    return Split(name, records, categories, findings)


@dataclass(frozen=True)
class _Target:
    """What is known of an item's image: its size, boxes (N, 4) float64 xyxy, and labels as given."""

    size: tuple[int, int]
    boxes: np.ndarray
    labels: list[Any]
    weight: Any = 1.0

    def same(self, other: _Target) -> bool:
        return self.size == other.size and np.array_equal(self.boxes, other.boxes) and self.labels == other.labels


@dataclass(frozen=True)
class ItemImage:
    """The image of an item, read from the dataset again and encoded without loss when it is asked for."""

    items: Any
    number: int
    where: str
    target: _Target

    def read(self) -> bytes:
        """Encode the image as PNG.

        Raises:
            DoubleheadError: the item has changed, so its boxes would not fit the image.
        """
        picture, target = _read(self.items, self.number, self.where)
        if not target.same(self.target):
            raise DoubleheadError(
                f"{self.where}: its size, boxes or labels differ each time it is read; remove random transforms from "
                "the dataset, and set data.augment instead"
            )
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()


def _record(items: Any, number: int, where: str, names: Sequence[str], offset: int, findings: Findings) -> Record:
    picture, target = _read(items, number, where)
    labels = [_index(label, names, where) + offset for label in target.labels]
    if 0 in labels:
        raise DoubleheadError(f"{where}: has a box labelled as the background; remove it")
    path, kept = Path(where), []
    for place, values in enumerate(target.boxes.tolist()):
        box: Box = tuple(values)
        if note_box(box, *picture.size, f"{where}, box {place}", path, findings):
            kept.append(place)
    boxes, chosen = [tuple(box) for box in target.boxes[kept].tolist()], [labels[place] for place in kept]
    content = ItemImage(items, number, where, target)
    return Record.of(number + 1, path, picture.size, boxes, chosen, content=content, weight=target.weight)


def _read(items: Any, number: int, where: str) -> tuple[Image.Image, _Target]:
    """Take an item from a dataset.

    Raises:
        DoubleheadError: the dataset fails, or the item is not (image, {"boxes", "labels"}).
    """
    try:
        item = items[number]
    except Exception as error:  # whatever the user's code raises
        raise DoubleheadError(f"{where}: the dataset raised {error!r}; correct or remove the item") from error
    try:
        image, target = item
        boxes, labels = target["boxes"], target["labels"]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DoubleheadError(f'{where}: must be (image, {{"boxes": ..., "labels": ...}}) ({error!r})') from error
    try:
        picture = as_picture(image)
    except DoubleheadError as error:
        raise DoubleheadError(f"{where}: {error}") from error
    weight = _plain(target["weight"]) if "weight" in target else 1.0
    found = _Target(picture.size, _boxes(boxes, where), _labels(labels, where), weight)
    if len(found.boxes) != len(found.labels):
        raise DoubleheadError(f"{where}: has {len(found.boxes)} boxes but {len(found.labels)} labels")
    return picture, found


def _boxes(boxes: Any, where: str) -> np.ndarray:
    """Convert to (N, 4) float64 xyxy."""
    try:
        if isinstance(boxes, BoundingBoxes):
            boxes = convert_bounding_box_format(boxes, new_format=BoundingBoxFormat.XYXY)
        values = np.asarray(_plain(boxes), dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DoubleheadError(f"{where}: boxes must be (N, 4) numbers, x1, y1, x2, y2 in pixels") from error
    if not values.size:
        return np.zeros((0, 4))
    if values.ndim != 2 or values.shape[1] != 4:
        raise DoubleheadError(f"{where}: boxes must be (N, 4), x1, y1, x2, y2 in pixels, not {values.shape}")
    if not np.isfinite(values).all() or np.abs(values).max() > COORDINATE_LIMIT:
        raise DoubleheadError(f"{where}: has a box whose coordinates are not finite, or beyond a billion")
    return values


def _labels(labels: Any, where: str) -> list[Any]:
    plain = _plain(labels)
    if not isinstance(plain, list):
        raise DoubleheadError(f"{where}: labels must be a sequence with one label for each box, not {brief(labels)}")
    return plain


def _index(label: Any, names: Sequence[str], where: str) -> int:
    """The index of a label among the class names."""
    if isinstance(label, str):
        if label in names:
            return names.index(label)
        raise DoubleheadError(f"{where}: has the label `{label}`, which is not among the classes {brief(list(names))}")
    if isinstance(label, int | float) and label in range(len(names)):
        return int(label)
    raise DoubleheadError(
        f"{where}: has the label {brief(label)}, but labels are names or 0 to {len(names) - 1}, indices of "
        f"{brief(list(names))}; if yours count from 1, give classes=['__background__', ...]"
    )


def _plain(values: Any) -> Any:
    """Tensors, arrays and sequences as lists; other values as they are."""
    values = values.detach().cpu() if hasattr(values, "detach") else values
    if hasattr(values, "tolist"):
        return values.tolist()
    return list(map(_plain, values)) if isinstance(values, list | tuple) else values


def _own_names(items: Any) -> Sequence[str]:
    """The class names that a dataset has itself; empty: none."""
    for attribute in ("classes", "class_names"):
        names = getattr(items, attribute, None)
        if isinstance(names, Sequence) and not isinstance(names, str) and len(names):
            return names
    return ()


def _checked_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Class names as text.

    Raises:
        DoubleheadError: there are none, or one occurs twice.
    """
    if isinstance(classes, str | Mapping):
        raise DoubleheadError(f"classes must be a sequence of names, such as ['cat', 'dog'], not {brief(classes)}")
    names = tuple(str(name) for name in classes)
    if not [name for name in names if name.lower() not in BACKGROUND]:
        raise DoubleheadError(
            "the dataset has no class names: give it an attribute `classes`, or pass classes=['cat', 'dog']"
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DoubleheadError(f"the classes have the name `{twice[0]}` twice: give each class a name of its own")
    return names
