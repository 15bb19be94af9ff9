"""What is said of labels and images, from what heads say of boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from doublehead.data.records import Record
from doublehead.evaluation.suggest.asking import Opinion, Seen, disagreement, explained
from doublehead.evaluation.suggest.images import by_teaching
from doublehead.evaluation.suggest.labels import suspects
from doublehead.inference.detections import Detections

NAMES = ("cat", "dog")
PLACES = [(20 + 60 * i, 20, 60 + 60 * i, 60) for i in range(6)]
BACKGROUND, CAT, DOG = np.eye(3) * 0.94 + 0.02


def opinion(boxes, labels, scores, regressed=None) -> Opinion:
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    regressed = boxes if regressed is None else np.array(regressed, np.float32).reshape(-1, 4)
    scores = np.array(scores).reshape(-1, 3)
    return Opinion(boxes, np.array(labels, np.int64), scores, regressed, np.zeros(len(boxes)))


def seen(annotated: Opinion, moved: Opinion, found: Opinion) -> Seen:
    record = Record.of(
        1,
        Path("pets.jpg"),
        (400, 100),
        annotated.boxes.tolist(),
        annotated.labels.tolist(),
    )
    detections = Detections(found.boxes, found.sure, found.labels, NAMES)
    return Seen(record, detections, found, annotated, moved, np.arange(len(annotated.labels)))


def scene() -> Seen:
    """Two good labels; one of another class, one beside its object, one where nothing is; an object without a label."""
    beside = np.add(PLACES[3], (20, 0, 20, 0))
    boxes, labels = [*PLACES[:3], beside, PLACES[4]], [1, 2, 1, 1, 1]
    annotated = opinion(boxes, labels, [CAT, DOG, DOG, BACKGROUND, BACKGROUND], [*PLACES[:4], PLACES[4]])
    moved = opinion(annotated.regressed, labels, [CAT, DOG, DOG, CAT, BACKGROUND])
    found = opinion([PLACES[5]], [2], [DOG])
    return seen(annotated, moved, found)


def test_each_kind_of_error_is_named_and_right_labels_are_not_listed():
    found = suspects([scene()], "train")
    assert {(one.kind, one.row) for one in found} == {("class", 2), ("place", 3), ("spurious", 4), ("missing", -1)}
    by_kind = {one.kind: one for one in found}
    assert (by_kind["class"].label, by_kind["class"].better_label) == (1, 2)
    assert by_kind["place"].better_box.tolist() == list(PLACES[3])
    assert by_kind["spurious"].better_box is None
    assert by_kind["missing"].box is None
    assert by_kind["missing"].better_box.tolist() == list(PLACES[5])
    assert [one.doubt for one in found] == sorted((one.doubt for one in found), reverse=True)
    assert all(0.5 < one.doubt <= 1 for one in found)


def test_detections_that_a_label_explains_are_not_missing():
    record = Record.of(1, Path("pets.jpg"), (400, 100), [PLACES[0], PLACES[1], PLACES[5]], [1, 1, 1], [0, 0, 1])
    moved = opinion(PLACES[:2], [1, 1], [CAT, CAT], [PLACES[0], PLACES[2]])
    part_of_a_crowd = np.add(PLACES[5], (10, 10, -10, -10))
    found = np.array([*PLACES[:5], part_of_a_crowd], np.float32)
    assert explained(found, record, moved).tolist() == [True, True, True, False, False, True]


def test_a_box_that_lies_worse_is_doubted_more():
    def doubt(shift: int) -> float:
        boxes = [*PLACES[:4], np.add(PLACES[4], (shift, 0, shift, 0))]
        annotated = opinion(boxes, [1] * 5, [CAT] * 5, PLACES[:5])
        one = seen(annotated, opinion(annotated.regressed, [1] * 5, [CAT] * 5), opinion([], [], []))
        return max((each.doubt for each in suspects([one], "train") if each.row == 4), default=0.0)

    doubts = [doubt(shift) for shift in (0, 6, 10, 20)]
    assert doubts == sorted(doubts)
    assert doubts[0] < doubts[2] < 1 == doubts[3]


def test_nothing_seen_gives_no_suspects():
    assert suspects([], "train") == []
    assert suspects([seen(opinion([], [], []), opinion([], [], []), opinion([], [], []))], "train") == []


def test_tightness_and_entropy():
    half = opinion([(0, 0, 10, 10)] * 2, [1, 1], [(1, 0, 0), (1 / 3,) * 3], [(0, 0, 10, 20), (0, 0, 10, 10)])
    assert half.tightness.tolist() == [0.5, 1.0]
    assert half.entropy == pytest.approx([0, 1])


@pytest.mark.parametrize(
    ("sure", "regressed", "expected"),
    [
        (1.0, (0, 0, 10, 10), 0.0),  # both sure
        (1.0, (20, 20, 30, 30), 1.0),  # of the class, not of the place
        (0.0, (0, 0, 10, 10), 1.0),  # of the place, not of the class
        (0.0, (20, 20, 30, 30), 0.0),  # of neither
        (0.5, (0, 0, 10, 20), 1.0),  # half of both
    ],
)
def test_class_against_box_is_what_kao_et_al_define(sure, regressed, expected):
    one = opinion([(0, 0, 10, 10)], [1], [(1 - sure, sure, 0)], [regressed])
    assert disagreement(one, [one.scores], [one.regressed]) == pytest.approx([expected])


def test_two_heads_that_classify_or_localise_are_compared():
    one = opinion([(0, 0, 10, 10)], [1], [(0, 1, 0)])
    assert disagreement(one, [one.scores, one.scores], [one.regressed]) == pytest.approx([0])
    assert disagreement(one, [one.scores, np.array([(0, 0, 1)])], [one.regressed]) == pytest.approx([1])
    assert disagreement(one, [one.scores], [one.regressed, np.array([(0, 0, 10, 5)])]) == pytest.approx([0.5])


def test_images_with_more_doubtful_objects_come_first():
    nothing = opinion([], [], [])
    sure = seen(nothing, nothing, opinion(PLACES[:3], [1] * 3, [(0, 1, 0)] * 3))
    one = seen(nothing, nothing, opinion(PLACES[:1], [1], [(0.2, 0.4, 0.4)]))
    two = seen(nothing, nothing, opinion(PLACES[:2], [1] * 2, [(0.2, 0.4, 0.4)] * 2))
    empty = seen(nothing, nothing, nothing)
    ranked = by_teaching([sure, one, empty, two])
    assert [len(each.found) for each in ranked[:2]] == [2, 1]
    assert [each.score for each in ranked[2:]] == pytest.approx([0, 0])
