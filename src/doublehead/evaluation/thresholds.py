"""Precision, recall and F1 at every score that detections could be cut at, and the best of these."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from doublehead.evaluation.matched import Matched


@dataclass(frozen=True)
class Cut:
    """What comes of accepting the detections from a score on."""

    score: float
    true: int
    false: int
    missed: int

    @property
    def precision(self) -> float:
        """Share of the accepted detections that are right; NaN where none is accepted."""
        return _ratio(self.true, self.true + self.false)

    @property
    def recall(self) -> float:
        """Share of the objects that are found; NaN without objects."""
        return _ratio(self.true, self.true + self.missed)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; NaN without objects."""
        return _ratio(2 * self.true, 2 * self.true + self.false + self.missed) if self.true + self.missed else np.nan


@dataclass(frozen=True, eq=False)
class Sweep:
    """Detections of one class, or of all together, that could be cut at any score."""

    scores: np.ndarray  # (D,) falling, those on crowds left out
    true: np.ndarray  # (D,) how many are right up to each
    objects: int  # to find

    def at(self, score: float) -> Cut:
        """Accept the detections from this score on."""
        accepted = int(np.searchsorted(-self.scores, -score, side="right"))
        true = int(self.true[accepted - 1]) if accepted else 0
        return Cut(float(score), true, accepted - true, self.objects - true)

    @property
    def best(self) -> Cut:
        """The cut of the highest F1, midway between the last score accepted and the next; NaN without objects."""
        if not self.objects or not len(self.scores):
            return Cut(np.nan, 0, 0, self.objects)
        accepted = np.arange(1, len(self.scores) + 1)
        f1 = 2 * self.true / (accepted + self.objects)
        f1[:-1][self.scores[:-1] == self.scores[1:]] = -1  # equal scores are accepted together
        last = int(f1.argmax())
        lowest = float(self.scores[last])
        if last + 1 < len(self.scores):
            middle = round((lowest + float(self.scores[last + 1])) / 2, 4)
            lowest = middle if self.scores[last + 1] < middle <= lowest else lowest
        return self.at(lowest)


def sweep(matched: Matched, label: int | None = None) -> Sweep:
    """Detections and objects of one class, or of all together."""
    chosen = ~matched.ignored if label is None else ~matched.ignored & (matched.label == label)
    objects = ~matched.objects.crowd if label is None else ~matched.objects.crowd & (matched.objects.label == label)
    return Sweep(matched.score[chosen], np.cumsum(matched.hit[chosen]), int(objects.sum()))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
