"""CreateML's JSON, as Roboflow and Apple's tools write it, to records."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from doublehead.common.errors import DoubleheadError, brief
from doublehead.data.folder import Folder, split_of_file
from doublehead.data.objects import Item, NotMine, Splits, Thing, gather, label_in, numbers_in
from doublehead.data.records import Findings
from doublehead.data.text import dicts, head_has, read_json

Entry = dict[str, Any]

_IMAGE = ("image", "imagefilename")
_BOX = ("x", "y", "width", "height")


def find_createml(folder: Folder) -> Splits | NotMine | None:
    """Splits of JSON lists of images with `coordinates`: by the files' folders or names, else one."""
    files = folder.of_kind(".json", partial(head_has, marks=['"coordinates"', '"label"', '"image']))
    images = [(file, image) for file in files for image in dicts(read_json(folder.path(file)))]
    return gather(folder, ((split_of_file(file), (file, image)) for file, image in images), _items)


def _items(folder: Folder, images: list[tuple[str, Entry]], findings: Findings) -> Iterator[Item]:
    for file, image in images:
        path = folder.path(file)
        with findings.collect("images that cannot be used"):
            name = next((image[key] for key in _IMAGE if isinstance(image.get(key), str) and image[key]), None)
            if name is None:
                raise DoubleheadError(f"{path}: an entry has no `image`: {brief(image)}")
            item = Item([name], f"{path}: `{name}`", Path(file).parent.as_posix())
            for annotation in dicts(image.get("annotations")):
                with findings.collect("boxes that cannot be read"):
                    item.things.append(_thing(annotation, item.where))
            yield item


def _thing(annotation: Entry, where: str) -> Thing:
    label = label_in(annotation, "label", where)
    x, y, w, h = numbers_in(annotation.get("coordinates"), _BOX, f"{where}: `coordinates` of `{label}`")
    return Thing(label, (x - w / 2, y - h / 2, x + w / 2, y + h / 2))  # x and y are the center
