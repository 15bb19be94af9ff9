"""The JSON lines of Google's Vertex AI to records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from doublehead.data.folder import Folder, split_of_file
from doublehead.data.objects import Item, Splits, Thing, gather, image_in, json_lines, label_in, numbers_in
from doublehead.data.records import Findings
from doublehead.data.text import dicts

_IMAGE, _BOXES = "imageGcsUri", "boundingBoxAnnotations"
_EDGES = ("xMin", "yMin", "xMax", "yMax")
_USE = "aiplatform.googleapis.com/ml_use"


def find_vertex_ai(folder: Folder) -> Splits | None:
    """Splits of JSON lines with `imageGcsUri`: by `ml_use`, else by the files' folders or names, else one."""
    rows = json_lines(folder, (".jsonl", ".json"), [f'"{_IMAGE}"', f'"{_BOXES}"'])
    return gather(folder, ((_use(row[2]) or split_of_file(row[0]), row) for row in rows), _items)


def _use(row: dict[str, Any]) -> str | None:
    labels = row.get("dataItemResourceLabels")
    use = labels.get(_USE) if isinstance(labels, dict) else None
    return use if isinstance(use, str) else None


def _items(folder: Folder, rows: list[tuple[str, int, dict[str, Any]]], findings: Findings) -> Iterator[Item]:
    for file, line, row in rows:
        where = f"{folder.path(file)}: line {line}"
        with findings.collect("images that cannot be used"):
            item = Item([image_in(row, _IMAGE, where)], where, Path(file).parent.as_posix(), fractions=True)
            for entry in dicts(row.get(_BOXES)):
                with findings.collect("boxes that cannot be read"):
                    zeros = dict.fromkeys(_EDGES, 0)  # Google's JSON leaves out what is zero
                    x1, y1, x2, y2 = numbers_in(zeros | entry, _EDGES, where)
                    item.things.append(Thing(label_in(entry, "displayName", where), (x1, y1, x2, y2)))
            yield item
