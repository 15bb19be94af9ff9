"""KITTI's label files, as CVAT and NVIDIA's TAO write them too, to records."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import Path

from doublehead.common.errors import DoubleheadError, brief
from doublehead.data.folder import Folder, split_of_folder
from doublehead.data.objects import Item, NotMine, Splits, Thing, gather, number
from doublehead.data.records import Findings
from doublehead.data.text import is_number, read_text

_COLUMNS = (15, 16)  # the last one, of detections, is a score
_NO_CLASS = "DontCare"  # regions whose objects were not labelled


def find_kitti(folder: Folder) -> Splits | NotMine | None:
    """Splits of text files with a class and 14 numbers a line: by the folders they lie in, else one."""
    files = folder.of_kind(".txt", _is_one)
    return gather(folder, ((split_of_folder(file) or "all", file) for file in files), _items)


def _is_one(path: Path) -> bool:
    """Whether a text file's first line is one of KITTI's."""
    try:
        words = read_text(path, "labels").split("\n", 1)[0].split()
        return len(words) in _COLUMNS and not is_number(words[0]) and all(map(is_number, words[1:]))
    except DoubleheadError:
        return False


def _items(folder: Folder, files: list[str], findings: Findings) -> Iterator[Item]:
    for file in files:
        path = folder.path(file)
        with findings.collect("images that cannot be used"):
            home, stem = posixpath.dirname(file), Path(file).stem
            pictures = posixpath.join(
                home.replace("label_", "image_"), f"{stem}.png"
            )  # image_2 and image_3: two cameras
            item = Item([pictures, stem], str(path), home)
            for line, text in enumerate(read_text(path, "labels").split("\n"), 1):
                with findings.collect("boxes that cannot be read"):
                    item.things += _things(text.split(), f"{path}: line {line}", findings)
            yield item


def _things(words: list[str], where: str, findings: Findings) -> list[Thing]:
    if not words:
        return []
    if len(words) not in _COLUMNS:
        raise DoubleheadError(f"{where} must have a class and 14 numbers, not {brief(' '.join(words))}")
    if words[0] == _NO_CLASS:
        findings.warn("regions of no class ignored (DontCare)", where)
        return []
    x1, y1, x2, y2 = (number(word, f"{where}: the box") for word in words[4:8])
    return [Thing(words[0], (x1, y1, x2, y2))]
