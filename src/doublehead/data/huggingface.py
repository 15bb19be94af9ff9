"""Datasets of Hugging Face to records: image folders with metadata, Parquet and Arrow files that hold their images."""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from doublehead.common.errors import DoubleheadError, brief
from doublehead.data import arrow
from doublehead.data.folder import Folder, split_in_name, split_of_folder
from doublehead.data.objects import Item, NotMine, Parse, Splits, Thing, image_in, number, size_of, splits_by_name
from doublehead.data.records import Findings
from doublehead.data.text import is_set, read_json_lines, read_text

_BOXES = ("bbox", "bboxes", "boxes", "box")
_CLASSES = ("categories", "category", "labels", "label", "class_labels", "category_id", "class", "classes", "name")
_METADATA = ("metadata.jsonl", "metadata.csv")


def find_imagefolder(folder: Folder) -> Splits | NotMine | None:
    """Splits of `metadata.jsonl` or `metadata.csv` with `file_name` and `objects`: by folders, else one."""
    sources: dict[str, list[tuple[str, int, dict[str, Any]]]] = {}
    files = [file for file in folder.suffixed(*_METADATA) if posixpath.basename(file).lower() in _METADATA]
    for file in files:
        for line, row in _rows(folder.path(file)):
            if "objects" not in row:
                return NotMine(f"{file} with {', '.join(map(str, row))[:200]}", "`objects`, with `bbox` and `category`")
            split = split_of_folder(f"{posixpath.dirname(file)}/{row.get('file_name')}") or "all"
            sources.setdefault(split, []).append((file, line, row))
    parse: dict[str, Parse] = {split: partial(_listed, folder, rows) for split, rows in sources.items()}
    return splits_by_name(folder, parse) if parse else None


def find_tables(folder: Folder, suffix: str) -> Splits | NotMine | None:
    """Splits of Parquet or Arrow files with columns `image` and `objects`: by the names of files or folders."""
    files = [file for file in folder.suffixed(suffix) if not posixpath.basename(file).startswith("cache-")]
    sources: dict[str, list[str]] = {}
    names: set[str] = set()
    for file in files:
        schema = arrow.schema(folder.path(file))
        if not {"image", "objects"} <= set(schema.names):
            return NotMine(f"{file} with {', '.join(schema.names)[:200]}", "the columns `image` and `objects`")
        split = split_of_folder(file) or split_in_name(Path(file).stem) or "all"
        sources.setdefault(split, []).append(file)
        names.update(_class_names(schema))
    parse: dict[str, Parse] = {split: partial(_in_tables, folder, found) for split, found in sources.items()}
    return splits_by_name(folder, parse, (lambda: names) if names else None) if parse else None


def _class_names(schema: Any) -> list[str]:
    """Names of the ClassLabel among the features that `datasets` writes into the schema."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = about["info"]["features"]["objects"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    waiting = [features]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            names = node.get("names")
            if node.get("_type") == "ClassLabel" and isinstance(names, list):
                return [str(name) for name in names]
        waiting += node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
    return []


def _in_tables(folder: Folder, files: list[str], findings: Findings) -> Iterator[Item]:
    for file in files:
        path = folder.path(file)
        place = 0
        with findings.collect("annotation files unreadable"), arrow.told(path):
            schema = arrow.schema(path)
            names = _class_names(schema)
            columns = ["objects", *(name for name in ("width", "height") if name in schema.names)]
            for group in range(arrow.groups(path)):
                images = arrow.images(path, group)
                for row, values in enumerate(arrow.rows(path, group, columns)):
                    name = _name(images[row].as_py(), place)
                    item = Item([f"{file}/{name}"], f"{path}: row {place}", posixpath.dirname(file))
                    item.size = size_of(values.get("width"), values.get("height"))
                    item.content = arrow.ImageCell(path, group, row)
                    _add_objects(item, values["objects"], names, findings)
                    place += 1
                    yield item


def _name(cell: Any, place: int) -> str:
    """A name for the image of a row that no other has."""
    path = cell.get("path") if isinstance(cell, dict) else None
    name = posixpath.basename(path.replace("\\", "/")) if isinstance(path, str) else "image.png"
    return f"{place:06d}-{name}"


def _listed(folder: Folder, rows: list[tuple[str, int, dict[str, Any]]], findings: Findings) -> Iterator[Item]:
    for file, line, row in rows:
        where = f"{folder.path(file)}: line {line}"
        with findings.collect("images that cannot be used"):
            name = image_in(row, "file_name", where)
            item = Item([name], where, posixpath.dirname(file), size_of(row.get("width"), row.get("height")))
            _add_objects(item, row["objects"], [], findings)
            yield item


def _rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    if path.suffix.lower() != ".csv":
        return read_json_lines(path)
    table = csv.DictReader(io.StringIO(read_text(path, "metadata of images"), newline=""))
    try:
        return [(line, _with_objects(row)) for line, row in enumerate(table, 2)]
    except (ValueError, RecursionError, csv.Error) as error:
        raise DoubleheadError(f"{path}: cannot be read as CSV with JSON in its cells ({error})") from error


def _with_objects(row: dict[Any, Any]) -> dict[str, Any]:
    return row | {"objects": json.loads(row["objects"])} if isinstance(row.get("objects"), str) else row


def _add_objects(item: Item, objects: Any, names: list[str], findings: Findings) -> None:
    """Objects as a mapping of lists or a list of mappings; boxes are x, y, width, height in pixels, as in COCO."""
    for one in _each(objects, item.where):
        with findings.collect("boxes that cannot be read"):
            box = next((one[key] for key in _BOXES if key in one), None)
            category = next((one[key] for key in _CLASSES if key in one), None)
            if not isinstance(box, list | tuple) or len(box) != 4:
                raise DoubleheadError(f"{item.where}: `bbox` must be four numbers, not {brief(box)}")
            x, y, w, h = (number(value, f"{item.where}: `bbox`") for value in box)
            if type(category) is int:
                category = names[category] if 0 <= category < len(names) else f"class {category}"
            if not isinstance(category, str) or not category.strip():
                raise DoubleheadError(f"{item.where}: a box has no category, but {brief(category)}")
            item.things.append(Thing(category, (x, y, x + w, y + h), is_set(one.get("iscrowd"))))


def _each(objects: Any, where: str) -> Iterable[dict[str, Any]]:
    if isinstance(objects, list) and all(isinstance(one, dict) for one in objects):
        return objects
    if objects is None:
        return []
    columns = (
        {key: value for key, value in objects.items() if isinstance(value, list)} if isinstance(objects, dict) else {}
    )
    kept = {key: columns[key] for key in (*_BOXES, *_CLASSES, "iscrowd") if key in columns}
    if not kept or len({len(column) for column in kept.values()}) != 1:
        raise DoubleheadError(f"{where}: `objects` must hold lists of the same length, `bbox` and `category`")
    return [dict(zip(kept, values, strict=True)) for values in zip(*kept.values(), strict=True)]
