"""CVAT's XML for video to records, one image per frame."""

from __future__ import annotations

import posixpath
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from doublehead.data.cvat import NOT_OBJECTS, labels_of, thing_in
from doublehead.data.folder import Folder, split_of_file
from doublehead.data.objects import Item, NotMine, Splits, Thing, gather, ignore, number
from doublehead.data.records import Findings
from doublehead.data.voc import parse_xml, xml_files


def find_cvat_video(folder: Folder) -> Splits | NotMine | None:
    """Splits of `annotations.xml` with tracks: by the file's name or folder, else one."""
    videos: list[tuple[str, tuple[str, list[Any]]]] = []
    labels: set[str] = set()
    for file in xml_files(folder, "annotations"):
        root = parse_xml(folder.path(file))
        tracks = root.findall("track")
        if tracks and (not _frames(folder, file) or len({track.get("task_id") for track in tracks}) > 1):
            return NotMine(
                f"CVAT's XML for video in {file}",
                "the images of one task, called frame_000000, frame_000001 ...: export it as `CVAT for images 1.1`",
            )
        if tracks:
            videos.append((split_of_file(file), (file, tracks)))
            labels |= labels_of(root)
    return gather(folder, videos, _items, (lambda: labels) if labels else None)


def _frames(folder: Folder, file: str) -> dict[int, str]:
    return folder.frames_below(posixpath.dirname(file), r"^frame_(\d+)$")


def _items(folder: Folder, videos: list[tuple[str, list[Any]]], findings: Findings) -> Iterator[Item]:
    for file, tracks in videos:
        path, frames = folder.path(file), _frames(folder, file)
        items = {frame: Item([image], f"{path}: frame {frame}") for frame, image in frames.items()}
        for track in tracks:
            shown = _shown(track, path, findings)
            for frame, thing in (shown | _between(shown, sorted(frames))).items():
                if thing:
                    missing = Item([f"frame_{frame:06}"], f"{path}: frame {frame}", posixpath.dirname(file))
                    items.setdefault(frame, missing).things.append(thing)
        yield from (items[frame] for frame in sorted(items))


def _shown(track: Any, path: Path, findings: Findings) -> dict[int, Thing | None]:
    """A track's object by frame; None: it is outside the image."""
    shown: dict[int, Thing | None] = {}
    for shape in track:
        with findings.collect("boxes that cannot be read"):
            frame = int(number(shape.get("frame", ""), f"{path}: `frame` of a <{shape.tag}> in a <track>"))
            if shape.get("outside") == "1":
                shown[frame] = None
            elif shape.tag in NOT_OBJECTS:
                ignore(shape.tag, f"frame {frame} in {path.name}", findings)
            else:
                shape.set("label", track.get("label") or "")
                shown[frame] = thing_in(shape, f"{path}: frame {frame}")
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
