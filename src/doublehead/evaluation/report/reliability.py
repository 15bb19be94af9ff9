"""Reliability: whether 8 of 10 detections with a score of 0.8 are correct."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 10
"""Number of equal score ranges."""


@dataclass(frozen=True, eq=False)
class Reliability:
    """Number of detections, mean score and share of correct detections in each score range."""

    count: np.ndarray  # (BINS,)
    score: np.ndarray  # (BINS,) NaN where there are none
    right: np.ndarray  # (BINS,) likewise

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of score and share, by count (Naeini et al., AAAI 2015)."""
        distance = np.nan_to_num(np.abs(self.right - self.score))
        return float((distance * self.count).sum() / self.count.sum()) if self.count.sum() else float("nan")


def reliability(scores: np.ndarray, right: np.ndarray) -> Reliability:
    """Group detections by score.

    Args:
        scores: (D,) in 0..1.
        right: (D,) bool, whether each is correct.
    """
    place = np.minimum((scores * BINS).astype(int), BINS - 1)
    count, total, hits = (np.bincount(place, weights, BINS) for weights in (None, scores, right.astype(float)))
    with np.errstate(invalid="ignore"):
        return Reliability(count, total / count, hits / count)
