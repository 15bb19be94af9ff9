"""Detections of a split matched to its objects at one IoU, as columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from doublehead.common.categories import Categories
from doublehead.data.records import Record

IOU = 0.5
"""Minimum IoU of a pair of detection and object; for crowds, the covered share of the detection."""

_PAIRS = 2**20  # boxes compared at once, which bounds the memory


@dataclass(frozen=True, eq=False)
class Objects:
    """Annotated boxes of all images, one row each, in the order of records."""

    image: np.ndarray  # (N,) place of the record
    label: np.ndarray  # (N,) 1..C
    box: np.ndarray  # (N, 4) float64 xyxy
    area: np.ndarray  # (N,) as annotated
    crowd: np.ndarray  # (N,) bool

    @classmethod
    def of(cls, records: Sequence[Record]) -> Objects:
        """Collect the boxes of records."""
        counts = [len(record.boxes) for record in records]
        columns = [
            np.concatenate([np.asarray(getattr(record, name)) for record in records] or [np.empty(0)])
            for name in ("labels", "boxes", "areas", "crowd")
        ]
        label, box, area, crowd = columns
        image = np.repeat(np.arange(len(records)), counts)
        return cls(image, label.astype(np.int64), box.reshape(-1, 4).astype(np.float64), area, crowd.astype(bool))


@dataclass(frozen=True, eq=False)
class Matched:
    """Detections in falling order of score, with the results of COCO's matching at `IOU`.

    A hit is independent of the score threshold, since better detections are matched first.
    """

    records: Sequence[Record]
    categories: Categories
    objects: Objects
    place: np.ndarray  # (D,) its place among the results given
    image: np.ndarray  # (D,) place of the record
    label: np.ndarray  # (D,) 1..C
    score: np.ndarray  # (D,) falling
    box: np.ndarray  # (D, 4) float64 xyxy
    target: np.ndarray  # (D,) the object that it hits, a row of `objects`; -1: none
    ignored: np.ndarray  # (D,) bool: on a crowd of its class, neither right nor wrong
    pairs: np.ndarray  # (P, 2) detection and object of any class that overlap by `IOU`, crowds left out
    pair_iou: np.ndarray  # (P,)

    @property
    def hit(self) -> np.ndarray:
        """Mask of correct detections, (D,) bool."""
        return self.target >= 0

    @property
    def false(self) -> np.ndarray:
        """Mask of false detections, (D,) bool."""
        return ~self.hit & ~self.ignored

    @property
    def found_at(self) -> np.ndarray:
        """Score of the detection that hits each object, (N,); -1 if none does."""
        result = np.full(len(self.objects.label), -1.0)
        result[self.target[self.hit]] = self.score[self.hit]
        return result


def match(records: Sequence[Record], categories: Categories, results: Sequence[dict[str, Any]]) -> Matched:
    """Match detections to objects of their class by COCO's rules at `IOU`.

    Args:
        records: annotated images.
        categories: classes of the records.
        results: detections in COCO's result format.
    """
    places = {record.image_id: place for place, record in enumerate(records)}
    labels = {category: label for label, category in enumerate(categories.ids, 1)}
    score = np.array([result["score"] for result in results], np.float64)
    order = np.argsort(-score, kind="stable")
    image = np.array([places[result["image_id"]] for result in results], np.int64)[order]
    label = np.array([labels[result["category_id"]] for result in results], np.int64)[order]
    box = np.array([result["bbox"] for result in results], np.float64).reshape(-1, 4)[order]
    box[:, 2:] += box[:, :2]
    objects = Objects.of(records)
    pairs, iou = overlapping(image, box, objects, len(records))
    detection, row = pairs.T
    same, crowd = label[detection] == objects.label[row], objects.crowd[row]
    # Best detection first; each takes the object of the highest IoU (of equals the last), and a crowd if none is free.
    order_of_pairs = np.lexsort((-row, -iou, crowd, detection))
    chosen = greedy(pairs, order_of_pairs[same[order_of_pairs]], objects.crowd)
    target, ignored = np.full(len(score), -1), np.zeros(len(score), bool)
    hits = chosen[~crowd[chosen]]
    target[detection[hits]] = row[hits]
    ignored[detection[chosen[crowd[chosen]]]] = True
    columns = (order, image, label, score[order], box, target, ignored)
    return Matched(records, categories, objects, *columns, pairs[~crowd], iou[~crowd])


def greedy(pairs: np.ndarray, order: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """Greedy matching: visit pairs in order, and accept each whose detection and object are unmatched.

    Args:
        pairs: (P, 2) rows of detections and of objects.
        order: indices of pairs.
        shared: (N,) bool, objects that can be matched any number of times.

    Returns:
        Indices of the accepted pairs.
    """
    used_detections, used_objects, taken = set[int](), set[int](), list[int]()
    reusable = shared.tolist()
    for place, (detection, row) in zip(order.tolist(), pairs[order].tolist(), strict=True):
        if detection in used_detections or row in used_objects:
            continue
        used_detections.add(detection)
        if not reusable[row]:
            used_objects.add(row)
        taken.append(place)
    return np.array(taken, np.int64)


def overlapping(
    image: np.ndarray, box: np.ndarray, objects: Objects, images: int, least: float = IOU
) -> tuple[np.ndarray, np.ndarray]:
    """Find pairs of a box and an object of the same image that overlap.

    Args:
        image: (D,) index of each box's image.
        box: (D, 4) xyxy.
        objects: objects to compare with; for crowds, the covered share of the box replaces IoU.
        images: number of images.
        least: minimum IoU of a pair.

    Returns:
        (P, 2) rows of boxes and of objects, and their IoU (P,).
    """
    counts = np.bincount(objects.image, minlength=images)
    starts = np.cumsum(counts) - counts
    parts = [_compared(rows, image, box, objects, starts, counts, least) for rows in _in_parts(counts[image])]
    pairs = [pair for pair, _ in parts] or [np.empty((0, 2), np.int64)]
    return np.concatenate(pairs), np.concatenate([iou for _, iou in parts] or [np.empty(0)])


def _in_parts(counts: np.ndarray) -> Iterable[np.ndarray]:
    """Divide rows into parts of about `_PAIRS` pairs each."""
    if len(counts):
        part = np.cumsum(counts) // _PAIRS
        yield from np.split(np.arange(len(counts)), np.flatnonzero(np.diff(part)) + 1)


def _compared(
    rows: np.ndarray,
    image: np.ndarray,
    box: np.ndarray,
    objects: Objects,
    starts: np.ndarray,
    counts: np.ndarray,
    least: float,
) -> tuple[np.ndarray, np.ndarray]:
    many = counts[image[rows]]
    within = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
    left, right = np.repeat(rows, many), np.repeat(starts[image[rows]], many) + within
    a, b = box[left], objects.box[right]
    shared = (np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])).clip(0).prod(1)
    area, other = ((x[:, 2:] - x[:, :2]).clip(0).prod(1) for x in (a, b))
    iou = shared / np.maximum(np.where(objects.crowd[right], area, area + other - shared), 1e-12)
    kept = iou >= least
    return np.stack([left[kept], right[kept]], 1), iou[kept]
