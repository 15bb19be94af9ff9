"""The NDJSON that Ultralytics' platform exports, to records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from doublehead.common.errors import DoubleheadError, brief
from doublehead.data.folder import Folder, split_of_file
from doublehead.data.objects import (
    POLYGONS,
    Item,
    NotMine,
    Splits,
    Thing,
    around,
    gather,
    ignore,
    image_in,
    in_turn,
    json_lines,
    number,
    size_of,
)
from doublehead.data.records import Box, Findings

Entry = dict[str, Any]

_POLYGONS = ("segments", "obb")


class Row(NamedTuple):
    """An image as a line has it, with the classes that the file's first line names."""

    file: str
    line: int
    image: Entry
    names: Entry


def find_ultralytics(folder: Folder) -> Splits | NotMine | None:
    """Splits of NDJSON with `class_names`: by the `split` of its images, else by the file's folder or name, else one.

    Raises:
        DoubleheadError: `class_names` is no mapping.
    """
    rows: list[tuple[str, Row]] = []
    labels: set[str] = set()
    names: dict[str, Entry] = {}
    for file, line, row in json_lines(folder, [".ndjson"], ['"class_names"']):
        if "class_names" in row:
            names[file] = row["class_names"]
            if not isinstance(names[file], dict):
                raise DoubleheadError(f"{folder.path(file)}: `class_names` must be numbers and names")
            labels.update(map(str, names[file].values()))
        elif "file" in row:
            rows.append((str(row.get("split") or split_of_file(file)), Row(file, line, row, names.get(file, {}))))
    return gather(folder, rows, _items, lambda: labels)


def _items(folder: Folder, rows: list[Row], findings: Findings) -> Iterator[Item]:
    for row in rows:
        where = f"{folder.path(row.file)}: line {row.line}"
        with findings.collect("images that cannot be used"):
            name = image_in(row.image, "file", where)
            size = size_of(row.image.get("width"), row.image.get("height"))
            item = Item([name], where, Path(row.file).parent.as_posix(), size, fractions=True)
            annotations = row.image.get("annotations")
            for kind, found in annotations.items() if isinstance(annotations, dict) else ():
                for values in found if isinstance(found, list) else ():
                    if kind != "boxes" and kind not in _POLYGONS:
                        ignore(kind, where, findings)
                        continue
                    with findings.collect("boxes that cannot be read"):
                        item.things.append(_thing(kind, values, row.names, where))
            yield item


def _thing(kind: str, values: Any, names: Entry, where: str) -> Thing:
    if not isinstance(values, list) or not values:
        raise DoubleheadError(f"{where}: `{kind}` must be a class and coordinates, not {brief(values)}")
    label, edges = names.get(str(values[0])), [number(value, f"{where}: `{kind}`") for value in values[1:]]
    if not isinstance(label, str):
        raise DoubleheadError(f"{where}: class {brief(values[0])} is not among `class_names`", "unknown classes")
    return Thing(label, _box(kind, edges, where), reduced=POLYGONS if kind in _POLYGONS else "")


def _box(kind: str, edges: list[float], where: str) -> Box:
    """A box, as fractions of the image, of center and size or of corners."""
    if kind in _POLYGONS:
        return around(in_turn(edges, f"{where}: `{kind}`"), f"{where}: `{kind}`")
    if len(edges) != 4:
        raise DoubleheadError(f"{where}: `boxes` must have four numbers after the class, not {len(edges)}")
    x, y, w, h = edges
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2
