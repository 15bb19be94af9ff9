"""Cost in AP of each kind of error, by the method of TIDE (Bolya et al., ECCV 2020).

Each false detection is of one kind, by its overlap with the objects of its image. An object is missed if no detection
finds it, even with its class or box fixed. The cost of a kind is the AP gained by fixing it alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from doublehead.data.records import Record
from doublehead.evaluation.analysis.proposals import iou
from doublehead.evaluation.coco import average_precision

FOREGROUND, BACKGROUND = 0.5, 0.1
"""Minimum IoU of a box with its object, and maximum IoU with unrelated objects."""

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
HIT, IGNORED = "hit", "ignored"


@dataclass(frozen=True, eq=False)
class Judged:
    """Detections of one image, best first, with their kinds of errors; and the missed objects."""

    record: Record
    boxes: np.ndarray  # (D, 4)
    scores: np.ndarray  # (D,)
    labels: np.ndarray  # (D,) 1..C of the data
    kinds: list[str]  # (D,) hit, ignored (on a crowd) or one of KINDS
    objects: np.ndarray  # (D,) the object that each hits, or would if its class or box were fixed; -1: none
    missed: np.ndarray  # (M,)

    @property
    def cost(self) -> float:
        """Cost of the image: sum of the scores of false detections, plus 1 for each missed object."""
        false = [score for score, kind in zip(self.scores, self.kinds, strict=True) if kind in KINDS]
        return float(sum(false)) + len(self.missed)


@dataclass(frozen=True)
class Breakdown:
    """AP at IoU 0.5, mean over classes, in 0..1; the gain by fixing each kind of error; and the number of each kind."""

    ap50: float
    gains: dict[str, float]
    counts: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Convert to plain values."""
        return {"AP50": self.ap50, "gains": self.gains, "counts": self.counts}


def judge(record: Record, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> Judged:
    """Match the detections of an image to its objects by COCO's rules at IoU 0.5, and classify the errors.

    Args:
        record: the image as annotated.
        boxes: (D, 4) xyxy in pixels of the image.
        scores: (D,).
        labels: (D,) 1..C of the data.
    """
    order = np.argsort(-scores, kind="stable")
    boxes, scores, labels = boxes[order], scores[order], labels[order]
    objects = np.flatnonzero(~record.crowd)
    overlaps = iou(boxes, record.boxes)
    same = labels[:, None] == record.labels[None]
    hits = _hits(overlaps, same & ~record.crowd)
    on_crowd = ((covered(boxes, record.boxes) >= FOREGROUND) & same & record.crowd).any(1)
    kinds, targets = [], hits.copy()
    for d, hit in enumerate(hits):
        if hit >= 0 or on_crowd[d]:
            kinds.append(HIT if hit >= 0 else IGNORED)
        else:
            kind, place = _kind(overlaps[d, objects], same[d, objects])
            kinds.append(kind)
            targets[d] = objects[place] if place >= 0 else -1
    return Judged(record, boxes, scores, labels, kinds, targets, np.setdiff1d(objects, targets))


def break_down(images: Sequence[Judged]) -> Breakdown:
    """Compute the cost of each kind of error over all images.

    Fixing a detection's class or box makes it a hit, unless its object is already found, or would be found by a better
    detection of the same kind; then, and for the other kinds, fixing removes the detection. Fixing missed objects
    removes them from the number of objects.
    """
    classes = sorted({int(label) for image in images for label in image.record.labels[~image.record.crowd]})
    rows = [row for number, image in enumerate(images) for row in _rows(number, image)]
    rows.sort(key=lambda row: -row.score)
    found = {row.target for row in rows if row.kind == HIT}
    wanted = Counter(int(label) for image in images for label in image.record.labels[~image.record.crowd])
    missed = Counter(int(image.record.labels[i]) for image in images for i in image.missed)
    ap50 = _mean_ap(rows, wanted, classes)
    gains = {kind: _mean_ap(_fixed(rows, kind, found), wanted, classes) - ap50 for kind in KINDS[:-1]}
    gains["missed"] = _mean_ap(rows, wanted - missed, classes) - ap50
    counts = Counter(row.kind for row in rows if row.kind in KINDS)
    return Breakdown(ap50, gains, {kind: counts[kind] for kind in KINDS[:-1]} | {"missed": missed.total()})


@dataclass(frozen=True)
class _ScoredDetection:
    """A detection, as AP sees it."""

    label: int
    score: float
    kind: str
    target: tuple[int, int]  # image and object; object -1: none
    fixed_label: int


def _rows(number: int, image: Judged) -> list[_ScoredDetection]:
    detections = zip(image.labels, image.scores, image.kinds, image.objects, strict=True)
    return [
        _ScoredDetection(
            int(label), float(score), kind, (number, int(i)), int(image.record.labels[i]) if i >= 0 else int(label)
        )
        for label, score, kind, i in detections
        if kind != IGNORED
    ]


def _fixed(rows: list[_ScoredDetection], kind: str, found: set[tuple[int, int]]) -> list[_ScoredDetection]:
    """Detections, best first, with one kind of error fixed."""
    taken, result = set(found), []
    for row in rows:
        if row.kind != kind:
            result.append(row)
        elif kind in ("classification", "localisation") and row.target not in taken:
            taken.add(row.target)
            result.append(_ScoredDetection(row.fixed_label, row.score, HIT, row.target, row.fixed_label))
    return result


def _mean_ap(rows: list[_ScoredDetection], wanted: Counter[int], classes: list[int]) -> float:
    aps = []
    for label in classes:
        own = [row for row in rows if row.label == label]
        scores, hits = np.array([row.score for row in own]), np.array([row.kind == HIT for row in own], bool)
        # No object left to find: all of them were missed, and now count as found.
        aps.append(average_precision(scores, hits, wanted[label]) if wanted[label] else 1.0)
    return float(np.mean(aps)) if aps else float("nan")


def _hits(overlaps: np.ndarray, possible: np.ndarray) -> np.ndarray:
    """Object that each detection hits, best detection first; -1: none. All arrays (D, N)."""
    free, hits = np.ones(overlaps.shape[1], bool), np.full(len(overlaps), -1)
    for d, row in enumerate(np.where(possible, overlaps, 0)):
        open_ = row * free
        if open_.max(initial=0) >= FOREGROUND:
            hits[d] = int(open_.argmax())
            free[hits[d]] = False
    return hits


def covered(boxes: np.ndarray, crowds: np.ndarray) -> np.ndarray:
    """The share of each box's own area that each crowd covers, (D, N)."""
    a, b = boxes.astype(np.float64)[:, None], crowds.astype(np.float64)[None]
    overlap = (np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])).clip(0).prod(-1)
    return overlap / np.maximum((a[..., 2:] - a[..., :2]).clip(0).prod(-1), 1e-12)


def _kind(overlaps: np.ndarray, same: np.ndarray) -> tuple[str, int]:
    """The kind of a false detection, and the object it would hit if its class or box were fixed (-1: none)."""
    own, other = np.where(same, overlaps, 0), np.where(same, 0, overlaps)
    if BACKGROUND <= own.max(initial=0) < FOREGROUND:
        return "localisation", int(own.argmax())
    if other.max(initial=0) >= FOREGROUND:
        return "classification", int(other.argmax())
    if own.max(initial=0) >= FOREGROUND:
        return "duplicate", -1
    return ("background" if other.max(initial=0) <= BACKGROUND else "both"), -1
