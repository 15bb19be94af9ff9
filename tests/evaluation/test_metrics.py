"""COCO's metrics: pycocotools as referee, one example by hand, and the edges."""

import contextlib
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from doublehead.common.errors import DoubleheadError
from doublehead.data.records import Categories, Record
from doublehead.evaluation.coco import PrecisionCurve, evaluate_detections

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def record(image_id, boxes, labels, crowd=None, areas=None, size=(640, 480)):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    crowd = np.zeros(len(boxes), bool) if crowd is None else np.asarray(crowd, bool)
    areas = sides.prod(1) if areas is None else np.asarray(areas, np.float32)
    return Record(image_id, Path(f"{image_id}.jpg"), *size, boxes, np.asarray(labels, np.int64), crowd, areas)


def result(image_id, category_id, box, score):
    x1, y1, x2, y2 = (float(v) for v in box)
    return {"image_id": image_id, "category_id": category_id, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": float(score)}


def random_case(seed):
    """Crowds, gaps in the ids, unused classes, empty images, areas unlike the boxes', equal scores, 100 and more."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 6))
    ids = tuple(int(i) for i in rng.choice(90, count, replace=False) + 1)  # with gaps, in no order
    categories = Categories(tuple(f"class {i}" for i in ids), ids)
    records, results = [], []
    for image_id in rng.choice(10**6, int(rng.integers(1, 9)), replace=False).tolist():
        n = int(rng.choice([0, 1, 3, 12]))
        corner, sides = rng.uniform(0, 400, (n, 2)), rng.choice([12, 50, 150], (n, 1)) * rng.uniform(0.5, 1.5, (n, 2))
        boxes = np.hstack([corner, corner + sides]).astype(np.float32)
        labels = rng.integers(1, max(2, count), n)  # the last of several classes has no truth
        areas = sides.prod(1) * rng.uniform(0.3, 1, n)
        records.append(record(image_id, boxes, labels, rng.random(n) < 0.15, areas))
        copies = rng.integers(0, 4, n)
        near = np.repeat(boxes, copies, 0).astype(float)
        near = near + rng.normal(0, 0.08, near.shape) * np.tile(near[:, 2:] - near[:, :2], 2)
        corner = rng.uniform(0, 400, (int(rng.choice([0, 2, 130])), 2))
        far = np.hstack([corner, corner + rng.uniform(5, 200, corner.shape)])
        found = np.concatenate([np.repeat(labels, copies), rng.integers(1, count + 1, len(far))])
        scores = rng.random(len(found)).round(int(rng.choice([1, 6])))  # one decimal makes ties
        if rng.random() < 0.8:
            results += [
                result(image_id, ids[k - 1], b, s)
                for k, b, s in zip(found, np.vstack([near, far]), scores, strict=True)
            ]
    return records, categories, results


def referee(records, categories, results):
    """The same by pycocotools, from a dataset written here on its own: the twelve figures and its arrays."""
    coco = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        gt = coco.COCO()
        gt.dataset = {
            "images": [{"id": r.image_id, "width": r.width, "height": r.height} for r in records],
            "categories": [{"id": i, "name": n} for i, n in zip(categories.ids, categories.names, strict=True)],
            "annotations": [],
        }
        for r in records:
            for box, label, crowd, area in zip(r.boxes.astype(float), r.labels, r.crowd, r.areas, strict=True):
                annotation = result(r.image_id, categories.ids[label - 1], box, 0)
                number = len(gt.dataset["annotations"]) + 1
                gt.dataset["annotations"].append(
                    {**annotation, "id": number, "area": float(area), "iscrowd": int(crowd)}
                )
        gt.createIndex()
        dt = gt.loadRes([dict(row) for row in results]) if results else coco.COCO()
        if not results:
            dt.dataset = {**gt.dataset, "annotations": []}
            dt.createIndex()
        evaluation = COCOeval(gt, dt, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats, evaluation.eval


@pytest.mark.parametrize("seed", range(60))
def test_equals_pycocotools(seed):
    records, categories, results = random_case(seed)
    metrics = evaluate_detections(records, categories, results)
    stats, arrays = referee(records, categories, results)
    ours = np.nan_to_num([metrics[name] for name in NAMES], nan=-1)
    np.testing.assert_allclose(ours, stats, rtol=0, atol=1e-9)
    for one in metrics.classes:
        place = sorted(categories.ids).index(one.category_id)
        for curve, iou in ((one.curve50, 0), (one.curve75, 5)):
            precision = np.nan_to_num(curve.precision, nan=-1)
            np.testing.assert_allclose(precision, arrays["precision"][iou, :, place, 0, 2], rtol=0, atol=1e-9)
            np.testing.assert_allclose(
                np.nan_to_num(curve.score, nan=-1), arrays["scores"][iou, :, place, 0, 2], rtol=0, atol=1e-9
            )


def test_the_random_cases_cover_what_they_claim():
    cases = [random_case(seed) for seed in range(60)]
    records = [r for case in cases for r in case[0]]
    assert any(r.crowd.any() for r in records)
    assert any(not len(r.boxes) for r in records)
    assert any(not results for _, _, results in cases)
    assert any(sum(row["image_id"] == r.image_id for row in rows) > 100 for rs, _, rows in cases for r in rs)
    assert any(tuple(sorted(categories.ids)) != categories.ids for _, categories, _ in cases)


def test_an_example_worked_by_hand():
    """Two boxes; the detections in falling score: a hit, a miss, a hit at IoU 0.6.

    At IoU 0.5 the precisions are 1, 1/2, 2/3 at recalls 1/2, 1/2, 1. So 51 of the 101 recall points, 0 to 0.50, have
    precision 1 and 50 have 2/3. From IoU 0.65 on only the first hits: 51 points of 1.
    """
    truth = [record(7, [[0, 0, 10, 10], [100, 100, 110, 110]], [1, 1])]
    rows = [
        result(7, 5, [0, 0, 10, 10], 0.9),
        result(7, 5, [200, 200, 210, 210], 0.8),
        result(7, 5, [100, 100, 110, 106], 0.7),  # 60 of 100 pixels
    ]
    metrics = evaluate_detections(truth, Categories(("cell",), (5,)), rows)
    high, low = (51 + 50 * 2 / 3) / 101, 51 / 101
    assert metrics["AP50"] == pytest.approx(high, abs=1e-12)
    assert metrics["AP75"] == pytest.approx(low, abs=1e-12)
    assert metrics["AP"] == pytest.approx((3 * high + 7 * low) / 10, abs=1e-12)  # IoU 0.50, 0.55 and 0.60
    assert metrics["AR1"] == pytest.approx(0.5)
    assert metrics["AR100"] == pytest.approx((3 * 1 + 7 * 0.5) / 10)
    assert metrics["APs"] == metrics["AP"]
    assert math.isnan(metrics["APm"])
    (cell,) = metrics.classes
    assert (cell.ap50, cell.boxes, cell.detections) == (metrics["AP50"], 2, 3)
    assert cell.curve50.score[[0, 50, 51, 100]] == pytest.approx([0.9, 0.9, 0.7, 0.7])
    assert cell.curve75.precision[[50, 51]] == pytest.approx([1, 0])


def test_crowds_are_neither_missed_nor_counted():
    truth = [record(1, [[0, 0, 20, 20], [100, 100, 300, 300]], [1, 1], crowd=[False, True])]
    rows = [result(1, 9, [0, 0, 20, 20], 0.5), result(1, 9, [120, 120, 150, 150], 0.9)]
    metrics = evaluate_detections(truth, Categories(("person",), (9,)), rows)
    assert metrics["AP"] == pytest.approx(1)
    assert metrics.boxes == metrics.classes[0].boxes == 1


def test_without_detections_everything_measured_is_zero():
    metrics = evaluate_detections([record(1, [[0, 0, 20, 20]], [1])], Categories(("a", "b"), (3, 8)), [])
    assert metrics["AP"] == metrics["AR100"] == 0
    assert math.isnan(metrics.classes[1].ap)
    assert metrics.to_json()["classes"][1]["AP"] is None


@pytest.mark.parametrize("records", [[], [record(1, [], [])]])
def test_without_truth_every_figure_is_nan(records):
    rows = [result(1, 3, [0, 0, 5, 5], 0.5)] if records else []
    metrics = evaluate_detections(records, Categories(("a",), (3,)), rows)
    assert tuple(metrics.totals) == NAMES
    assert all(math.isnan(value) for value in metrics.totals.values())
    assert isinstance(metrics.classes[0].curve50, PrecisionCurve)
    assert np.isnan(metrics.classes[0].curve50.score).all()
    assert "NaN" not in json.dumps(metrics.to_json())


def test_json_and_tables_say_what_was_measured(capfd):
    records, categories, results = random_case(3)
    metrics = evaluate_detections(records, categories, results)
    assert capfd.readouterr() == ("", "")  # the measuring itself prints nothing
    plain = json.loads(json.dumps(metrics.to_json(), allow_nan=False))
    assert plain["AP50"] == metrics["AP50"]
    assert len(plain["recall"]) == len(plain["classes"][0]["precision50"]) == 101
    console = Console(file=io.StringIO(), width=100)
    console.print(metrics.table(), metrics.totals_table())
    text = console.file.getvalue()
    assert all(name in text for name in (*categories.names, "AP50", f"{100 * metrics['AP']:.1f}"))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (result(2, 3, [0, 0, 5, 5], 0.5), "image 2"),
        (result(1, 4, [0, 0, 5, 5], 0.5), "category 4"),
        (result(1, 3, [0, 0, 5, 5], math.nan), "score nan"),
    ],
)
def test_results_of_other_data_are_refused(row, words):
    with pytest.raises(DoubleheadError, match=words):
        evaluate_detections([record(1, [[0, 0, 9, 9]], [1])], Categories(("a",), (3,)), [row])
