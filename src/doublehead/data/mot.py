"""MOT's tracks (MOTChallenge, CVAT, Datumaro) to records, one image per frame."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from doublehead.common.errors import DoubleheadError, brief
from doublehead.data.folder import Folder, split_of_folder
from doublehead.data.objects import Item, NotMine, Splits, Thing, gather, number
from doublehead.data.records import Findings
from doublehead.data.text import is_set, read_text

_LEAST = 7  # columns: frame, track, x, y, width, height, whether it counts; then class and visibility
_MOT15 = 10  # columns of MOT15, which has no classes but coordinates in the world
_PEDESTRIAN = "pedestrian"
_LIKE_PEDESTRIANS = (1, 2, 7, 8, 12, 13)  # of MOTChallenge's classes: detections there are neither right nor wrong


def find_mot(folder: Folder) -> Splits | NotMine | None:
    """Splits of `gt/gt.txt` beside a folder of images: by the folders they lie in, else one."""
    files = [file for file in folder.suffixed(".txt") if f"/{file}".endswith("/gt/gt.txt")]
    for file in files:
        if not _frames(folder, file):
            return NotMine(f"MOT's tracks in {file}", "images beside the folder gt, such as img1/000001.jpg")
    names = {name for file in files for name in _classes(folder, file) or [_PEDESTRIAN]}
    return gather(folder, ((split_of_folder(file) or "all", file) for file in files), _items, lambda: names)


def _frames(folder: Folder, file: str) -> dict[int, str]:
    return folder.frames_below(_home(file), r"(\d+)$")


def _home(file: str) -> str:
    """The folder of a sequence."""
    return posixpath.dirname(posixpath.dirname(file))


def _classes(folder: Folder, file: str) -> list[str]:
    """The classes that `labels.txt` lists; none in MOTChallenge's own files."""
    lists = [posixpath.join(place, "labels.txt") for place in (posixpath.dirname(file), _home(file))]
    found = next((one for one in lists if one in folder.files), None)
    lines = read_text(folder.path(found), "a list of classes").splitlines() if found else []
    return [line.strip() for line in lines if line.strip()]


def _items(folder: Folder, files: list[str], findings: Findings) -> Iterator[Item]:
    for file in files:
        path = folder.path(file)
        names = _classes(folder, file)
        items = {frame: Item([image], f"{path}: frame {frame}") for frame, image in _frames(folder, file).items()}
        for line, text in enumerate(read_text(path, "tracks").split("\n"), 1):
            with findings.collect("boxes that cannot be read"):
                found = _thing(text.strip(), names, f"{path}: line {line}", findings)
                if found:
                    frame, thing = found
                    missing = Item([f"{frame:06}"], f"{path}: frame {frame}", _home(file))
                    items.setdefault(frame, missing).things.append(thing)
        yield from (items[frame] for frame in sorted(items))


def _thing(text: str, names: list[str], where: str, findings: Findings) -> tuple[int, Thing] | None:
    """The frame and the object of a line."""
    if not text:
        return None
    columns = [column.strip() for column in text.split(",")]
    if len(columns) < _LEAST:
        raise DoubleheadError(f"{where} must have frame, track, x, y, width, height and a flag, not {brief(text)}")
    frame, x, y, w, h = (number(columns[place], f"{where}: column {place + 1}") for place in (0, 2, 3, 4, 5))
    kind = 1 if len(columns) < _LEAST + 1 or (len(columns) >= _MOT15 and not names) else int(number(columns[7], where))
    crowd = not is_set(columns[6])
    if names:
        if not 1 <= kind <= len(names):
            raise DoubleheadError(f"{where}: class {kind} is not one of the {len(names)} in labels.txt")
        return int(frame), Thing(names[kind - 1], (x, y, x + w, y + h), crowd)
    if kind not in _LIKE_PEDESTRIANS:
        findings.warn("objects other than pedestrians ignored", where)
        return None
    box = (x - 1, y - 1, x + w - 1, y + h - 1)  # MOTChallenge counts pixels from 1
    return int(frame), Thing(_PEDESTRIAN, box, crowd or kind > 1)
