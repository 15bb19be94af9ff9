"""Results by the size of objects and by crowding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from doublehead.evaluation.analysis.proposals import BORDERS, SIZES
from doublehead.evaluation.bootstrap import Matches
from doublehead.evaluation.matched import Matched, overlapping
from doublehead.evaluation.thresholds import Cut

CROWDING = (0, 1, 2, 5, 10, 20, 50)
"""Lower bounds of the ranges of objects per image."""

TOUCHING = (0.0, 0.01, 0.1, 0.3)
"""Lower bounds of the ranges of an object's largest IoU with another."""


@dataclass(frozen=True)
class Group:
    """A group of objects. Without `cut` only recall is known, since false detections belong to no object."""

    name: str
    images: int | None
    objects: int
    found: int
    cut: Cut | None = None
    ap: float = float("nan")

    @property
    def recall(self) -> float:
        """Share of objects that are found."""
        return self.found / self.objects if self.objects else float("nan")


def by_size(matched: Matched, score: float, ap: Sequence[float]) -> list[Group]:
    """Group objects by COCO's sizes, with recall at a score, and `ap` of each size."""
    names = (f"{SIZES[0]}, under 32 x 32", SIZES[1], f"{SIZES[2]}, from 96 x 96")
    groups = _of_objects(matched, score, np.digitize(matched.objects.area, BORDERS), names)
    return [Group(g.name, None, g.objects, g.found, ap=value) for g, value in zip(groups, ap, strict=True)]


def by_overlap(matched: Matched, score: float) -> list[Group]:
    """Group objects by their largest IoU with another object of the image."""
    truth = matched.objects
    pairs, iou = overlapping(truth.image, truth.box, truth, len(matched.records), least=TOUCHING[1])
    others = pairs[:, 0] != pairs[:, 1]
    largest = np.zeros(len(truth.label))
    np.maximum.at(largest, pairs[others, 0], iou[others])
    edges = TOUCHING[1:]
    names = ("alone", *(f"IoU from {low:g}" for low in edges))
    return _of_objects(matched, score, np.digitize(largest, edges), names)


def by_crowding(matched: Matched, matches: Matches, score: float) -> list[Group]:
    """Group images by their number of objects."""
    truth, images = matched.objects, len(matched.records)
    counts = np.bincount(truth.image[~truth.crowd], minlength=images)
    place = np.digitize(counts, CROWDING) - 1
    found = np.bincount(truth.image[matched.found_at >= score], minlength=images)
    false = np.bincount(matched.image[matched.false & (matched.score >= score)], minlength=images)
    ends = [*(end - 1 for end in CROWDING[1:]), None]
    groups = []
    for number, (low, high) in enumerate(zip(CROWDING, ends, strict=True)):
        chosen = place == number
        if chosen.any():
            objects, hits = int(counts[chosen].sum()), int(found[chosen].sum())
            cut = Cut(score, hits, int(false[chosen].sum()), objects - hits)
            name = f"{low}" if high == low else f"{low} or more" if high is None else f"{low} to {high}"
            ap = float(matches.ap(chosen[None].astype(np.int64))[0])
            groups.append(Group(name, int(chosen.sum()), objects, hits, cut, ap))
    return groups


def _of_objects(matched: Matched, score: float, place: np.ndarray, names: Sequence[str]) -> list[Group]:
    counted, found = ~matched.objects.crowd, matched.found_at >= score
    return [
        Group(name, None, int((counted & (place == n)).sum()), int((counted & found & (place == n)).sum()))
        for n, name in enumerate(names)
    ]
