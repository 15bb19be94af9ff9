"""The JSON lines of Azure Machine Learning to records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from doublehead.common.errors import DoubleheadError, brief
from doublehead.data.folder import Folder, split_of_file
from doublehead.data.objects import (
    POLYGONS,
    Item,
    Splits,
    Thing,
    around,
    gather,
    image_in,
    in_turn,
    json_lines,
    label_in,
    numbers_in,
)
from doublehead.data.records import Findings
from doublehead.data.text import dicts, is_set

_IMAGE = "image_url"
_EDGES = ("topX", "topY", "bottomX", "bottomY")


def find_azure_ml(folder: Folder) -> Splits | None:
    """Splits of JSON lines with `image_url` and `label`: by the files' folders or names, else one."""
    rows = json_lines(folder, (".jsonl", ".json"), [f'"{_IMAGE}"', '"label"'])
    return gather(folder, ((split_of_file(row[0]), row) for row in rows), _items)


def _items(folder: Folder, rows: list[tuple[str, int, dict[str, Any]]], findings: Findings) -> Iterator[Item]:
    for file, line, row in rows:
        where = f"{folder.path(file)}: line {line}"
        with findings.collect("images that cannot be used"):
            name, labels = image_in(row, _IMAGE, where), row.get("label")
            if not isinstance(labels, list):
                raise DoubleheadError(f"{where}: `label` must be a list of boxes, not {brief(labels)}")
            item = Item([name], where, Path(file).parent.as_posix(), fractions=True)
            for entry in dicts(labels):
                with findings.collect("boxes that cannot be read"):
                    item.things.append(_thing(entry, where))
            yield item


def _thing(entry: dict[str, Any], where: str) -> Thing:
    label, crowd = label_in(entry, "label", where), is_set(entry.get("isCrowd"))
    if "polygon" not in entry:
        x1, y1, x2, y2 = numbers_in(entry, _EDGES, where)
        return Thing(label, (x1, y1, x2, y2), crowd)
    what, polygons = f"{where}: `polygon`", entry["polygon"]
    if not isinstance(polygons, list):
        raise DoubleheadError(f"{what} must be a list of polygons, not {brief(polygons)}")
    points = [point for polygon in polygons for point in in_turn(polygon, what)]
    return Thing(label, around(points, what), crowd, POLYGONS)
