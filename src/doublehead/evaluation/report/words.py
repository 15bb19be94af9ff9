"""What was found, in sentences made from the numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from doublehead.evaluation.report.measured import Measured, difference


def found(one: Measured) -> list[tuple[str, str]]:
    """What the page begins with, each sentence under its topic."""
    metrics, (low, high) = one.evaluation.metrics, one.intervals["AP"]
    return [
        (
            "AP",
            f"{_percent(metrics['AP'])}, 95% interval {_percent(low)} to {_percent(high)} over {metrics.images} "
            f"images; AP50 {_percent(metrics['AP50'])}, AP75 {_percent(metrics['AP75'])}.",
        ),
        ("Threshold", _threshold(one)),
        ("Confusions", _confusions(one)),
        ("Calibration", _calibration(one)),
    ]


def compared(models: Sequence[Measured]) -> list[tuple[str, str]]:
    """By how much each model's AP passes the first one's; a difference is claimed where its interval leaves out 0."""
    first, *others = models
    result = []
    for one in others:
        gain, low, high = difference(one, first, "AP")
        apart = "more than" if low > 0 else "less than" if high < 0 else "not distinguishable from"
        text = f"AP {apart} {first.name}: {100 * gain:+.1f} points, 95% interval {100 * low:+.1f} to {100 * high:+.1f}."
        result.append((one.name, text))
    return result


def confused(one: Measured) -> list[tuple[str, str, int]]:
    """Classes taken for one another, the commonest first: truth, prediction, how often."""
    counts, names = one.confusion.matrix[:-1, :-1].copy(), one.matched.categories.names
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[: int((counts > 0).sum())]
    return [
        (names[row], names[column], int(counts[row, column]))
        for row, column in zip(*np.unravel_index(order, counts.shape), strict=True)
    ]


def _threshold(one: Measured) -> str:
    cut, best = one.cut, one.best
    said = (
        f"From a score of {cut.score:.2f}, {_percent(cut.precision)}% of the detections are right and "
        f"{_percent(cut.recall)}% of the objects are found (F1 {_percent(cut.f1)})"
    )
    if not one.brought:
        return f"{said}: the best F1 on these images."
    if math.isnan(best.score) or best.f1 - cut.f1 < 0.0005:
        return f"{said}. The weights bring this threshold; none would be better here."
    return f"{said}. The weights bring this threshold; best here is {best.score:.2f} (F1 {_percent(best.f1)})."


def _confusions(one: Measured) -> str:
    counts = one.confusion.matrix
    classes = len(counts) - 1
    mixed = int(counts[:classes, :classes].sum() - np.trace(counts))
    pairs = confused(one)
    often = f", most often {pairs[0][0]} for {pairs[0][1]} ({pairs[0][2]})" if pairs else ""
    return (
        f"{mixed} objects are detected as another class{often}; {int(counts[:classes, classes].sum())} are missed, and "
        f"{int(counts[classes, :classes].sum())} detections are on the background."
    )


def _calibration(one: Measured) -> str:
    error = one.reliability.error
    if math.isnan(error):
        return "There are no detections."
    count, found = one.reliability.count, one.reliability
    gap = float(np.nansum((found.score - found.right) * count) / count.sum())
    lean = "about as high as" if abs(gap) < 0.01 else "higher than" if gap > 0 else "lower than"
    said = f"Scores are {lean} the share of right detections; expected calibration error {_percent(error)}%"
    if one.uncalibrated:
        return f"{said}, {_percent(one.uncalibrated.error)}% before calibration."
    return f"{said}. `doublehead calibrate` corrects this on a val split."


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"
