"""Pictures of the report: crops of confusions, and the worst images."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from doublehead.common.pages.pages import jpeg
from doublehead.common.threads import in_threads
from doublehead.data.images import read_image
from doublehead.data.records import Record
from doublehead.evaluation.matched import Matched
from doublehead.evaluation.report.confusion import Confusion

CROPS = 360
"""Maximum crops on a page, about 2 MB."""

OF_CELL, OF_DIAGONAL = 12, 4
"""Maximum crops per cell of the confusion matrix; fewer on the diagonal."""

WORST = 12
"""Maximum images shown whole."""

DRAWN = 300
"""Maximum detections, and maximum objects, drawn on an image."""

_SIDE, _LONG_SIDE = 112, 720  # pixels
TRUTH, FOUND = "#37d67a", "#ff6b3d"


@dataclass(frozen=True)
class Crop:
    """Crop of a detection, an object, or both, with their surroundings."""

    uri: str
    words: str


@dataclass(frozen=True)
class Box:
    """A box on an image shown whole, in its pixels: x, y, width, height."""

    place: tuple[float, float, float, float]
    name: str
    score: float  # of a detection; of an object that of the detection which finds it, or -1
    right: bool = True


@dataclass(frozen=True)
class Shown:
    """A whole image with its boxes."""

    uri: str
    name: str
    size: tuple[int, int]
    false: int
    missed: int
    objects: list[Box]
    detections: list[Box]
    left_out: int  # boxes


def crops(matched: Matched, confusion: Confusion) -> dict[tuple[int, int], list[Crop]]:
    """Crops by cell of the confusion matrix: highest scores, and largest missed objects."""
    by_image: dict[int, list[int]] = defaultdict(list)
    for place in _chosen(matched, confusion).tolist():
        by_image[_image(matched, confusion, place)].append(place)

    def look(item: tuple[int, list[int]]) -> list[Crop]:
        record = matched.records[item[0]]
        image = read_image(record.path, record.encoded())
        return [_crop(image, record, matched, confusion, place) for place in item[1]]

    found: dict[tuple[int, int], list[Crop]] = defaultdict(list)
    made: dict[int, Crop] = {}
    for (_, places), several in zip(by_image.items(), in_threads(look, list(by_image.items())), strict=True):
        made.update(zip(places, several, strict=True))
    weight = _weight(matched, confusion)
    for place in sorted(made, key=lambda place: -weight[place]):
        row, column = confusion.cells[place].tolist()
        found[row, column].append(made[place])
    return found


def worst(matched: Matched, score: float) -> list[Shown]:
    """Images with most false detections and missed objects at a score; ties by the scores of false detections."""
    truth, images = matched.objects, len(matched.records)
    accepted = matched.false & (matched.score >= score)
    false = np.bincount(matched.image[accepted], minlength=images)
    missed = np.bincount(truth.image[~truth.crowd & (matched.found_at < score)], minlength=images)
    weight = np.bincount(matched.image[accepted], matched.score[accepted], minlength=images)
    order = np.lexsort((-weight, -(false + missed)))[:WORST]
    chosen = [int(place) for place in order if false[place] + missed[place]]

    def look(place: int) -> Shown:
        return _shown(matched, place, int(false[place]), int(missed[place]))

    return list(in_threads(look, chosen))


def _weight(matched: Matched, confusion: Confusion) -> np.ndarray:
    """Sort key of a cell's crops: the score, or for missed objects the area relative to the largest."""
    areas = matched.objects.area / max(1.0, float(matched.objects.area.max(initial=1)))
    alone = confusion.detections < 0
    return np.where(alone, np.append(areas, 0)[confusion.objects], np.append(matched.score, 0)[confusion.detections])


def _chosen(matched: Matched, confusion: Confusion) -> np.ndarray:
    """Indices of the crops: one of each cell first, then a second of each ..., confusions before hits."""
    width = len(confusion.matrix)
    cell = confusion.cells[:, 0] * width + confusion.cells[:, 1]
    order = np.lexsort((-_weight(matched, confusion), cell))
    rank = np.empty(len(cell), np.int64)
    rank[order] = np.arange(len(cell)) - np.searchsorted(cell[order], cell[order])
    right = confusion.cells[:, 0] == confusion.cells[:, 1]
    allowed = np.flatnonzero(rank < np.where(right, OF_DIAGONAL, OF_CELL))
    count = confusion.matrix.reshape(-1)[cell]
    first = np.lexsort((-count[allowed], right[allowed], rank[allowed]))
    return allowed[first][:CROPS]


def _image(matched: Matched, confusion: Confusion, place: int) -> int:
    detection = confusion.detections[place]
    return int(matched.image[detection] if detection >= 0 else matched.objects.image[confusion.objects[place]])


def _crop(image: Image.Image, record: Record, matched: Matched, confusion: Confusion, place: int) -> Crop:
    row, detection = confusion.objects[place], confusion.detections[place]
    frames = []
    if row >= 0:
        frames.append((TRUTH, matched.objects.box[row]))
    if detection >= 0:
        frames.append((FOUND, matched.box[detection]))
    said = f"{matched.score[detection]:.2f} " if detection >= 0 else ""
    return Crop(framed(image, frames, _SIDE), f"{said}{record.path.name}")


def framed(image: Image.Image, frames: list[tuple[str, np.ndarray]], side: int) -> str:
    """Crop boxes with their surroundings, as a data URI.

    Args:
        image: the whole image.
        frames: colour and box (4,) xyxy in pixels; at least one.
        side: longer side of the result in pixels.
    """
    boxes = np.stack([box for _, box in frames])
    low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    half = max(24.0, 0.75 * float((high - low).max()))
    middle = (low + high) / 2
    left, top = (int(max(0, v)) for v in middle - half)
    right, bottom = (
        int(min(most, max(v, first + 1))) for v, most, first in zip(middle + half, image.size, (left, top), strict=True)
    )
    left, top = min(left, right - 1), min(top, bottom - 1)
    scale = side / max(right - left, bottom - top)
    size = [max(1, round(length * scale)) for length in (right - left, bottom - top)]
    crop = image.resize((size[0], size[1]), box=(left, top, right, bottom))
    pen = ImageDraw.Draw(crop)
    for colour, box in frames:
        corners = ((box - [left, top, left, top]) * scale).clip(0, [size[0] - 1, size[1] - 1] * 2)
        pen.rectangle(tuple(corners), outline=colour, width=2)
    return jpeg(crop)


def _shown(matched: Matched, place: int, false: int, missed: int) -> Shown:
    record, truth = matched.records[place], matched.objects
    rows = np.flatnonzero((truth.image == place) & ~truth.crowd)
    found = np.flatnonzero((matched.image == place) & ~matched.ignored)
    image = read_image(record.path, record.encoded())
    scale = _LONG_SIDE / max(image.size)
    small = image.resize([max(1, round(side * scale)) for side in image.size]) if scale < 1 else image
    found_at, hit = matched.found_at[rows], matched.hit[found]
    objects = [
        Box(_place(truth.box[row]), matched.categories.names[truth.label[row] - 1], float(score))
        for row, score in zip(rows[:DRAWN], found_at, strict=False)
    ]
    detections = [
        Box(
            _place(matched.box[d]), matched.categories.names[matched.label[d] - 1], float(matched.score[d]), bool(right)
        )
        for d, right in zip(found[:DRAWN], hit, strict=False)
    ]
    left_out = len(rows) + len(found) - len(objects) - len(detections)
    return Shown(jpeg(small), record.path.name, image.size, false, missed, objects, detections, left_out)


def _place(box: np.ndarray) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (round(float(v), 1) for v in box)
    return x1, y1, round(x2 - x1, 1), round(y2 - y1, 1)
