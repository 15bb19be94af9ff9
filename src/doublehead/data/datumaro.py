"""Datumaro's JSON, as CVAT and Datumaro write it, to records."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from doublehead.common.errors import DoubleheadError, brief
from doublehead.data.folder import Folder, split_of_file
from doublehead.data.objects import (
    MASKS,
    POLYGONS,
    ROTATED,
    Item,
    NotMine,
    Splits,
    Thing,
    around,
    around_rotated,
    gather,
    ignore,
    number,
    size_of,
)
from doublehead.data.records import Box, Findings
from doublehead.data.rle import rle_box
from doublehead.data.text import dicts, head_has, is_set, read_json

Entry = dict[str, Any]

_NOT_OBJECTS = ("label", "caption", "points", "polyline", "skeleton", "cuboid_3d", "cuboid_2d", "feature_vector")


def find_datumaro(folder: Folder) -> Splits | NotMine | None:
    """Splits of JSON files with `items` and `categories`: by the files' folders or names, else one."""
    items: list[tuple[str, tuple[str, Entry, list[str]]]] = []
    classes: dict[str, None] = {}
    for file in folder.of_kind(".json", partial(head_has, marks=['"categories"', '"label"', '"labels"'])):
        content = read_json(folder.path(file))
        names = _names(content)
        classes |= dict.fromkeys(names)
        for item in dicts(content.get("items")) if names else []:
            items.append((split_of_file(file), (file, item, names)))
    return gather(folder, items, _items, lambda: classes)


def _names(content: Any) -> list[str]:
    """The names of a file's classes; none if it is something else."""
    categories = content.get("categories") if isinstance(content, dict) else None
    label = categories.get("label") if isinstance(categories, dict) else None
    labels = dicts(label.get("labels")) if isinstance(label, dict) else []
    return [str(one.get("name")) for one in labels]


def _items(folder: Folder, found: list[tuple[str, Entry, list[str]]], findings: Findings) -> Iterator[Item]:
    for file, entry, names in found:
        with findings.collect("images that cannot be used"):
            media: Entry = next((entry[key] for key in ("image", "media") if isinstance(entry.get(key), dict)), {})
            name = media.get("path") or entry.get("id")
            if not isinstance(name, str) or not name:
                raise DoubleheadError(f"{folder.path(file)}: an item has no `image` with a `path`: {brief(entry)}")
            size = media.get("size")
            height, width = size if isinstance(size, list) and len(size) == 2 else (None, None)
            item = Item([name], f"{folder.path(file)}: `{name}`", Path(file).parent.as_posix(), size_of(width, height))
            for annotation in dicts(entry.get("annotations")):
                kind = annotation.get("type")
                if kind in _NOT_OBJECTS:
                    ignore(kind, item.where, findings)
                    continue
                with findings.collect("boxes that cannot be read"):
                    item.things.append(_thing(annotation, names, item.where))
            yield item


def _thing(annotation: Entry, names: list[str], where: str) -> Thing:
    place = annotation.get("label_id")
    if type(place) is not int or not 0 <= place < len(names):
        raise DoubleheadError(f"{where}: `label_id` must be from 0 to {len(names) - 1}, not {brief(place)}")
    attributes = annotation.get("attributes")
    attributes = attributes if isinstance(attributes, dict) else {}
    box, reduced = _box(annotation, attributes.get("rotation") or 0, where)
    return Thing(names[place], box, is_set(attributes.get("is_crowd")), reduced)


def _box(annotation: Entry, rotation: Any, where: str) -> tuple[Box, str]:
    """An annotation's box, and the kind of finding if it was made from something else."""
    kind = annotation.get("type")

    def numbers(key: str, count: int | None = None) -> list[float]:
        values = annotation.get(key)
        if not isinstance(values, list) or len(values) != (count or len(values)):
            raise DoubleheadError(
                f"{where}: `{key}` of a {kind} must be {count or 'a list of'} numbers, not {brief(values)}"
            )
        return [number(value, f"{where}: `{key}` of a {kind}") for value in values]

    match kind:
        case "bbox":
            x, y, w, h = numbers("bbox", 4)
            angle = number(rotation, f"{where}: `rotation` of a {kind}")
            box = (x, y, x + w, y + h)
            return (around_rotated(box, math.radians(angle)), ROTATED) if angle else (box, "")
        case "rotated_bbox":
            x, y, w, h, angle = numbers("rotated_bbox", 5)
            return around_rotated((x - w / 2, y - h / 2, x + w / 2, y + h / 2), math.radians(angle)), ROTATED
        case "ellipse":
            x1, y1, x2, y2 = numbers("points", 4)
            return (x1, y1, x2, y2), ""
        case "polygon":
            points = numbers("points")
            return around(zip(points[::2], points[1::2], strict=False), f"{where}: a polygon"), POLYGONS
        case "mask":
            mask = annotation.get("rle")
            return rle_box(mask if isinstance(mask, dict) else {}, f"{where}: `rle` of a mask"), MASKS
    raise DoubleheadError(f"{where} has a {brief(kind)}, which is not supported; export it as a bbox")
