"""V7's Darwin JSON, one file per image, to records."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from doublehead.common.errors import DoubleheadError, brief
from doublehead.data.folder import Folder, split_of_folder
from doublehead.data.objects import (
    POLYGONS,
    Item,
    NotMine,
    Splits,
    Thing,
    corner_and_size,
    gather,
    ignore,
    label_in,
    size_of,
)
from doublehead.data.records import Findings
from doublehead.data.text import dicts, head_has, read_json

Entry = dict[str, Any]

_BOX = ("x", "y", "w", "h")
_SHAPES = ("polygon", "complex_polygon", "ellipse")
_PLAIN = (
    "id",
    "name",
    "slot_names",
    "properties",
    "bounding_box",
    "annotators",
    "reviewers",
    "attributes",
    "instance_id",
)


def find_darwin(folder: Folder) -> Splits | NotMine | None:
    """Splits of JSON files with `annotations` and an `item`, or in version 1 an `image`: by their folders, else one."""
    files = {
        file: None
        for mark in ('"slots"', '"workview_url"')
        for file in folder.of_kind(".json", partial(head_has, marks=['"annotations"', mark]))
    }
    return gather(folder, ((split_of_folder(file) or "all", file) for file in files), _items)


def _items(folder: Folder, files: list[str], findings: Findings) -> Iterator[Item]:
    for file in files:
        path = folder.path(file)
        with findings.collect("images that cannot be used"):
            content = read_json(path)
            names, about = _image(content if isinstance(content, dict) else {}, path)
            size = size_of(about.get("width"), about.get("height"))
            item = Item(names, str(path), Path(file).parent.as_posix(), size)
            for annotation in dicts(content.get("annotations")):
                with findings.collect("boxes that cannot be read"):
                    item.things += _things(annotation, path, findings)
            yield item


def _image(content: Entry, path: Path) -> tuple[list[str], Entry]:
    """What the image is called, and what has its size: a slot of the `item`, or in version 1 the `image`."""
    item = content.get("item")
    about = content.get("image")
    if isinstance(item, dict):
        slots = dicts(item.get("slots"))
        about = {**item, **slots[0]} if len(slots) == 1 else None
    if not isinstance(about, dict) or about.get("type") == "video" or "frame_count" in about:
        raise DoubleheadError(f"{path}: must be of one image, not of a video or of several images")
    names = [about.get(key) for key in ("name", "filename", "original_filename")]
    folder = str(about.get("path") or "").strip("/")
    found = [name for name in names if isinstance(name, str) and name]
    if not found:
        raise DoubleheadError(f"{path}: its image has no name: {brief(about)}")
    return [f"{folder}/{found[0]}", *found] if folder else found, about


def _things(annotation: Entry, path: Path, findings: Findings) -> list[Thing]:
    label = label_in(annotation, "name", str(path))
    if "bounding_box" not in annotation:
        ignore(next((key for key in annotation if key not in _PLAIN), None), path.name, findings)
        return []
    box = corner_and_size(annotation["bounding_box"], _BOX, f"{path}: the box of `{label}`")
    return [Thing(label, box, reduced=POLYGONS if any(shape in annotation for shape in _SHAPES) else "")]
