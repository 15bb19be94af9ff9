"""Scores and boxes against the IoU of proposals, by object (paper, sections 3.1 and 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torchvision.ops import nms

from doublehead.evaluation.analysis.proposals import SIZES, bin_of
from doublehead.evaluation.budget import BINS

FOREGROUND = 0.5
"""Minimum IoU of the proposals that a regressor is trained on."""

_ROUNDS = 2000


class Bins:
    """Mean and standard deviation of a value in each range of proposal IoU, over all proposals added so far."""

    def __init__(self) -> None:
        self._sums = np.zeros((3, BINS))

    def add(self, ious: np.ndarray, values: np.ndarray) -> None:
        """Add the values (W,) of proposals with these IoUs (W,)."""
        places, values = bin_of(ious), values.astype(np.float64)
        for row, power in zip(self._sums, (np.ones_like(values), values, values**2), strict=True):
            row += np.bincount(places, power, BINS)

    @property
    def count(self) -> np.ndarray:
        """(20,) proposals in each range."""
        return self._sums[0].astype(np.int64)

    @property
    def mean(self) -> np.ndarray:
        """(20,), NaN where a range is empty."""
        with np.errstate(invalid="ignore"):
            return self._sums[1] / self._sums[0]

    @property
    def deviation(self) -> np.ndarray:
        """(20,) standard deviation, NaN where a range is empty."""
        with np.errstate(invalid="ignore"):
            return np.sqrt((self._sums[2] / self._sums[0] - self.mean**2).clip(0))


@dataclass
class Curve:
    """Value of a head against proposal IoU, for all objects and by size, with one figure per object.

    The figure of a classifying head is the PCC of score and IoU. That of a regressing head is the mean IoU of boxes
    regressed from foreground proposals, NaN for objects without any.
    """

    model: str
    branch: str
    bins: dict[str, Bins] = field(default_factory=lambda: {size: Bins() for size in ("all", *SIZES)})
    per_object: list[float] = field(default_factory=list)

    def add(self, size: str, ious: np.ndarray, values: np.ndarray, figure: float) -> None:
        """Add one object."""
        for key in ("all", size):
            self.bins[key].add(ious, values)
        self.per_object.append(figure)


@dataclass
class Survivors:
    """Windows of each object that survive NMS, with scores of one head and boxes of one head, or unchanged (None)."""

    model: str
    score_branch: str
    box_branch: str | None
    best: list[float] = field(default_factory=list)  # IoU of the best-scored box; 0 if no score passes the threshold
    kept: list[int] = field(default_factory=list)  # boxes that survive
    mean: list[float] = field(default_factory=list)  # mean IoU of these; NaN if there is none


def pcc(scores: np.ndarray, ious: np.ndarray) -> float:
    """Pearson correlation of score and IoU; NaN if either is constant."""
    if len(scores) < 2 or np.ptp(scores) == 0 or np.ptp(ious) == 0:
        return float("nan")
    return float(np.corrcoef(scores.astype(np.float64), ious)[0, 1])


def foreground_mean(ious: np.ndarray, regressed: np.ndarray) -> float:
    """Mean IoU of the boxes regressed from proposals (W,) with an IoU of at least 0.5; NaN if there are none."""
    return mean(regressed[ious >= FOREGROUND])


def survive(boxes: np.ndarray, scores: np.ndarray, threshold: float, iou: float) -> np.ndarray:
    """Indices of an object's boxes (W, 4) above a score that survive NMS, best first."""
    candidates = np.flatnonzero(scores > threshold)
    kept = nms(torch.from_numpy(boxes[candidates]).double(), torch.from_numpy(scores[candidates]).double(), iou)
    return candidates[kept.numpy()]


@dataclass(frozen=True)
class Interval:
    """Mean difference, with the bounds of its 95% interval and the number of objects."""

    mean: float
    low: float
    high: float
    objects: int

    @property
    def certain(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def difference(ours: Sequence[float], theirs: Sequence[float], images: Sequence[int]) -> Interval:
    """Mean of `ours - theirs` over objects that have both values, with its bootstrap interval.

    Images are resampled rather than objects, since objects of one image are similar.
    """
    paired = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    known = ~np.isnan(paired)
    if not known.any():
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    _, image = np.unique(np.asarray(images)[known], return_inverse=True)
    sums, counts = np.bincount(image, paired[known]), np.bincount(image)
    drawn = np.random.default_rng(0).integers(0, len(sums), (_ROUNDS, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return Interval(float(paired[known].mean()), float(low), float(high), int(known.sum()))


def mean(values: Sequence[float] | np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN if all are."""
    array = np.asarray(values, np.float64)
    array = array[~np.isnan(array)]
    return float(array.mean()) if len(array) else float("nan")
