"""How often images are seen: LVIS's repeat factors, weights of images, the same in every resumed run."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from doublehead.common.errors import DoubleheadError
from doublehead.data.dataset import open_dataset
from doublehead.data.loader import DetectionDataset, epoch_batches, training_loader
from doublehead.data.own import own_split
from doublehead.data.records import Record
from doublehead.data.sampling import epoch_order, images_per_epoch, repeat_factors, sampling_factors
from doublehead.data.steps import AugmentConfig
from doublehead.data.to_coco import write_coco
from doublehead.data.transforms import training_transform


def record(number, labels, crowd=(), weight=1.0):
    boxes = [(1.0, 1.0, 5.0, 5.0)] * len(labels)
    return Record.of(number, Path(f"{number}.jpg"), (96, 64), boxes, labels, crowd, weight=weight)


COMMON = [record(i, [1, 1]) for i in range(15)]
RARE = [record(15, [2, 1])]
"""Class 1 in every image, class 2 in one of sixteen."""


def test_repeat_factors_are_those_of_lvis():
    """r(c) = max(1, sqrt(t / f(c))); an image gets its largest."""
    found = repeat_factors(COMMON + RARE, 0.25)
    assert found.tolist() == [1.0] * 15 + [2.0]  # sqrt(0.25 / (1 / 16))
    assert repeat_factors(COMMON + RARE, 1 / 16).tolist() == [1.0] * 16


def test_images_without_boxes_and_crowds_are_not_repeated():
    found = repeat_factors([*COMMON, record(15, [2], crowd=[True]), record(16, [])], 0.25)
    assert found.tolist() == [1.0] * 17


def test_an_epoch_has_each_image_as_often_as_its_factor_says():
    factors = np.array([1.0, 2.0, 1.5, 0.3, 0.0, 3.2])
    counts = Counter()
    for epoch in range(1000):
        order = epoch_order(6, factors, np.random.default_rng(epoch))
        assert len(order) == images_per_epoch(6, factors) == 8
        one = Counter(order)
        assert all(abs(one[i] - factor) <= 1 for i, factor in enumerate(factors))
        counts += one
    assert [counts[i] / 1000 for i in range(6)] == pytest.approx(factors, abs=0.06)
    assert counts[4] == 0


def test_an_epoch_depends_on_seed_and_number_alone():
    factors = np.linspace(0.5, 2, 12)
    sizes = [(4, 3)] * 6 + [(3, 4)] * 6
    found = [epoch_batches(sizes, 4, 1, epoch, factors) for epoch in (0, 1, 0)]
    assert found[0] == found[2] != found[1]
    assert found[0] != epoch_batches(sizes, 4, 2, 0, factors)
    assert all(len({sizes[i][0] > sizes[i][1] for i in batch}) == 1 for batch in found[0][:-1])


def test_weights_multiply_repeat_factors():
    records = [*COMMON[:-1], record(14, [1], weight=3), record(15, [2], weight=0.5)]
    found = sampling_factors(records, 0.25, weights=True)
    assert found.tolist() == [1.0] * 14 + [3.0, 1.0]
    assert sampling_factors(records, None, weights=False) is None


@pytest.mark.parametrize("weight", ["heavy", -1, None, True, float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused_where_it_would_count(weight):
    records = [*COMMON, record(15, [2], weight=weight)]
    assert sampling_factors(records, 0.25, weights=False) is not None
    with pytest.raises(DoubleheadError, match=r"^15.jpg: its `weight` must be a number"):
        sampling_factors(records, None, weights=True)


def test_weights_are_asked_for_but_not_there():
    with pytest.raises(DoubleheadError, match=r"data.image_weights: no image has a `weight`"):
        sampling_factors(COMMON, None, weights=True)


def test_weights_come_from_coco_and_from_python_and_go_back(own_dataset, tmp_path):
    file = own_dataset / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["images"][2]["weight"] = 2.5
    file.write_text(json.dumps(content))
    expected = [1.0, 1.0, 2.5, *[1.0] * 5]
    assert [each.weight for each in open_dataset(own_dataset).read("train").records] == expected
    write_coco(own_dataset, tmp_path / "copy")
    assert [each.weight for each in open_dataset(tmp_path / "copy").read("train").records] == expected
    target = {"boxes": [[1, 1, 9, 9]], "labels": [0]}
    items = [(np.zeros((20, 30, 3), np.uint8), target | extra) for extra in ({}, {"weight": np.float32(0.5)})]
    assert [each.weight for each in own_split("train", items, ["cat"]).records] == [1.0, 0.5]


def test_repeated_images_are_augmented_anew_and_resume_anywhere(dataset):
    split = open_dataset(dataset).read("train")
    transform = training_transform(AugmentConfig.model_validate({"colour": 0.5}), 64, 96)
    factors = np.array([3.0, *[1.0] * 7])

    def load(start, workers):
        loader = DetectionDataset(split, transform, 1)
        return list(training_loader(loader, 2, 2, 0, 1, 1, start, 10, workers, factors=factors))

    whole = load(0, 0)
    shown = [
        image for images, targets in whole[:5] for image, t in zip(images, targets, strict=True) if t["index"] == 0
    ]
    assert len(shown) == 3  # ten images an epoch, five steps
    assert not shown[0].equal(shown[1])
    for start, workers in ((3, 0), (6, 1)):
        for (images, targets), (others, expected) in zip(load(start, workers), whole[start:], strict=True):
            assert [t["index"] for t in targets] == [t["index"] for t in expected]
            assert all(a.equal(b) for a, b in zip(images, others, strict=True))
