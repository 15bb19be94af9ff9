"""Matching, thresholds, confusions and calibration error, each against a count of its own."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

sys.path.insert(0, str(Path(__file__).parents[1]))
from test_metrics import random_case
from test_metrics import record as made_record
from test_metrics import result as made_result

from doublehead.common.categories import Categories
from doublehead.evaluation.coco import evaluate_detections, truth
from doublehead.evaluation.matched import match
from doublehead.evaluation.report.confusion import confusion
from doublehead.evaluation.report.groups import by_crowding, by_overlap, by_size
from doublehead.evaluation.report.reliability import reliability
from doublehead.evaluation.thresholds import sweep

CATS = Categories(("cat", "dog"), (3, 8))


def by_hand():
    """Two images: a cat found, a dog taken for a cat, a dog missed, a detection on nothing, and one of a cat again."""
    records = [
        made_record(1, [[0, 0, 100, 100], [200, 0, 300, 100]], [1, 2]),
        made_record(2, [[0, 0, 50, 50]], [2]),
    ]
    results = [
        made_result(1, 3, [0, 0, 100, 100], 0.9),
        made_result(1, 3, [200, 0, 300, 90], 0.8),
        made_result(1, 3, [0, 0, 100, 80], 0.7),
        made_result(2, 8, [200, 200, 250, 250], 0.6),
        made_result(2, 8, [0, 0, 50, 48], 0.3),
    ]
    return records, CATS, results


def test_an_example_worked_by_hand():
    matched = match(*by_hand())
    found = confusion(matched, 0.5)
    assert found.matrix.tolist() == [[1, 0, 0], [1, 0, 1], [1, 1, 0]]
    assert confusion(matched, 0.2).matrix.tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 0]]
    whole = sweep(matched)
    assert [whole.at(score).true for score in (0.95, 0.9, 0.5, 0.3)] == [0, 1, 1, 2]
    cut = whole.at(0.3)
    assert (cut.true, cut.false, cut.missed) == (2, 3, 1)
    assert (cut.precision, cut.recall, cut.f1) == pytest.approx((2 / 5, 2 / 3, 1 / 2))
    assert whole.best.f1 == pytest.approx(1 / 2)  # of 0.9 alone, or of all five
    dogs = sweep(matched, 2).best
    assert (dogs.score, dogs.precision, dogs.recall) == (0.3, 1 / 2, 1 / 2)
    assert sweep(matched, 1).best.score == 0.85  # midway between what is accepted and what is not


def reference_matrix(records, categories, results, score):
    """supervision's, of one image after the other."""
    sv = pytest.importorskip("supervision")
    matrix = 0
    for record in records:
        own = [r for r in results if r["image_id"] == record.image_id]
        boxes = np.array([r["bbox"] for r in own], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = [[categories.ids.index(r["category_id"]), r["score"]] for r in own]
        predictions = np.hstack([boxes, np.array(labels, float).reshape(-1, 2)])
        targets = np.hstack([record.boxes.astype(float), record.labels[:, None] - 1.0])
        matrix += sv.ConfusionMatrix.evaluate_detection_batch(predictions, targets, len(categories), score, 0.5)
    return matrix


@pytest.mark.parametrize("seed", range(25))
def test_confusions_equal_supervisions(seed):
    records, categories, results = random_case(seed)
    for record in records:
        record.crowd[:] = False
    matched = match(records, categories, results)
    for score in (0.0, 0.35, 0.72):
        found = confusion(matched, score)
        assert (found.matrix == reference_matrix(records, categories, results, score)).all()
        counted = np.zeros_like(found.matrix)
        for row, column in found.cells:
            counted[row, column] += 1
        assert (counted == found.matrix).all()


@pytest.mark.parametrize("seed", range(25))
def test_hits_equal_pycocotools(seed, capfd):
    records, categories, results = random_case(seed)
    if not results:
        return
    matched = match(records, categories, results)
    gt = COCO()
    gt.dataset = truth(records, categories)
    gt.createIndex()
    evaluation = COCOeval(gt, gt.loadRes([dict(row) for row in results]), "bbox")
    evaluation.params.iouThrs = np.array([0.5])
    evaluation.params.maxDets = [1000]
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluation.evaluate()
    hits, ignored = np.zeros(len(results), bool), np.zeros(len(results), bool)
    for each in filter(None, evaluation.evalImgs):
        places = np.array(each["dtIds"], int) - 1
        ignored[places] = each["dtIgnore"][0].astype(bool)
        hits[places] = (each["dtMatches"][0] > 0) & ~each["dtIgnore"][0].astype(bool)
    assert (matched.hit == hits[matched.place]).all()
    assert (matched.ignored == ignored[matched.place]).all()


@pytest.mark.parametrize("seed", range(15))
def test_the_best_threshold_is_that_of_a_search_through_all(seed):
    records, categories, results = random_case(seed)
    matched = match(records, categories, results)
    for label in (None, *range(1, len(categories) + 1)):
        own = sweep(matched, label)
        chosen = ~matched.ignored & (np.ones(len(matched.label), bool) if label is None else matched.label == label)
        objects = ~matched.objects.crowd & (label is None or matched.objects.label == label)

        def f1(score, chosen=chosen, objects=objects):
            accepted = chosen & (matched.score >= score)
            true = (accepted & matched.hit).sum()
            return 2 * true / max(1, accepted.sum() + objects.sum())

        best = own.best
        if not objects.any() or not chosen.any():
            assert math.isnan(best.score)
            continue
        assert best.f1 == pytest.approx(max(map(f1, np.unique(matched.score[chosen]))))
        assert f1(best.score) == pytest.approx(best.f1)
    assert evaluate_detections(records, categories, results)["best_threshold"] == pytest.approx(
        sweep(matched).best.score, nan_ok=True
    )


def test_scores_that_are_right_as_often_as_they_say_have_no_error():
    rng = np.random.default_rng(0)
    scores = rng.random(200_000)
    assert reliability(scores, rng.random(len(scores)) < scores).error < 0.005
    assert reliability(scores, rng.random(len(scores)) < scores**2).error == pytest.approx(1 / 6, abs=0.005)


def test_calibration_error_by_hand():
    found = reliability(np.array([0.95, 0.85, 0.82, 1.0]), np.array([True, False, True, True]))
    assert found.count.tolist() == [0] * 8 + [2, 2]
    assert found.error == pytest.approx(abs(0.5 - 0.835) / 2 + abs(1 - 0.975) / 2)
    assert math.isnan(reliability(np.empty(0), np.empty(0, bool)).error)


@pytest.mark.parametrize("seed", range(10))
def test_calibration_error_equals_hotcocos(seed):
    import hotcoco

    records, categories, results = random_case(seed)
    results = [row | {"score": min(0.999, row["score"] + 1e-3)} for row in results]  # no score on a bin's edge
    for record in records:
        record.crowd[:] = False
    if not results:
        return
    gt = hotcoco.COCO(truth(records, categories))
    evaluation = hotcoco.COCOeval(gt, gt.load_res(results), "bbox")
    evaluation.params.max_dets = [1, 10, 1000]
    evaluation.evaluate()
    matched = match(records, categories, results)
    ours = reliability(matched.score, matched.hit).error
    assert ours == pytest.approx(evaluation.calibration(10, 0.5)["ece"], abs=1e-9)


def test_groups_count_every_object_once():
    records, categories, results = random_case(3)
    matched = match(records, categories, results)
    from doublehead.evaluation.bootstrap import Matches

    objects = int((~matched.objects.crowd).sum())
    found = int((matched.found_at[~matched.objects.crowd] >= 0.3).sum())
    crowding = by_crowding(matched, Matches(records, categories, results), 0.3)
    for groups in (by_size(matched, 0.3, [0, 0, 0]), by_overlap(matched, 0.3), crowding):
        assert sum(group.objects for group in groups) == objects
        assert sum(group.found for group in groups) == found
    assert sum(group.images for group in crowding) == len(records)
    whole = sweep(matched).at(0.3)
    assert sum(group.cut.false for group in crowding) == whole.false


def test_matching_in_parts_of_bounded_memory_changes_nothing(monkeypatch):
    case = random_case(4)
    whole = match(*case)
    monkeypatch.setattr("doublehead.evaluation.matched._PAIRS", 7)
    parts = match(*case)
    assert (parts.pairs == whole.pairs).all()
    assert (parts.target == whole.target).all()
