"""VIA's (VGG Image Annotator's) JSON and CSV, as projects or annotations, to records."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from doublehead.common.errors import DoubleheadError, brief
from doublehead.data.folder import Folder, split_of_file
from doublehead.data.objects import (
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
    image_in,
    number,
)
from doublehead.data.records import Box, Findings
from doublehead.data.tables import COLUMNS
from doublehead.data.text import dicts, head_has, read_json, read_text

Entry = dict[str, Any]

_CLASS = (*COLUMNS["class"], "type", "object")  # what the attribute with the class may be called, if there are several
_ONLY = "object"  # the class where regions have no attributes
_NOT_OBJECTS = ("point", "polyline")


def find_via(folder: Folder) -> Splits | NotMine | None:
    """Splits of VIA's files: by their folders or names, else one.

    Raises:
        DoubleheadError: regions have several attributes, and none of them is called as a class would be.
    """
    images: list[tuple[str, Entry]] = []
    for file in folder.of_kind(".json", partial(head_has, marks=['"shape_attributes"', '"filename"'])):
        content = read_json(folder.path(file))
        content = content.get("_via_img_metadata", content) if isinstance(content, dict) else {}
        found = dicts(list(content.values())) if isinstance(content, dict) else []
        images += [(file, image) for image in found if "regions" in image]
    for file in folder.of_kind(".csv", partial(head_has, marks=["region_shape_attributes", "filename"])):
        images += [(file, image) for image in _rows(folder.path(file))]
    key = _class_key(folder, [image for _, image in images])
    return gather(folder, ((split_of_file(file), (file, image)) for file, image in images), partial(_items, key=key))


def _rows(path: Path) -> list[Entry]:
    """The images of a CSV, which has a row per region, as JSON has them."""
    images: dict[str, Entry] = {}
    rows = csv.DictReader(io.StringIO(read_text(path, "CSV"), newline=""))
    try:
        for row in rows:
            name = row.get("filename") or ""
            image = images.setdefault(name, {"filename": name, "regions": []})
            shape, attributes = (
                json.loads(row.get(f"region_{key}") or "{}") for key in ("shape_attributes", "attributes")
            )
            if shape:
                image["regions"].append({"shape_attributes": shape, "region_attributes": attributes})
    except (ValueError, RecursionError, csv.Error) as error:
        raise DoubleheadError(
            f"{path}: line {rows.line_num} cannot be read as CSV with JSON in its cells ({error})",
            "annotation files unreadable",
        ) from error
    return list(images.values())


def _regions(image: Entry) -> list[Entry]:
    """An image's regions: a list, or numbered in VIA 1."""
    regions = image["regions"]
    return dicts(list(regions.values()) if isinstance(regions, dict) else regions)


def _class_key(folder: Folder, images: list[Entry]) -> str | None:
    """The attribute of regions that has the class; None: they have no attributes."""
    attributes = [region.get("region_attributes") for image in images for region in _regions(image)]
    keys = list(dict.fromkeys(key for one in attributes if isinstance(one, dict) for key in one))
    called = [key for name in _CLASS for key in keys if key.strip().lower() == name]
    if not called and len(keys) > 1:
        raise DoubleheadError(
            f"{folder.root}: VIA's regions have the attributes {', '.join(keys)}; rename the one that has the class to "
            "`class`"
        )
    return next(iter(called or keys), None)


def _items(folder: Folder, images: list[tuple[str, Entry]], findings: Findings, key: str | None) -> Iterator[Item]:
    for file, image in images:
        path = folder.path(file)
        with findings.collect("images that cannot be used"):
            name = image_in(image, "filename", f"{path}: an image")
            item = Item([name], f"{path}: `{name}`", Path(file).parent.as_posix())
            for region in _regions(image):
                with findings.collect("boxes that cannot be read"):
                    item.things += _things(region, key, item.where, findings)
            yield item


def _things(region: Entry, key: str | None, where: str, findings: Findings) -> list[Thing]:
    """The objects of a region: several, if several boxes of its attribute are ticked."""
    shape = region.get("shape_attributes")
    if not isinstance(shape, dict):
        raise DoubleheadError(f"{where} has a region without `shape_attributes`: {brief(region)}")
    if shape.get("name") in _NOT_OBJECTS:
        ignore(shape["name"], where, findings)
        return []
    attributes = region.get("region_attributes")
    value = _ONLY if key is None else attributes.get(key) if isinstance(attributes, dict) else None
    chosen = [name for name, ticked in value.items() if ticked] if isinstance(value, dict) else [value]
    labels = [label for label in chosen if isinstance(label, str) and label.strip()]
    if not labels:
        raise DoubleheadError(f"{where} has a region without `{key}`: {brief(attributes)}")
    box, reduced = _box(shape, where)
    return [Thing(label, box, reduced=reduced) for label in labels]


def _box(shape: Entry, where: str) -> tuple[Box, str]:
    """A shape's box, and the kind of finding if it was made from something else."""
    kind = shape.get("name")

    def value(key: str) -> float:
        return number(shape.get(key), f"{where}: `{key}` of a {kind}")

    match kind:
        case "rect":
            x, y = value("x"), value("y")
            return (x, y, x + value("width"), y + value("height")), ""
        case "circle" | "ellipse":
            x, y = value("cx"), value("cy")
            w, h = (value("r"), value("r")) if kind == "circle" else (value("rx"), value("ry"))
            angle = number(shape.get("theta") or 0, f"{where}: `theta` of an ellipse")  # radians
            return around_rotated((x - w, y - h, x + w, y + h), angle), ROTATED if angle else ""
        case "polygon":
            xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
            if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
                raise DoubleheadError(f"{where} has a polygon whose `all_points_x` and `all_points_y` do not match")
            what = f"{where}: a point of a polygon"
            points = [(number(x, what), number(y, what)) for x, y in zip(xs, ys, strict=True)]
            return around(points, f"{where}: a polygon"), POLYGONS
    raise DoubleheadError(f"{where} has a {brief(kind)}, which is not supported; draw it as a rect")
