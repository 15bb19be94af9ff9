"""Scores and boxes against the IoU of proposals, gathered object by object (paper, section 3.1 and 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torchvision.ops import nms

from doublehead.evaluation.analysis.proposals import SIZES, bin_of
from doublehead.evaluation.budget import BINS

FOREGROUND = 0.5
"""Least IoU of the proposals that a regressor is trained on."""

_ROUNDS = 2000


class Bins:
    """Mean and deviation of a value in each range of proposal IoU, over all proposals given so far."""

    def __init__(self) -> None:
        self._sums = np.zeros((3, BINS))

    def add(self, ious: np.ndarray, values: np.ndarray) -> None:
        """Count the values (W,) of proposals with these IoUs (W,)."""
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
    """Of one head: a value against proposal IoU, for all objects and by their size, and one figure per object.

    The figure is the PCC of score and IoU of a head that classifies, and the mean IoU of the boxes regressed from
    foreground proposals of a head that regresses; NaN where an object has none.
    """

    model: str
    branch: str
    bins: dict[str, Bins] = field(default_factory=lambda: {size: Bins() for size in ("all", *SIZES)})
    per_object: list[float] = field(default_factory=list)

    def add(self, size: str, ious: np.ndarray, values: np.ndarray, figure: float) -> None:
        """Count one object."""
        for key in ("all", size):
            self.bins[key].add(ious, values)
        self.per_object.append(figure)


@dataclass
class Survivors:
    """What NMS leaves of each object's windows, scored by one head and boxed by one, or left where they are (None)."""

    model: str
    score_branch: str
    box_branch: str | None
    best: list[float] = field(default_factory=list)  # IoU of the best-scored box; 0 if no score passes the threshold
    kept: list[int] = field(default_factory=list)  # boxes that survive
    mean: list[float] = field(default_factory=list)  # mean IoU of these; NaN if there is none


def pcc(scores: np.ndarray, ious: np.ndarray) -> float:
    """Pearson's correlation of score and IoU; NaN where either is constant."""
    if len(scores) < 2 or np.ptp(scores) == 0 or np.ptp(ious) == 0:
        return float("nan")
    return float(np.corrcoef(scores.astype(np.float64), ious)[0, 1])


def foreground_mean(ious: np.ndarray, regressed: np.ndarray) -> float:
    """Mean IoU (W,) of the boxes regressed from the proposals that have at least 0.5; NaN if there is none."""
    return mean(regressed[ious >= FOREGROUND])


def survive(boxes: np.ndarray, scores: np.ndarray, threshold: float, iou: float) -> np.ndarray:
    """Which of one object's boxes (W, 4) NMS leaves of those above a score, best first."""
    candidates = np.flatnonzero(scores > threshold)
    kept = nms(torch.from_numpy(boxes[candidates]).double(), torch.from_numpy(scores[candidates]).double(), iou)
    return candidates[kept.numpy()]


@dataclass(frozen=True)
class Interval:
    """A mean difference, the bounds of its 95% interval, and how many objects it is of."""

    mean: float
    low: float
    high: float
    objects: int

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def difference(ours: Sequence[float], theirs: Sequence[float], images: Sequence[int]) -> Interval:
    """Mean of `ours - theirs` over objects that have both, and its bootstrap interval.

    Images are drawn, not objects: those of one image are alike.
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
    """The mean of what is not NaN; NaN if nothing is."""
    array = np.asarray(values, np.float64)
    array = array[~np.isnan(array)]
    return float(array.mean()) if len(array) else float("nan")
