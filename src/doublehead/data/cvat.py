"""CVAT's XML, for images and for video, to records."""

from __future__ import annotations

import math
import posixpath
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from doublehead.common.errors import DoubleheadError
from doublehead.data.folder import Folder, split_of_file
from doublehead.data.objects import (
    MASKS,
    POLYGONS,
    ROTATED,
    Item,
    NotMine,
    Splits,
    Thing,
    around,
    around_rotated,
    gather,
    ignore,
    number,
    of_frames,
    size_of,
)
from doublehead.data.records import Box, Findings
from doublehead.data.voc import parse_xml, xml_files

_NOT_OBJECTS = ("polyline", "points", "skeleton", "cuboid", "tag")


class Picture(NamedTuple):
    """An <image>."""

    file: str
    node: Any


class Video(NamedTuple):
    """The <track>s of a file."""

    file: str
    tracks: list[Any]
    frames: dict[int, str]  # frame -> image


def find_cvat(folder: Folder) -> Splits | NotMine | None:
    """Splits of `annotations.xml`: by the `subset` of its images, else by the file's name or folder, else one."""
    entries: list[tuple[str, Picture | Video]] = []
    labels: set[str] = set()
    for file in xml_files(folder, "annotations"):
        root = parse_xml(folder.path(file))
        labels.update(node.text or "" for node in root.findall(".//meta//label/name"))
        for node in root.findall("image"):
            entries.append((node.get("subset") or split_of_file(file), Picture(file, node)))
        if tracks := root.findall("track"):
            frames = folder.frames_below(posixpath.dirname(file), r"^frame_(\d+)$")
            if not frames or len({track.get("task_id") for track in tracks}) > 1:
                return NotMine(
                    f"CVAT's XML for video in {file}",
                    "the images of one task, called frame_000000, frame_000001 ...: export it as `CVAT for images 1.1`",
                )
            entries.append((split_of_file(file), Video(file, tracks, frames)))
    return gather(folder, entries, _items, (lambda: labels) if labels else None)


def _items(folder: Folder, entries: list[Picture | Video], findings: Findings) -> Iterator[Item]:
    for entry in entries:
        if isinstance(entry, Video):
            path = folder.path(entry.file)
            home = posixpath.dirname(entry.file)
            yield from of_frames(entry.frames, _in_frames(entry, path, findings), str(path), home, "frame_{:06}")
            continue
        with findings.collect("images that cannot be used"):
            yield _of_image(folder, entry, findings)


def _of_image(folder: Folder, picture: Picture, findings: Findings) -> Item:
    file, node = picture
    name = node.get("name") or ""
    where = f"{folder.path(file)}: image `{name}`"
    if not name:
        raise DoubleheadError(f"{folder.path(file)}: an <image> has no `name`")
    item = Item([name], where, posixpath.dirname(file), size_of(node.get("width"), node.get("height")))
    for shape in node:
        if shape.tag in _NOT_OBJECTS:
            ignore(shape.tag, f"image `{name}` in {file}", findings)
            continue
        with findings.collect("boxes that cannot be read"):
            item.things.append(_thing(shape, shape.get("label"), where))
    return item


def _in_frames(video: Video, path: Path, findings: Findings) -> Iterator[tuple[int, Thing]]:
    """The objects of all tracks, each with its frame."""
    frames = sorted(video.frames)
    for track in video.tracks:
        shown = _shown(track, path, findings)
        yield from ((frame, thing) for frame, thing in (shown | _between(shown, frames)).items() if thing)


def _shown(track: Any, path: Path, findings: Findings) -> dict[int, Thing | None]:
    """A track's object by frame; None: it is outside the image."""
    shown: dict[int, Thing | None] = {}
    for shape in track:
        with findings.collect("boxes that cannot be read"):
            frame = int(number(shape.get("frame", ""), f"{path}: `frame` of a <{shape.tag}> in a <track>"))
            if shape.get("outside") == "1":
                shown[frame] = None
            elif shape.tag in _NOT_OBJECTS:
                ignore(shape.tag, f"frame {frame} in {path.name}", findings)
            else:
                shown[frame] = _thing(shape, track.get("label"), f"{path}: frame {frame}")
    return dict(sorted(shown.items()))


def _between(shown: dict[int, Thing | None], frames: list[int]) -> dict[int, Thing]:
    """A track's object in frames between two keyframes, as CVAT places it.

    CVAT exports every frame. Files that other programs write for it often have only the keyframes.
    """
    placed = {}
    for (start, first), (end, last) in pairwise(shown.items()):
        if first is None:
            continue
        box = last.box if last else first.box
        for frame in frames[bisect_right(frames, start) : bisect_left(frames, end)]:
            share = (frame - start) / (end - start)
            x1, y1, x2, y2 = (a + share * (b - a) for a, b in zip(first.box, box, strict=True))
            placed[frame] = Thing(first.category, (x1, y1, x2, y2), reduced=first.reduced)
    return placed


def _thing(shape: Any, label: str | None, where: str) -> Thing:
    if not label:
        raise DoubleheadError(f"{where} has a <{shape.tag}> without `label`")

    def value(key: str) -> float:
        return number(shape.get(key, ""), f"{where}: `{key}` of a <{shape.tag}>")

    match shape.tag:
        case "box":
            box = (value("xtl"), value("ytl"), value("xbr"), value("ybr"))
            return _turned(label, box, shape, where)
        case "polygon":
            points = [pair.split(",") for pair in (shape.get("points") or "").split(";") if pair]
            what = f"{where}: a point of a <polygon>"
            pairs = [(number(pair[0], what), number(pair[-1], what)) for pair in points]
            return Thing(label, around(pairs, f"{where}: a <polygon>"), reduced=POLYGONS)
        case "ellipse":
            x, y, rx, ry = (value(key) for key in ("cx", "cy", "rx", "ry"))
            return _turned(label, (x - rx, y - ry, x + rx, y + ry), shape, where)
        case "mask":
            x, y = value("left"), value("top")
            return Thing(label, (x, y, x + value("width"), y + value("height")), reduced=MASKS)
    raise DoubleheadError(f"{where} has a <{shape.tag}>, which is not supported; export it as a box")


def _turned(label: str, box: Box, shape: Any, where: str) -> Thing:
    angle = number(shape.get("rotation") or "0", f"{where}: `rotation`")
    if not angle:
        return Thing(label, box)
    return Thing(label, around_rotated(box, math.radians(angle)), reduced=ROTATED)
