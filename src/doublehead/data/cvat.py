"""CVAT's XML for images to records."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from doublehead.common.errors import DoubleheadError
from doublehead.data.folder import Folder, split_of_file
from doublehead.data.objects import (
    MASKS,
    POLYGONS,
    ROTATED,
    Item,
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
from doublehead.data.voc import parse_xml, xml_files

NOT_OBJECTS = ("polyline", "points", "skeleton", "cuboid", "tag")


def find_cvat(folder: Folder) -> Splits | None:
    """Splits of `annotations.xml`: by the `subset` of its images, else by the file's name or folder, else one."""
    images: list[tuple[str, tuple[str, Any]]] = []
    labels: set[str] = set()
    for file in xml_files(folder, "annotations"):
        root = parse_xml(folder.path(file))
        labels.update(labels_of(root))
        for node in root.findall("image"):
            images.append((node.get("subset") or split_of_file(file), (file, node)))
    return gather(folder, images, _items, (lambda: labels) if labels else None)


def _items(folder: Folder, nodes: list[tuple[str, Any]], findings: Findings) -> Iterator[Item]:
    for file, node in nodes:
        name = node.get("name") or ""
        where = f"{folder.path(file)}: image `{name}`"
        with findings.collect("images that cannot be used"):
            if not name:
                raise DoubleheadError(f"{folder.path(file)}: an <image> has no `name`")
            item = Item([name], where, Path(file).parent.as_posix(), size_of(node.get("width"), node.get("height")))
            for shape in node:
                if shape.tag in NOT_OBJECTS:
                    ignore(shape.tag, f"image `{name}` in {file}", findings)
                    continue
                with findings.collect("boxes that cannot be read"):
                    item.things.append(thing_in(shape, where))
            yield item


def labels_of(root: Any) -> set[str]:
    """The classes of CVAT's task."""
    return {node.text or "" for node in root.findall(".//meta//label/name")}


def thing_in(shape: Any, where: str) -> Thing:
    """The object that a shape of CVAT's XML shows.

    Raises:
        DoubleheadError: it has no label, a number is missing, or the shape is not supported.
    """
    label = shape.get("label")
    if not label:
        raise DoubleheadError(f"{where} has a <{shape.tag}> without `label`")

    def value(key: str) -> float:
        return number(shape.get(key, ""), f"{where}: `{key}` of a <{shape.tag}>")

    match shape.tag:
        case "box":
            box = (value("xtl"), value("ytl"), value("xbr"), value("ybr"))
            return _turned(label, box, shape, where)
        case "polygon":
            points = [pair.split(",") for pair in (shape.get("points") or "").split(";") if pair]
            what = f"{where}: a point of a <polygon>"
            pairs = [(number(pair[0], what), number(pair[-1], what)) for pair in points]
            return Thing(label, around(pairs, f"{where}: a <polygon>"), reduced=POLYGONS)
        case "ellipse":
            x, y, rx, ry = (value(key) for key in ("cx", "cy", "rx", "ry"))
            return _turned(label, (x - rx, y - ry, x + rx, y + ry), shape, where)
        case "mask":
            x, y = value("left"), value("top")
            return Thing(label, (x, y, x + value("width"), y + value("height")), reduced=MASKS)
    raise DoubleheadError(f"{where} has a <{shape.tag}>, which is not supported; export it as a box")


def _turned(label: str, box: Box, shape: Any, where: str) -> Thing:
    angle = number(shape.get("rotation") or "0", f"{where}: `rotation`")
    if not angle:
        return Thing(label, box)
    return Thing(label, around_rotated(box, math.radians(angle)), reduced=ROTATED)
