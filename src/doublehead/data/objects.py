"""What readers of formats without ids share: images with objects called by their classes, to splits."""

from __future__ import annotations

import copy
import math
import os.path
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, TypeVar

from doublehead.common.errors import DoubleheadError, brief
from doublehead.data.folder import Folder, Pictures
from doublehead.data.images import image_size
from doublehead.data.records import (
    COORDINATE_LIMIT,
    Box,
    Categories,
    Findings,
    ImageBytes,
    Record,
    Split,
    note_box,
)
from doublehead.data.text import class_name, head_has, read_json_lines

Splits = dict[str, Callable[[str], Split]]  # split, as the dataset calls it -> its reader, given the name to be used

POLYGONS = "polygons reduced to the box around them"
MASKS = "masks reduced to the box around them"
ROTATED = "rotated boxes reduced to the upright box around them"
NAMES_CLEANED = "class names without their invisible characters"


@dataclass(frozen=True)
class NotMine:
    """Why a folder is not of a reader's format."""

    found: str  # what of the format is there: "labels/p1.txt"
    missing: str  # "classes.txt or data.yaml, which name the classes"


@dataclass(frozen=True)
class Thing:
    """An annotated object."""

    category: str
    box: Box
    crowd: bool = False
    reduced: str = ""  # the kind of finding, if the box was made from something else


@dataclass
class Item:
    """An image with its objects, as an annotation file has it."""

    names: Sequence[str]  # of the image file, the likeliest first
    where: str  # who says so, for errors: "p1.xml"
    beside: str = ""  # the folder of the annotation file
    size: tuple[int, int] | None = None
    things: list[Thing] = field(default_factory=list)
    fractions: bool = False  # boxes are fractions of the image's size
    content: ImageBytes | None = None  # where the image is no file of its own


Entry = TypeVar("Entry")  # of an annotation file
Parse = Callable[[Findings], Iterable[Item]]  # one split's items, with faults among the findings


def splits_by_name(
    folder: Folder, sources: dict[str, Parse], names: Callable[[], Iterable[str]] | None = None
) -> Splits:
    """Splits of a format that calls classes by name: in alphabetical order, with ids 1..C, alike in every split.

    Args:
        folder: the dataset.
        sources: split -> its items.
        names: all class names; None: those that any split has.
    """

    @cache
    def parsed(split: str) -> tuple[list[Item], Findings]:
        findings = Findings()
        return list(sources[split](findings)), findings

    @cache
    def categories() -> Categories:
        found = {thing.category for split in sources for item in parsed(split)[0] for thing in item.things}
        every = sorted(set(filter(None, map(class_name, names() if names else found))))
        if not every:
            raise DoubleheadError(f"{folder.root}: no annotation there holds an object, so there are no classes")
        return Categories(tuple(every), tuple(range(1, len(every) + 1)))

    def read(name: str, split: str) -> Split:
        chosen = categories()
        items, findings = parsed(split)
        return build(name, folder, items, chosen, copy.deepcopy(findings))

    return {split: partial(read, split=split) for split in sources}


def gather(
    folder: Folder,
    entries: Iterable[tuple[str, Entry]],
    parse: Callable[[Folder, list[Entry], Findings], Iterable[Item]],
    names: Callable[[], Iterable[str]] | None = None,
) -> Splits | None:
    """Group the entries of annotation files by split, and make splits of them; None: there are no entries.

    Args:
        folder: the dataset.
        entries: (split, entry), in the order of the files.
        parse: the items of one split's entries.
        names: as of `splits_by_name`.
    """
    sources: dict[str, list[Entry]] = {}
    for split, entry in entries:
        sources.setdefault(split, []).append(entry)
    parsers: dict[str, Parse] = {split: partial(parse, folder, found) for split, found in sources.items()}
    return splits_by_name(folder, parsers, names) if parsers else None


def build(name: str, folder: Folder, items: Sequence[Item], categories: Categories, findings: Findings) -> Split:
    """Items to records, with ids from 1 in their order."""
    label_of = {category: label for label, category in enumerate(categories.names, start=1)}
    files = [item.names[0] for item in items if item.names and not item.content]
    pictures = Pictures(folder, files, items[0].beside if items else "", name, ("images", "data", "JPEGImages"))
    records = []
    for number, item in enumerate(items, start=1):
        with findings.collect("images that cannot be used"):
            records.append(_record(number, item, pictures, label_of, findings))
    for one, other in pictures.doubles:
        findings.warn("images of the same name, the last one taken", f"{one}, {other}")
    return Split(name, records, categories, findings)


def _record(number: int, item: Item, pictures: Pictures, label_of: dict[str, int], findings: Findings) -> Record:
    if item.content:
        path = pictures.folder.path(item.names[0])
    else:
        found = next(filter(None, (pictures.seek(name, item.beside) for name in item.names)), None)
        path = pictures.folder.path(found) if found else pictures.find(item.names[0], item.where, item.beside)
    if not item.content and not os.path.isfile(path):  # a name too long for a file is no OSError here
        raise DoubleheadError(
            f"{item.where}: its image `{item.names[0]}` is not in {pictures.folder.root}", "images missing"
        )
    width, height = item.size or image_size(path, item.content.read() if item.content else None)
    boxes, labels, crowd = [], [], []
    for thing in item.things:
        with findings.collect("boxes that cannot be read", path):
            category = class_name(thing.category)
            if category not in label_of:
                raise DoubleheadError(
                    f"{item.where}: class `{category}` is not among {', '.join(label_of)}", "unknown classes"
                )
            if category != thing.category:
                findings.warn(NAMES_CLEANED, f"`{category}` in {item.where}")
            x1, y1, x2, y2 = thing.box
            box = (x1 * width, y1 * height, x2 * width, y2 * height) if item.fractions else thing.box
            where = f"{path.name} ({category})"
            if thing.reduced:
                findings.warn(thing.reduced, where, path, box)
            if note_box(box, width, height, where, path, findings):
                boxes.append(box)
                labels.append(label_of[category])
                crowd.append(thing.crowd)
    return Record.of(number, path, (width, height), boxes, labels, crowd, content=item.content)


def number(value: Any, what: str) -> float:
    """A finite number, also one written as text.

    Args:
        value: the number.
        what: file and field, for the error.

    Raises:
        DoubleheadError: it is no number, infinite or beyond all images.
    """
    try:
        found = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        found = math.nan
    if not abs(found) < COORDINATE_LIMIT:  # so written that NaN fails too
        shown = f"`{value[:40]}`" if isinstance(value, str) else brief(value)
        raise DoubleheadError(f"{what} must be a finite number, not {shown}")
    return found


def size_of(width: Any, height: Any) -> tuple[int, int] | None:
    """Width and height where both are positive numbers, else None: they are then read from the image."""
    try:
        sides = int(float(width)), int(float(height))
    except (TypeError, ValueError, OverflowError):
        return None
    return sides if min(sides) > 0 and max(sides) < COORDINATE_LIMIT else None


def pairs(points: Any, what: str) -> list[tuple[float, float]]:
    """Points as a file has them, [[x, y], ...], as numbers.

    Raises:
        DoubleheadError: they are something else.
    """
    if not isinstance(points, list) or not all(isinstance(point, list) and len(point) == 2 for point in points):
        raise DoubleheadError(f"{what} must be pairs of x and y, not {brief(points)}")
    return [(number(x, f"a point of {what}"), number(y, f"a point of {what}")) for x, y in points]


def label_in(entry: Any, key: str, where: str) -> str:
    """The class that an annotation names.

    Raises:
        DoubleheadError: it is no mapping, or names none.
    """
    label = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(label, str) or not label.strip():
        raise DoubleheadError(f"{where} has an annotation without `{key}`: {brief(entry)}")
    return label


def image_in(entry: Any, key: str, where: str) -> str:
    """The name or address of the image that an entry is about.

    Raises:
        DoubleheadError: it is no mapping, or names none.
    """
    name = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name:
        raise DoubleheadError(f"{where}: `{key}` must name an image: {brief(entry)}")
    return name


def numbers_in(box: Any, keys: Sequence[str], where: str) -> list[float]:
    """The numbers that a mapping has under these keys.

    Args:
        box: the mapping.
        keys: of the numbers.
        where: of the box, for errors.

    Raises:
        DoubleheadError: it is no mapping, or one of them is no number.
    """
    if not isinstance(box, dict):
        raise DoubleheadError(f"{where} must have {', '.join(keys)}, not {brief(box)}")
    return [number(box.get(key), f"{where}: `{key}`") for key in keys]


def corner_and_size(box: Any, keys: Sequence[str], where: str) -> Box:
    """A box that a mapping gives by its upper left corner and its size; arguments and errors as in `numbers_in`."""
    x, y, w, h = numbers_in(box, keys, where)
    return x, y, x + w, y + h


def json_lines(folder: Folder, suffixes: Sequence[str], marks: Sequence[str]) -> list[tuple[str, int, dict[str, Any]]]:
    """Rows of files of JSON lines whose heads have these marks: file, line, content.

    Raises:
        DoubleheadError: as in `read_json_lines`.
    """
    is_one = partial(head_has, marks=marks)
    files = [file for suffix in suffixes for file in folder.of_kind(suffix, is_one)]
    return [(file, line, row) for file in files for line, row in read_json_lines(folder.path(file))]


def points_in(points: Any, where: str) -> list[tuple[float, float]]:
    """Points given as mappings, [{"x": 1, "y": 2}, ...].

    Raises:
        DoubleheadError: they are something else.
    """
    if not isinstance(points, list) or not all(isinstance(point, dict) for point in points):
        raise DoubleheadError(f"{where} must be points with `x` and `y`, not {brief(points)}")
    return [(number(point.get("x"), f"{where}: `x`"), number(point.get("y"), f"{where}: `y`")) for point in points]


def in_turn(values: Any, what: str) -> list[tuple[float, float]]:
    """Points given as x and y in turn, [x1, y1, x2, y2, ...].

    Raises:
        DoubleheadError: they are something else.
    """
    if not isinstance(values, list) or len(values) % 2:
        raise DoubleheadError(f"{what} must be x and y in turn, not {brief(values)}")
    found = [number(value, what) for value in values]
    return list(zip(found[::2], found[1::2], strict=True))


def of_frames(
    frames: dict[int, str], things: Iterable[tuple[int, Thing]], where: str, home: str, name: str
) -> Iterator[Item]:
    """The frames of a video as images, in order, with their objects.

    Args:
        frames: frame -> image, as from `Folder.frames_below`.
        things: frame and object; a frame without an image becomes one whose image is missing.
        where: the annotation file, for errors.
        home: the folder of the images.
        name: how images are called, such as "frame_{:06}".
    """
    items = {frame: Item([image], f"{where}: frame {frame}") for frame, image in frames.items()}
    for frame, thing in things:
        missing = Item([name.format(frame)], f"{where}: frame {frame}", home)
        items.setdefault(frame, missing).things.append(thing)
    yield from (items[frame] for frame in sorted(items))


def ignore(kind: Any, where: str, findings: Findings) -> None:
    """Count an annotation that has no box, such as a point."""
    findings.warn(f"annotations without a box ignored ({kind})", where)


def around(points: Iterable[tuple[float, float]], what: str) -> Box:
    """The upright box around points.

    Raises:
        DoubleheadError: there are fewer than two points.
    """
    found = list(points)
    if len(found) < 2:
        raise DoubleheadError(f"{what} needs at least two points")
    xs, ys = zip(*found, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def around_rotated(box: Box, angle: float) -> Box:
    """The upright box around a box turned about its center by an angle in radians."""
    x1, y1, x2, y2 = box
    w, h = abs(x2 - x1), abs(y2 - y1)
    across = w * abs(math.cos(angle)) + h * abs(math.sin(angle))
    down = w * abs(math.sin(angle)) + h * abs(math.cos(angle))
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return x - across / 2, y - down / 2, x + across / 2, y + down / 2
