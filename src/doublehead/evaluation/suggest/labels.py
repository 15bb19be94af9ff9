"""How likely each label is wrong, and where one is missing.

The heads are asked about the annotated boxes themselves. P is the score of the annotated class in its box, q says how
well the box lies, and 1 - P q is how far a label is doubted. An object that was found and that no label explains is
missing as far as its own P q.

q rises from 0 to 1 between two tightnesses (IoU of a box with where the localising head moves it): 0.5, below which
COCO does not count a box as the object's, and the lower quartile of all labels, most of which are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from doublehead.data.records import Record
from doublehead.evaluation.analysis.breakdown import FOREGROUND
from doublehead.evaluation.suggest.asking import Opinion, Seen

KINDS = ("class", "place", "spurious", "missing")

LEAST = 0.1
"""Labels doubted less are left out of the list."""

_ROOM = 0.05  # of tightness at least, in which q rises


@dataclass(frozen=True, eq=False)
class Suspect:
    """A label that may be wrong, or an object that may lack one."""

    record: Record
    split: str
    kind: str  # one of KINDS
    doubt: float  # 0..1
    row: int  # of the annotation in the record; -1: missing
    box: np.ndarray | None  # (4,) as annotated; None: missing
    label: int  # 1..C as annotated; 0: missing
    better_box: np.ndarray | None  # (4,) as the model would have it; None: spurious
    better_label: int  # likewise; 0: spurious
    sure: float  # P
    tightness: float


def suspects(seen: Sequence[Seen], split: str) -> list[Suspect]:
    """The labels of a split that may be wrong, and objects that lack one, most doubted first."""
    tightness = np.concatenate([one.annotated.tightness for one in seen] or [np.zeros(0)])
    usual = float(np.percentile(tightness, 25)) if len(tightness) else 1.0
    found = [suspect for one in seen for suspect in (*_doubted(one, split, usual), *_missing(one, split, usual))]
    return sorted(found, key=lambda suspect: -suspect.doubt)


def _trust(opinion: Opinion, usual: float) -> np.ndarray:
    """P q, (N,)."""
    return opinion.sure * ((opinion.tightness - FOREGROUND) / max(usual - FOREGROUND, _ROOM)).clip(0, 1)


def _doubted(seen: Seen, split: str, usual: float) -> list[Suspect]:
    opinion, result = seen.annotated, []
    doubts = 1 - _trust(opinion, usual)
    for place in np.flatnonzero(doubts >= LEAST):
        label, best = int(opinion.labels[place]), int(seen.moved.scores[place].argmax())
        kind = "place" if best == label else "class" if best else "spurious"
        values = (float(opinion.sure[place]), float(opinion.tightness[place]))
        box = seen.record.boxes[seen.rows[place]]
        better = opinion.regressed[place] if best else None
        row = int(seen.rows[place])
        result.append(Suspect(seen.record, split, kind, float(doubts[place]), row, box, label, better, best, *values))
    return result


def _missing(seen: Seen, split: str, usual: float) -> list[Suspect]:
    """What was found and no label explains."""
    opinion, record = seen.detections, seen.record
    doubts = _trust(opinion, usual)
    return [
        Suspect(
            record,
            split,
            "missing",
            float(doubts[place]),
            -1,
            None,
            0,
            opinion.boxes[place],
            int(opinion.labels[place]),
            float(opinion.sure[place]),
            float(opinion.tightness[place]),
        )
        for place in np.flatnonzero(doubts >= LEAST)
    ]
