"""SuperAnnotate's JSON, one file per image, to records."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from doublehead.common.errors import DoubleheadError, brief
from doublehead.data.folder import Folder, split_of_folder
from doublehead.data.objects import (
    POLYGONS,
    ROTATED,
    Item,
    Splits,
    Thing,
    around,
    around_rotated,
    gather,
    ignore,
    image_in,
    in_turn,
    label_in,
    number,
    numbers_in,
    size_of,
)
from doublehead.data.records import Findings
from doublehead.data.text import dicts, head_has, read_json

Entry = dict[str, Any]

_NOT_OBJECTS = ("point", "polyline", "template", "cuboid", "tag", "comment")
_CORNERS = ("x1", "y1", "x2", "y2", "x3", "y3", "x4", "y4")


def find_superannotate(folder: Folder) -> Splits | None:
    """Splits of JSON files with `metadata` and `instances`: by the folders they lie in, else one."""
    files = folder.of_kind(".json", partial(head_has, marks=['"metadata"', '"instances"']))
    return gather(folder, ((split_of_folder(file) or "all", file) for file in files), _items)


def _items(folder: Folder, files: list[str], findings: Findings) -> Iterator[Item]:
    for file in files:
        path = folder.path(file)
        with findings.collect("images that cannot be used"):
            content = read_json(path)
            about: Any = content.get("metadata") if isinstance(content, dict) else None
            name = image_in(about, "name", f"{path}: `metadata`")
            size = size_of(about.get("width"), about.get("height"))
            item = Item([name], str(path), Path(file).parent.as_posix(), size)
            for entry in dicts(content.get("instances")):
                kind = entry.get("type")
                if kind in _NOT_OBJECTS:
                    ignore(kind, path.name, findings)
                    continue
                with findings.collect("boxes that cannot be read"):
                    item.things.append(_thing(entry, kind, str(path)))
            yield item


def _thing(entry: Entry, kind: Any, where: str) -> Thing:
    label, points = label_in(entry, "className", where), entry.get("points")
    what = f"{where}: {brief(kind)} of `{label}`"
    match kind:
        case "bbox":
            x1, y1, x2, y2 = numbers_in(points, _CORNERS[:4], what)
            return Thing(label, (x1, y1, x2, y2))
        case "rbbox":
            edges = numbers_in(points, _CORNERS, what)
            return Thing(label, around(in_turn(edges, what), what), reduced=ROTATED)
        case "polygon":
            return Thing(label, around(in_turn(points, what), what), reduced=POLYGONS)
        case "ellipse":
            x, y, rx, ry = numbers_in(entry, ("cx", "cy", "rx", "ry"), what)
            angle = math.radians(number(entry.get("angle", 0), what))
            box = (x - rx, y - ry, x + rx, y + ry)
            return Thing(label, around_rotated(box, angle) if angle else box, reduced=ROTATED if angle else "")
    raise DoubleheadError(f"{what} is not supported; export it as a box")
