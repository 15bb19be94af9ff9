"""Labelbox's export, NDJSON with a line per image, to records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from doublehead.common.errors import DoubleheadError, brief
from doublehead.data.folder import Folder, split_of_file
from doublehead.data.objects import (
    POLYGONS,
    Item,
    NotMine,
    Splits,
    Thing,
    around,
    corner_and_size,
    gather,
    ignore,
    json_lines,
    label_in,
    points_in,
    size_of,
)
from doublehead.data.records import Findings
from doublehead.data.text import dicts

Entry = dict[str, Any]
Row = tuple[str, int, Entry]  # file, line, what it holds

_NAMES = ("external_id", "global_key", "row_data")
_BOX = ("left", "top", "width", "height")


def find_labelbox(folder: Folder) -> Splits | NotMine | None:
    """Splits of NDJSON with `data_row` and `projects`: by the metadata `split`, else by folder or name, else one."""
    rows = json_lines(folder, (".ndjson", ".jsonl", ".json"), ['"data_row"', '"projects"'])
    return gather(folder, ((_split(row) or split_of_file(file), (file, line, row)) for file, line, row in rows), _items)


def _split(row: Entry) -> str | None:
    fields = dicts(row.get("metadata_fields"))
    found = next((field.get("value") for field in fields if field.get("schema_name") == "split"), None)
    return found if isinstance(found, str) else None


def _items(folder: Folder, rows: list[Row], findings: Findings) -> Iterator[Item]:
    for file, line, row in rows:
        where = f"{folder.path(file)}: line {line}"
        with findings.collect("images that cannot be used"):
            about, media = (
                row[key] if isinstance(row.get(key), dict) else {} for key in ("data_row", "media_attributes")
            )
            texts = [about.get(key) for key in _NAMES]
            names = [text.partition("?")[0] for text in texts if isinstance(text, str) and text]
            if not names:
                raise DoubleheadError(f"{where}: `data_row` must name an image by {', '.join(_NAMES)}: {brief(about)}")
            labels = _labels(row)
            if not labels:
                findings.warn("images without annotations skipped", where)
                continue
            if len(labels) > 1:
                findings.warn("images with several annotations, the last taken", where)
            if "frames" in labels[-1]:
                raise DoubleheadError(f"{where}: is a video; export its frames as images")
            item = Item(names, where, Path(file).parent.as_posix(), size_of(media.get("width"), media.get("height")))
            for found in dicts(labels[-1].get("objects")):
                with findings.collect("boxes that cannot be read"):
                    item.things += _things(found, where, findings)
            yield item


def _labels(row: Entry) -> list[Entry]:
    """The annotations of an image, of all projects and annotators."""
    projects = row.get("projects")
    found = dicts(list(projects.values())) if isinstance(projects, dict) else []
    return dicts([label.get("annotations") for project in found for label in dicts(project.get("labels"))])


def _things(found: Entry, where: str, findings: Findings) -> list[Thing]:
    label = label_in(found, "name", where)
    if "bounding_box" in found:
        return [Thing(label, corner_and_size(found["bounding_box"], _BOX, f"{where}: the box of `{label}`"))]
    if "polygon" in found:
        what = f"{where}: the polygon of `{label}`"
        return [Thing(label, around(points_in(found["polygon"], what), what), reduced=POLYGONS)]
    ignore(found.get("annotation_kind"), where, findings)
    return []
