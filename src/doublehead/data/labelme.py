"""LabelMe's JSON files, one per image, to records."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from doublehead.common.errors import DoubleheadError, brief
from doublehead.data.folder import Folder, split_of_folder
from doublehead.data.objects import (
    MASKS,
    POLYGONS,
    ROTATED,
    Item,
    NotMine,
    Splits,
    Thing,
    around,
    gather,
    ignore,
    label_in,
    pairs,
    size_of,
)
from doublehead.data.records import Box, Findings
from doublehead.data.text import head_has, read_json

_NOT_OBJECTS = ("point", "points", "line", "linestrip")
_REDUCED = {"polygon": POLYGONS, "mask": MASKS, "rotation": ROTATED}


def find_labelme(folder: Folder) -> Splits | NotMine | None:
    """Splits of JSON files with `shapes`: by the folders they lie in, else one."""
    files = folder.of_kind(".json", partial(head_has, marks=['"shapes"']))
    return gather(folder, ((split_of_folder(file) or "all", file) for file in files), _items)


@dataclass(frozen=True)
class EmbeddedImage:
    """The image in a LabelMe file's `imageData`."""

    path: Path

    def read(self) -> bytes:
        """Decode the image's bytes.

        Raises:
            DoubleheadError: the file has changed, or the data is no base64.
        """
        try:
            return base64.b64decode(_load(self.path)["imageData"], validate=True)
        except (KeyError, TypeError, ValueError) as error:
            raise DoubleheadError(f"{self.path}: `imageData` is not base64 ({error})") from error


def _load(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise DoubleheadError(f"{path}: has no list of `shapes`, so it is not a LabelMe file")
    return content


def _items(folder: Folder, files: list[str], findings: Findings) -> Iterator[Item]:
    for file in files:
        path = folder.path(file)
        with findings.collect("images that cannot be used"):
            content = _load(path)
            named = content.get("imagePath")
            names = [named] if isinstance(named, str) and named else []
            names.append(Path(file).stem)  # LabelMe calls the JSON file as its image
            item = Item(
                names, str(path), Path(file).parent.as_posix(),
                size_of(content.get("imageWidth"), content.get("imageHeight")),
            )  # fmt: skip
            item.content = _embedded(folder, path, item, content)
            for shape in content["shapes"]:
                with findings.collect("boxes that cannot be read", path):
                    thing = _thing(path, shape, findings)
                    if thing:
                        item.things.append(thing)
            yield item


def _embedded(folder: Folder, path: Path, item: Item, content: dict[str, Any]) -> EmbeddedImage | None:
    """The image within the JSON file, where no file of this name is in the dataset."""
    if not isinstance(content.get("imageData"), str) or any(folder.has_image(name) for name in item.names):
        return None
    item.names = [Path(name.replace("\\", "/")).name for name in item.names]
    return EmbeddedImage(path)


def _thing(path: Path, shape: Any, findings: Findings) -> Thing | None:
    label, kind = label_in(shape, "label", str(path)), shape.get("shape_type") or "polygon"
    if not isinstance(kind, str):
        raise DoubleheadError(f"{path}: `shape_type` of `{label}` must be a word such as rectangle, not {brief(kind)}")
    if kind in _NOT_OBJECTS:
        ignore(kind, f"`{label}` in {path.name}", findings)
        return None
    points = pairs(shape.get("points"), f"{path}: `points` of `{label}`")
    if kind == "circle":
        return Thing(label, _circle(points, path, label))
    return Thing(label, around(points, f"{path}: `{label}`"), reduced=_REDUCED.get(kind, ""))


def _circle(points: list[tuple[float, float]], path: Path, label: str) -> Box:
    if len(points) != 2:
        raise DoubleheadError(f"{path}: circle `{label}` needs two points, its center and one on its edge")
    (x, y), edge = points
    radius = math.dist((x, y), edge)
    return x - radius, y - radius, x + radius, y + radius
