"""Supervisely's JSON, one file per image, to records."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from doublehead.common.errors import DoubleheadError, brief
from doublehead.data.folder import Folder, split_of_folder
from doublehead.data.objects import (
    MASKS,
    POLYGONS,
    Item,
    NotMine,
    Splits,
    Thing,
    around,
    gather,
    ignore,
    label_in,
    number,
    pairs,
    size_of,
)
from doublehead.data.records import Box, Findings
from doublehead.data.text import dicts, head_has, read_json

Entry = dict[str, Any]

_NOT_OBJECTS = ("point", "line", "graph", "cuboid")


def find_supervisely(folder: Folder) -> Splits | NotMine | None:
    """Splits of JSON files with `objects` and `size`: by the folders they lie in, else one."""
    files = folder.of_kind(".json", partial(head_has, marks=['"objects"', '"size"']))
    return gather(folder, ((split_of_folder(file) or "all", file) for file in files), _items)


def _items(folder: Folder, files: list[str], findings: Findings) -> Iterator[Item]:
    for file in files:
        path = folder.path(file)
        with findings.collect("images that cannot be used"):
            content = read_json(path)
            size = content.get("size") if isinstance(content, dict) else None
            if not isinstance(size, dict):
                raise DoubleheadError(f"{path}: has no `size`, so it is not a Supervisely file")
            names = [Path(file).stem]  # called as its image, with the image's extension
            item = Item(names, str(path), Path(file).parent.as_posix(), size_of(size.get("width"), size.get("height")))
            for entry in dicts(content.get("objects")):
                kind = entry.get("geometryType")
                if kind in _NOT_OBJECTS:
                    ignore(kind, path.name, findings)
                    continue
                with findings.collect("boxes that cannot be read"):
                    item.things.append(_thing(entry, path))
            yield item


def _thing(entry: Entry, path: Path) -> Thing:
    label, kind = label_in(entry, "classTitle", str(path)), entry.get("geometryType")
    if kind == "bitmap":
        return Thing(label, _of_bitmap(entry.get("bitmap"), f"{path}: the bitmap of `{label}`"), reduced=MASKS)
    if kind not in ("rectangle", "polygon"):
        raise DoubleheadError(f"{path}: `{label}` is a {brief(kind)}, which is not supported; export it as a rectangle")
    points = entry["points"].get("exterior") if isinstance(entry.get("points"), dict) else None
    box = around(pairs(points, f"{path}: `exterior` of `{label}`"), f"{path}: `{label}`")
    return Thing(label, box, reduced=POLYGONS if kind == "polygon" else "")


def _of_bitmap(bitmap: Any, what: str) -> Box:
    """The box of a mask: `origin`, and the size of a PNG in `data`, which is compressed once more."""
    try:
        (x, y), data = bitmap["origin"], base64.b64decode(bitmap["data"], validate=True)
        width, height = struct.unpack(">II", zlib.decompressobj().decompress(data, 24)[16:])
    except (KeyError, TypeError, ValueError, zlib.error, struct.error) as error:
        raise DoubleheadError(f"{what} needs an `origin` and a PNG in `data` ({error})") from error
    left, top = number(x, what), number(y, what)
    return left, top, left + width, top + height
