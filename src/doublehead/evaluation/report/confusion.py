"""Confusion matrix at one threshold: each object and each detection is counted once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from doublehead.evaluation.matched import Matched, greedy


@dataclass(frozen=True, eq=False)
class Confusion:
    """Rows are ground-truth classes and background, columns are detected classes and missed.

    `objects` and `detections` are the rows of `Matched` that were counted together; -1: background, or missed.
    """

    score: float  # detections from it on count
    matrix: np.ndarray  # (C + 1, C + 1): [C, k] is background detected as k + 1, [k, C] is a missed object
    objects: np.ndarray  # (M,)
    detections: np.ndarray  # (M,)
    cells: np.ndarray  # (M, 2) row and column of each


def confusion(matched: Matched, score: float) -> Confusion:
    """Pair detections with objects of any class: those of the same class first, then by falling IoU.

    The rule is that of supervision's `ConfusionMatrix`, except that detections on crowds are excluded.

    Args:
        matched: matched detections.
        score: minimum score.
    """
    truth, classes = matched.objects, len(matched.categories)
    open_ = matched.score[matched.pairs[:, 0]] >= score
    pairs, iou = matched.pairs[open_], matched.pair_iou[open_]
    same = matched.label[pairs[:, 0]] == truth.label[pairs[:, 1]]
    taken = pairs[greedy(pairs, np.lexsort((-iou, ~same)), np.zeros(len(truth.label), bool))].reshape(-1, 2)
    accepted = np.flatnonzero((matched.score >= score) & ~matched.ignored)
    alone = np.setdiff1d(accepted, taken[:, 0])
    missed = np.setdiff1d(np.flatnonzero(~truth.crowd), taken[:, 1])
    detections = np.concatenate([taken[:, 0], alone, np.full(len(missed), -1)])
    objects = np.concatenate([taken[:, 1], np.full(len(alone), -1), missed])
    labels = [np.append(column, classes + 1) for column in (truth.label, matched.label)]
    cells = np.stack([labels[0][objects], labels[1][detections]], 1).astype(np.int64) - 1
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    np.add.at(matrix, tuple(cells.T), 1)
    return Confusion(score, matrix, objects, detections, cells)
