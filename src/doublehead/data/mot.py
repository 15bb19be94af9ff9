"""MOT's tracks (MOTChallenge, CVAT, Datumaro) to records, one image per frame."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from doublehead.common.errors import DoubleheadError, brief
from doublehead.data.folder import Folder, split_of_folder
from doublehead.data.objects import Item, NotMine, Splits, Thing, gather, number, of_frames
from doublehead.data.records import Findings
from doublehead.data.text import is_set, read_text

_LEAST = 7  # columns: frame, track, x, y, width, height, whether it counts; then class and visibility
_MOT15 = 10  # columns of MOT15, which has no classes but coordinates in the world
_PEDESTRIAN = "pedestrian"
_LIKE_PEDESTRIANS = (1, 2, 7, 8, 12, 13)  # of MOTChallenge's classes: detections there are neither right nor wrong


class Tracks(NamedTuple):
    """A sequence of images."""

    file: str
    home: str  # the folder of the sequence
    names: list[str]  # of the classes; empty in MOTChallenge's own files
    frames: dict[int, str]  # frame -> image


def find_mot(folder: Folder) -> Splits | NotMine | None:
    """Splits of `gt/gt.txt` beside a folder of images: by the folders they lie in, else one."""
    sequences = []
    for file in (file for file in folder.suffixed(".txt") if f"/{file}".endswith("/gt/gt.txt")):
        home = posixpath.dirname(posixpath.dirname(file))
        frames = folder.frames_below(home, r"(\d+)$")
        if not frames:
            return NotMine(f"MOT's tracks in {file}", "images beside the folder gt, such as img1/000001.jpg")
        sequences.append((split_of_folder(file) or "all", Tracks(file, home, _classes(folder, file, home), frames)))
    names = {name for _, sequence in sequences for name in sequence.names or [_PEDESTRIAN]}
    return gather(folder, sequences, _items, lambda: names)


def _classes(folder: Folder, file: str, home: str) -> list[str]:
    """The classes that `labels.txt` lists, beside the tracks or in the sequence's folder."""
    lists = [posixpath.join(place, "labels.txt") for place in (posixpath.dirname(file), home)]
    found = next((one for one in lists if one in folder.files), None)
    lines = read_text(folder.path(found), "a list of classes").splitlines() if found else []
    return [line.strip() for line in lines if line.strip()]


def _items(folder: Folder, sequences: list[Tracks], findings: Findings) -> Iterator[Item]:
    for sequence in sequences:
        path = folder.path(sequence.file)
        things = _things(path, sequence.names, findings)
        yield from of_frames(sequence.frames, things, str(path), sequence.home, "{:06}")


def _things(path: Path, names: list[str], findings: Findings) -> Iterator[tuple[int, Thing]]:
    for line, text in enumerate(read_text(path, "tracks").split("\n"), 1):
        with findings.collect("boxes that cannot be read"):
            if found := _thing(text.strip(), names, f"{path}: line {line}", findings):
                yield found


def _thing(text: str, names: list[str], where: str, findings: Findings) -> tuple[int, Thing] | None:
    """The frame and the object of a line."""
    if not text:
        return None
    columns = [column.strip() for column in text.split(",")]
    if len(columns) < _LEAST:
        raise DoubleheadError(f"{where} must have frame, track, x, y, width, height and a flag, not {brief(text)}")
    frame, x, y, w, h = (number(columns[place], f"{where}: column {place + 1}") for place in (0, 2, 3, 4, 5))
    has_class = len(columns) > _LEAST and (names or len(columns) < _MOT15)
    kind = int(number(columns[7], f"{where}: column 8")) if has_class else 1
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
