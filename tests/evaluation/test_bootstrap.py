"""AP under weights of images is COCO's AP of a dataset in which each image stands so many times."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from test_metrics import random_case
from test_metrics import record as image_with
from test_metrics import record as made_record
from test_metrics import result as made_result

from doublehead.common.categories import Categories
from doublehead.evaluation.bootstrap import Matches, draws
from doublehead.evaluation.coco import evaluate_detections


@pytest.mark.parametrize("seed", range(12))
def test_whole_weights_count_an_image_so_many_times(seed: int) -> None:
    records, categories, found = random_case(seed)
    scores = np.random.default_rng(seed).permutation(len(found)) / max(len(found), 1)  # no ties between images
    results = [result | {"score": float(score)} for result, score in zip(found, scores, strict=True)]
    weights = draws(len(records), 3, np.random.default_rng(seed))
    weights[0] = 1
    aps = Matches(records, categories, results).ap(weights)
    for ap, times in zip(aps, weights, strict=True):
        copies, of_copies = [], []
        for record, count in zip(records, times, strict=True):
            for _ in range(count):
                image_id = len(copies) + 1
                copies.append(replace(record, image_id=image_id))
                of_copies += [r | {"image_id": image_id} for r in results if r["image_id"] == record.image_id]
        assert ap == pytest.approx(evaluate_detections(copies, categories, of_copies)["AP"], nan_ok=True, abs=1e-9)


@pytest.mark.parametrize("most", [100, 150, 300])
def test_detections_past_the_hundredth_count_as_in_measuring(most: int) -> None:
    """Of a crowded image whose best hundred are all wrong."""
    corner = np.arange(200.0)[:, None] * [30, 0]
    boxes = np.concatenate([corner, corner + 20], 1)
    crowded = image_with(1, boxes.tolist(), [1] * 200)
    categories = Categories(("cell",), (5,))
    shift = np.where(np.arange(200)[:, None] < 100, 400.0, 0.0) * [0, 1, 0, 1]
    results = [
        {"image_id": 1, "category_id": 5, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": 1 - place / 500}
        for place, (x1, y1, x2, y2) in enumerate((boxes + shift).tolist())
    ]
    (ap,) = Matches([crowded], categories, results, most).ap(np.ones((1, 1)))
    measured = evaluate_detections([crowded], categories, results, most)["AP"]
    assert ap == pytest.approx(measured, abs=1e-9)
    assert (measured > 0) == (most > 100)


def test_draws_take_as_many_images_as_there_are() -> None:
    drawn = draws(7, 500, np.random.default_rng(0))
    assert drawn.shape == (500, 7)
    assert (drawn.sum(1) == 7).all()
    assert drawn.mean(0) == pytest.approx(1, abs=0.2)


def test_draws_are_those_of_one_multinomial() -> None:
    whole = np.random.default_rng(3).multinomial(40, np.full(40, 1 / 40), 25)
    assert (draws(40, 25, np.random.default_rng(3)) == whole).all()


def many_detections() -> Matches:
    """20,000 detections of one class in 200 images."""
    records = [made_record(number, [[10, 10, 60, 60]], [1]) for number in range(1, 201)]
    scores = np.random.default_rng(0).random((200, 100))
    results = [
        made_result(number, 5, [10 + place, 10, 60 + place, 60], scores[number - 1, place])
        for number in range(1, 201)
        for place in range(100)
    ]
    return Matches(records, Categories(("thing",), (5,)), results)


def test_memory_does_not_grow_with_draws_times_detections(monkeypatch) -> None:
    matches, weights = many_detections(), draws(200, 250, np.random.default_rng(0))
    tracemalloc.start()
    try:
        aps = matches.ap(weights)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100e6  # one array of (draws, detections) has 40 MB, and there were six
    monkeypatch.setattr("doublehead.evaluation.bootstrap.CELLS", 10**9)
    assert (matches.ap(weights) == aps).all()
