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
from doublehead.data.voc import parse_xml, xml_files

_NOT_OBJECTS = ("polyline", "points", "skeleton", "cuboid", "tag")


def find_cvat(folder: Folder) -> Splits | NotMine | None:
    """Splits of `annotations.xml`: by the `subset` of its images, else by the file's name or folder, else one."""
    images: list[tuple[str, tuple[str, Any]]] = []
    labels: set[str] = set()
    for file in xml_files(folder, "annotations"):
        root = parse_xml(folder.path(file))
        if root.find("track") is not None:
            return NotMine(
                f"CVAT's XML for video in {file}", "an <image> per frame: export it as `CVAT for images 1.1`"
            )
        labels.update((node.text or "") for node in root.findall(".//meta//label/name"))
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
                if shape.tag in _NOT_OBJECTS:
                    ignore(shape.tag, f"image `{name}` in {file}", findings)
                    continue
                with findings.collect("boxes that cannot be read"):
                    item.things.append(_thing(shape, where))
            yield item


def _thing(shape: Any, where: str) -> Thing:
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
