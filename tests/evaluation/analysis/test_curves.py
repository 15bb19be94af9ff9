"""Scores and boxes against IoU."""

import math

import numpy as np
import pytest

from doublehead.evaluation.analysis.curves import Bins, difference, foreground_mean, pcc, survive

IOUS = np.linspace(0.01, 0.99, 200)


def test_a_head_whose_score_is_the_iou_correlates_perfectly():
    assert pcc(IOUS.astype(np.float32), IOUS) == pytest.approx(1)
    assert pcc(1 - 0.3 * IOUS, IOUS) == pytest.approx(-1)
    assert math.isnan(pcc(np.full(200, 0.7), IOUS))


def test_bins_hold_mean_and_deviation_of_all_that_was_added():
    rng = np.random.default_rng(0)
    ious, values = rng.random((3, 500)), rng.random((3, 500))
    bins = Bins()
    for pair in zip(ious, values, strict=True):
        bins.add(*pair)
    for place in range(20):
        inside = values[(ious >= place / 20) & (ious < (place + 1) / 20)]
        assert bins.count[place] == len(inside)
        assert bins.mean[place] == pytest.approx(inside.mean())
        assert bins.deviation[place] == pytest.approx(inside.std())


def test_an_iou_of_one_lies_in_the_last_range_and_empty_ones_are_nan():
    bins = Bins()
    bins.add(np.array([1.0]), np.array([0.5]))
    assert bins.mean[19] == 0.5
    assert np.isnan(bins.mean[:19]).all()


def test_the_foreground_alone_counts_for_the_regressed_iou():
    assert foreground_mean(np.array([0.2, 0.5, 0.8]), np.array([0.1, 0.7, 0.9])) == pytest.approx(0.8)
    assert math.isnan(foreground_mean(np.array([0.2]), np.array([0.1])))


def test_nms_leaves_the_best_of_those_that_overlap():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10], [50, 0, 60, 10]], np.float32)
    scores = np.array([0.6, 0.9, 0.7, 0.04], np.float32)
    assert survive(boxes, scores, 0.05, 0.5).tolist() == [1, 2]
    assert not len(survive(boxes, scores, 0.95, 0.5))


def test_a_difference_is_certain_only_where_images_agree():
    rng = np.random.default_rng(0)
    noise, images = rng.normal(0, 1, 400), np.repeat(np.arange(40), 10)
    same = difference(noise, noise + rng.normal(0, 1, 400), images)
    assert not same.certain
    assert same.low < 0 < same.high
    better = difference([*(noise + 0.1), math.nan], [*noise, 0.0], [*images, 99])
    assert better.certain
    assert better.mean == pytest.approx(0.1)
    assert better.objects == 400


def test_objects_of_one_image_count_as_one_draw():
    """Forty objects that all gain or lose with their image tell no more than their two images."""
    gains = np.repeat([1.0, -0.5], 20)
    assert not difference(gains, np.zeros(40), np.repeat([1, 2], 20)).certain
