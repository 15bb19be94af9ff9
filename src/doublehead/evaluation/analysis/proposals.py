"""Predefined proposals: windows around each object, equally many in each range of IoU with it (paper, section 3).

They depend on the annotations alone, so every model is run on the same windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from doublehead.common.errors import DoubleheadError
from doublehead.data.records import Record
from doublehead.evaluation.budget import BINS, Budget

SIZES = ("small", "medium", "large")
BORDERS = (32**2, 96**2)  # COCO's, in pixels of area

_DRAWN, _KEPT = 600_000, 10_000  # windows drawn, and kept of each range; the rarest has 12,458


@dataclass(frozen=True, eq=False)
class Object:
    """An annotated object that is surrounded by windows."""

    image_id: int
    canvas: tuple[int, int]  # width and height of the image
    box: np.ndarray  # (4,) float64 xyxy, inside the image
    label: int  # 1..C of the data
    size: str  # one of SIZES, by the annotated area
    others: np.ndarray  # (M, 4) the image's other boxes of this class, crowds among them

    def windows(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Windows (W, 4) float32 xyxy inside the image, and their IoU (W,) with the object, `count / 20` to each range.

        Windows that overlap another object of the class more than this one are excluded. Images without room for all
        give fewer: an object that fills its image has no windows with an IoU near 0.
        """
        for kept in (15 * count // BINS, _KEPT):  # most objects need no more than the first
            windows, ious = self._own_of(_pool(min(kept, _KEPT)))
            chosen = [np.flatnonzero(bin_of(ious) == place)[: count // BINS] for place in range(BINS)]
            if all(len(places) == count // BINS for places in chosen):
                break
        places = np.concatenate(chosen)
        return windows[places], ious[places]

    def _own_of(self, relative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Windows inside the image that belong to this object, and their IoU with it."""
        corner, sides = self.box[:2], self.box[2:] - self.box[:2]
        windows = (relative.reshape(-1, 2, 2) * sides + corner).reshape(-1, 4).astype(np.float32)
        windows = windows[((windows >= 0) & (windows <= np.tile(self.canvas, 2))).all(1)]
        ious = iou(windows, self.box[None])[:, 0]
        if not len(self.others):
            return windows, ious
        own = iou(windows, self.others).max(1) <= ious
        return windows[own], ious[own]


def choose(records: Sequence[Record], budget: Budget) -> tuple[list[Record], list[Object]]:
    """Sample images and objects within the budget, with a fixed seed.

    Crowds, and boxes under a pixel wide or high, are excluded.

    Raises:
        DoubleheadError: there are no objects.
    """
    records = _some(records, budget.images)
    objects = _some([o for record in records for o in objects_of(record)], budget.objects)
    if not objects:
        raise DoubleheadError("these images have no annotated objects; choose another split")
    return records, objects


def objects_of(record: Record) -> list[Object]:
    """Objects of an image that can be surrounded by windows."""
    inside = record.boxes.astype(np.float64).clip(0, np.tile([record.width, record.height], 2))
    result = []
    for i, box in enumerate(inside):
        if record.crowd[i] or (box[2:] - box[:2] < 1).any():
            continue
        same = record.labels == record.labels[i]
        same[i] = False
        size = SIZES[int(np.digitize(record.areas[i], BORDERS))]
        canvas = (record.width, record.height)
        result.append(Object(record.image_id, canvas, box, int(record.labels[i]), size, inside[same]))
    return result


def bin_of(ious: np.ndarray) -> np.ndarray:
    """Range 0..19 of each IoU; an IoU of 1 is in the last."""
    return np.minimum((ious * BINS).astype(np.int64), BINS - 1)


def iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU (N, M) of boxes (N, 4) and (M, 4) xyxy, in float64; 0 where neither has area."""
    a, b = boxes.astype(np.float64)[:, None], others.astype(np.float64)[None]
    overlap = (np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])).clip(0).prod(-1)
    areas = [(x[..., 2:] - x[..., :2]).clip(0).prod(-1) for x in (a, b)]
    return overlap / np.maximum(areas[0] + areas[1] - overlap, 1e-12)


@cache
def _pool(kept: int) -> np.ndarray:
    """Windows (K, 4) of every size and offset around the unit box, in random order, equally many per range of IoU.

    The spread of sizes and offsets varies between windows: with a single spread, some ranges would be empty.
    """
    rng = np.random.default_rng(0)
    spread = np.exp(rng.uniform(np.log(0.004), 0, (_DRAWN, 1)))
    centre = 0.5 + 1.3 * spread * rng.uniform(-1, 1, (_DRAWN, 2))
    half = 0.5 * np.exp(np.log(8) * spread * rng.uniform(-1, 1, (_DRAWN, 2)))
    windows = np.concatenate([centre - half, centre + half], 1)
    places = bin_of(iou(windows, np.array([[0, 0, 1, 1]]))[:, 0])
    return windows[np.concatenate([np.flatnonzero(places == place)[:kept] for place in range(BINS)])]


def _some(items: Sequence, count: int | None) -> list:
    """Sample at most `count` items, keeping their order."""
    if count is None or len(items) <= count:
        return list(items)
    return [items[i] for i in sorted(np.random.default_rng(0).choice(len(items), count, replace=False))]
