"""How much an image without labels would teach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from doublehead.data.records import Record
from doublehead.evaluation.suggest.asking import Seen
from doublehead.inference.detections import Detections


@dataclass(frozen=True, eq=False)
class Teaching:
    """An image to label."""

    record: Record
    found: Detections
    score: float  # doubtful objects: the sum over detections of foreground score times mean of entropy, disagreement
    entropy: float  # its part from entropy
    disagreement: float  # its part from the disagreement of the heads


def by_teaching(seen: Sequence[Seen]) -> list[Teaching]:
    """Images in falling order of what labelling them would teach: those with most objects that the model doubts.

    The sum over an image is preferred to the mean and the maximum, as by Brust et al. 2019 ("Active Learning for Deep
    Object Detection"): an image of many doubtful objects teaches more than one of a single doubtful object.
    """
    return sorted(map(_teaching, seen), key=lambda one: -one.score)


def _teaching(seen: Seen) -> Teaching:
    opinion = seen.detections
    foreground = 1 - opinion.scores[:, 0]
    parts = [float(np.sum(foreground * doubt) / 2) for doubt in (opinion.entropy, opinion.disagreement)]
    return Teaching(seen.record, seen.found, sum(parts), *parts)
