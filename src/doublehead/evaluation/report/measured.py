"""Results of one model on one split, from AP to decisions: the content of the report."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from doublehead.evaluation.bootstrap import THRESHOLDS, Matches, draws, mean_known
from doublehead.evaluation.evaluate import Evaluation
from doublehead.evaluation.matched import Matched, match
from doublehead.evaluation.report.confusion import Confusion, confusion
from doublehead.evaluation.report.groups import Group, by_crowding, by_overlap, by_size
from doublehead.evaluation.report.reliability import Reliability, reliability
from doublehead.evaluation.thresholds import Cut, Sweep, sweep

FIGURES = {"AP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}
"""Metrics with intervals, and the IoU thresholds that each is averaged over."""

CONFIDENCE = 0.95
SEED = 0
_MOST_DRAWS, _FEWEST_DRAWS, _CELLS = 1000, 100, 2**24  # of detections times draws, which takes some seconds

Interval = tuple[float, float]


@dataclass(frozen=True, eq=False)
class ClassMeasured:
    """One class: its best cut, and the interval of each of `FIGURES`."""

    sweep: Sweep
    best: Cut
    at_threshold: Cut  # accepted at the model's threshold
    intervals: dict[str, Interval]


@dataclass(frozen=True, eq=False)
class Measured:
    """Results of one model. Decisions are made at `cut.score`."""

    name: str
    evaluation: Evaluation
    matched: Matched
    draws: np.ndarray  # (figures, W) each of `FIGURES` over images drawn with replacement
    intervals: dict[str, Interval]
    sweep: Sweep  # all classes together
    best: Cut
    cut: Cut
    classes: list[ClassMeasured]
    confusion: Confusion
    reliability: Reliability
    uncalibrated: Reliability | None  # of scores before calibration, where the model is calibrated
    sizes: list[Group]
    overlaps: list[Group]
    crowding: list[Group]

    @property
    def brought(self) -> bool:
        """Whether the threshold is from the weights; otherwise it is the best one on these images."""
        return self.evaluation.threshold is not None


def measured(evaluation: Evaluation, name: str) -> Measured:
    """Compute all results of an evaluation.

    Args:
        evaluation: metrics and detections.
        name: name of the model.
    """
    split, metrics = evaluation.split, evaluation.metrics
    records, categories = split.records, split.categories
    decided = match(records, categories, evaluation.decided)
    whole = sweep(decided)
    threshold = whole.best.score if evaluation.threshold is None else evaluation.threshold
    threshold = 0.5 if math.isnan(threshold) else threshold
    matches = Matches(records, categories, evaluation.results, metrics.most)
    drawn = _drawn(matches, len(records), len(evaluation.results))
    totals = np.stack([mean_known(drawn[:, part].mean(1)) for part in FIGURES.values()])
    classes = []
    for label, aps in enumerate(drawn, 1):
        one = sweep(decided, label)
        intervals = {name: _interval(aps[part].mean(0)) for name, part in FIGURES.items()}
        classes.append(ClassMeasured(one, one.best, one.at(threshold), intervals))
    raw = evaluation.results is not evaluation.decided
    return Measured(
        name,
        evaluation,
        decided,
        totals,
        dict(zip(FIGURES, map(_interval, totals), strict=True)),
        whole,
        whole.best,
        whole.at(threshold),
        classes,
        confusion(decided, threshold),
        _reliability(decided),
        _reliability(match(records, categories, evaluation.results)) if raw else None,
        by_size(decided, threshold, [metrics[name] for name in ("APs", "APm", "APl")]),
        by_overlap(decided, threshold),
        by_crowding(decided, matches, threshold),
    )


def difference(one: Measured, other: Measured, figure: str) -> tuple[float, float, float]:
    """Difference of a metric between `one` and `other`, with its interval, on the same bootstrap samples."""
    place = list(FIGURES).index(figure)
    mean = one.evaluation.metrics[figure] - other.evaluation.metrics[figure]
    return mean, *_interval(one.draws[place] - other.draws[place])


def _drawn(matches: Matches, images: int, detections: int) -> np.ndarray:
    """AP of each class at each threshold over images drawn with replacement, (C, 10, W); the same draws for all."""
    if not images:
        return np.full((len(matches.classes), len(THRESHOLDS), 1), np.nan)
    number = int(np.clip(_CELLS // max(1, detections), _FEWEST_DRAWS, _MOST_DRAWS))
    return matches.by_class(draws(images, number, np.random.default_rng(SEED)))


def _interval(values: np.ndarray) -> Interval:
    """Central 95% of the values that are not NaN; NaN if all are."""
    known = values[~np.isnan(values)]
    if not len(known):
        return math.nan, math.nan
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _reliability(matched: Matched) -> Reliability:
    counted = ~matched.ignored
    return reliability(matched.score[counted], matched.hit[counted])
