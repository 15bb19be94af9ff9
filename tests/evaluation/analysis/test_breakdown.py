"""Kinds of errors and what they cost."""

from pathlib import Path

import hotcoco
import numpy as np
import pytest

from doublehead.common.categories import Categories
from doublehead.data.records import Record
from doublehead.evaluation import coco
from doublehead.evaluation.analysis.breakdown import KINDS, break_down, judge

A, B = 1, 2


def record(objects, image_id=1, crowd=None):
    boxes = np.array([box for _, box in objects], np.float32).reshape(-1, 4)
    labels = np.array([label for label, _ in objects], np.int64)
    crowd = np.zeros(len(boxes), bool) if crowd is None else np.asarray(crowd, bool)
    return Record(image_id, Path("x.jpg"), 900, 900, boxes, labels, crowd, (boxes[:, 2:] - boxes[:, :2]).prod(1))


def judged(image, detections):
    boxes = np.array([box for _, _, box in detections], np.float32).reshape(-1, 4)
    labels, scores = (np.array([d[i] for d in detections], t) for i, t in ((0, np.int64), (1, np.float32)))
    return judge(image, boxes, scores, labels)


def test_an_example_worked_by_hand():
    """One image with every kind of error.

    Class A has three objects: one found first, one found last, one whose box is too short (IoU 0.4). The seven
    detections of A are, in falling score: hit, duplicate, localisation, classification, background, both, hit. So the
    precision is 1 up to recall 1/3 (the 34 recalls 0, 0.01 ... 0.33) and 2/7 up to 2/3 (33 more).
    Class B has three objects: one found, one that a detection calls A, one missed: precision 1 up to recall 1/3.
    """
    image = record(
        [
            (A, [0, 0, 100, 100]),
            (A, [200, 0, 300, 100]),
            (A, [200, 200, 300, 300]),
            (B, [0, 200, 100, 300]),
            (B, [400, 400, 500, 500]),
            (B, [200, 400, 300, 500]),
        ]
    )
    found = judged(
        image,
        [
            (B, 0.99, [200, 400, 300, 500]),
            (A, 0.9, [0, 0, 100, 100]),
            (A, 0.8, [0, 0, 100, 90]),
            (A, 0.7, [200, 0, 300, 40]),
            (A, 0.6, [0, 200, 100, 300]),
            (A, 0.5, [600, 600, 700, 700]),
            (A, 0.4, [0, 200, 100, 240]),
            (A, 0.3, [200, 200, 300, 300]),
        ],
    )
    wanted = ["hit", "hit", "duplicate", "localisation", "classification", "background", "both", "hit"]
    assert found.kinds == wanted
    assert found.missed.tolist() == [4]
    assert found.cost == pytest.approx(0.8 + 0.7 + 0.6 + 0.5 + 0.4 + 1)

    a, b = 34 + 33 * 2 / 7, 34
    one_less = 34 + 33 * 2 / 6  # of A, with one false detection taken away
    fixed = {
        "classification": (one_less, 67),  # the detection becomes one of B: recall 2/3 at precision 1
        "localisation": (34 + 33 * 2 / 3 + 34 * 3 / 7, b),  # the third best detection hits
        "both": (one_less, b),
        "duplicate": (one_less, b),
        "background": (one_less, b),
        "missed": (a, 51),  # two objects of B are left to find: one of them is, recall 1/2
    }
    result = break_down([found])
    assert result.ap50 == pytest.approx((a + b) / 202)
    assert result.counts == dict.fromkeys(KINDS, 1)
    for kind, (of_a, of_b) in fixed.items():
        assert result.gains[kind] == pytest.approx((of_a + of_b - a - b) / 202), kind


def test_one_object_is_found_once_however_many_are_mended():
    image = record([(A, [0, 0, 100, 100])])
    poor = [(A, 0.9, [0, 0, 100, 40]), (A, 0.8, [0, 0, 100, 30])]
    result = break_down([judged(image, poor)])
    assert (result.ap50, result.gains["localisation"], result.counts["missed"]) == (0, pytest.approx(1), 0)
    # Where the object is found, fixing removes the poor ones: precision 1/3 before, 1 after.
    result = break_down([judged(image, [*poor, (A, 0.1, [0, 0, 100, 100])])])
    assert result.ap50 == pytest.approx(1 / 3)
    assert result.gains["localisation"] == pytest.approx(2 / 3)


def test_nothing_found_is_all_missed():
    result = break_down([judged(record([(A, [0, 0, 100, 100])]), [])])
    assert (result.ap50, result.gains["missed"], result.counts["missed"]) == (0, 1, 1)


def test_a_detection_on_a_crowd_is_no_error():
    image = record([(A, [0, 0, 400, 400]), (A, [500, 500, 600, 600])], crowd=[True, False])
    found = judged(image, [(A, 0.9, [10, 10, 60, 60]), (A, 0.8, [500, 500, 600, 600])])
    assert found.kinds == ["ignored", "hit"]
    assert break_down([found]).ap50 == pytest.approx(1)


@pytest.mark.parametrize("seed", range(10))
def test_ap_and_counts_equal_those_of_hotcoco(seed):
    """AP50 as `evaluate` measures it; the kinds of false detections as hotcoco sorts them (without crowds)."""
    rng = np.random.default_rng(seed)
    categories, images, results = Categories(("a", "b", "c"), (3, 5, 9)), [], []
    for image_id in range(1, 9):
        count = int(rng.integers(0, 7))
        corner = rng.uniform(0, 300, (count, 2))
        boxes = np.hstack([corner, corner + rng.uniform(40, 160, (count, 2))]).astype(np.float32)
        image = record(list(zip(rng.integers(1, 4, count), boxes, strict=True)), image_id)
        near = np.repeat(boxes, 3, 0) + rng.normal(0, 25, (3 * count, 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 5)
        labels = np.where(rng.random(3 * count) < 0.7, np.repeat(image.labels, 3), rng.integers(1, 4, 3 * count))
        rows = [(int(k), float(rng.random()), box) for k, box in zip(labels, near, strict=True)]
        images.append(judged(image, rows))
        for label, score, (x1, y1, x2, y2) in zip(images[-1].labels, images[-1].scores, images[-1].boxes, strict=True):
            box = [float(v) for v in (x1, y1, x2 - x1, y2 - y1)]
            results.append(
                {"image_id": image_id, "category_id": categories.ids[label - 1], "bbox": box, "score": float(score)}
            )
    records = [image.record for image in images]
    result = break_down(images)
    assert result.ap50 == pytest.approx(coco.evaluate_detections(records, categories, results)["AP50"])
    truth = hotcoco.COCO(coco.truth(records, categories))
    evaluation = hotcoco.COCOeval(truth, truth.load_res(results), "bbox")
    evaluation.evaluate()
    theirs = evaluation.tide_errors()["counts"]
    names = dict(zip(KINDS, ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"), strict=True))
    assert result.counts == {kind: theirs[name] for kind, name in names.items()}
