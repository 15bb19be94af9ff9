"""Bootstrap intervals of AP: AP over images drawn with replacement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hotcoco
import numpy as np

from doublehead.common.categories import Categories
from doublehead.data.records import Record
from doublehead.evaluation.coco import RECALLS, USUAL, truth

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""COCO's IoU thresholds."""

CELLS = 2**20
"""Weights of detections in memory at a time: about 50 MB for any number of images, detections and draws."""


@dataclass(frozen=True)
class _ClassMatches:
    """Detections of one class in all images, best first, and the number of objects per image."""

    image: np.ndarray  # (D,) place of the image
    right: np.ndarray  # (T, D) bool: matched to an object at each of COCO's thresholds
    counts: np.ndarray  # (T, D) bool: neither right nor wrong if False, as in crowds
    objects: np.ndarray  # (images,)


class Matches:
    """Detections of a model, matched to the ground truth once, to compute AP under any weights of the images.

    Args:
        records: as in `evaluate_detections`.
        categories: classes of the records.
        results: detections in COCO's result format.
        most: maximum detections per image and class, best first; at least COCO's 100.
    """

    def __init__(
        self,
        records: Sequence[Record],
        categories: Categories,
        results: Sequence[dict[str, Any]],
        most: int = USUAL,
    ) -> None:
        gt = hotcoco.COCO(truth(records, categories))
        evaluation = hotcoco.COCOeval(gt, gt.load_res(list(results)), "bbox")
        most = max(USUAL, most)
        evaluation.params.max_dets = [1, 10, most]
        evaluation.params.area_rng, evaluation.params.area_rng_lbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        place = {record.image_id: i for i, record in enumerate(records)}
        found: dict[int, list[dict[str, Any]]] = {category: [] for category in categories.ids}
        for match in evaluation.eval_imgs:
            if match is not None:
                found[match["category_id"]].append(match)
        self.classes = [_joined(matches, place, most) if matches else None for matches in found.values()]

    def ap(self, weights: np.ndarray) -> np.ndarray:
        """Compute COCO's AP with image i counted `weights[..., i]` times.

        Args:
            weights: (W, images), whole numbers.

        Returns:
            (W,), each in 0..1; NaN if no objects remain.
        """
        return self.ap_by_iou(weights).mean(0)

    def ap_by_iou(self, weights: np.ndarray) -> np.ndarray:
        """As `ap`, at each of COCO's thresholds from 0.50 to 0.95: (10, W)."""
        return mean_known(self.by_class(weights))

    def by_class(self, weights: np.ndarray) -> np.ndarray:
        """AP of each class at each of COCO's thresholds: (C, 10, W), NaN if no objects of a class remain."""
        nothing = np.full((len(THRESHOLDS), len(weights)), np.nan)
        return np.stack([nothing if one is None else _class_ap(one, weights) for one in self.classes])


def mean_known(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of the values that are not NaN; NaN if all are."""
    known = ~np.isnan(values)
    return np.where(known.any(0), np.nansum(values, 0) / np.maximum(known.sum(0), 1), np.nan)


def draws(images: int, number: int, rng: np.random.Generator) -> np.ndarray:
    """Draw bootstrap samples: counts of each image (number, images), with rows summing to `images`."""
    result = np.empty((number, images), np.min_scalar_type(images))
    for row in result:
        row[:] = rng.multinomial(images, np.full(images, 1 / images))
    return result


def _joined(matches: list[dict[str, Any]], place: dict[int, int], most: int) -> _ClassMatches:
    scores = np.concatenate([np.asarray(m["dtScores"])[:most] for m in matches])
    order = np.argsort(-scores, kind="stable")
    image = np.concatenate([np.full(len(m["dtScores"][:most]), place[m["image_id"]]) for m in matches])

    def rows(key: str) -> np.ndarray:
        return np.concatenate([np.asarray(m[key], dtype=bool)[:, :most] for m in matches], axis=1)[:, order]

    objects = np.zeros(len(place))
    for m in matches:
        objects[place[m["image_id"]]] += np.sum(~np.asarray(m["gtIgnore"], dtype=bool))
    return _ClassMatches(image[order], rows("dtMatches"), ~rows("dtIgnore"), objects)


def _class_ap(matches: _ClassMatches, weights: np.ndarray) -> np.ndarray:
    """AP of one class at each threshold, (T, W)."""
    rows = max(1, CELLS // max(1, len(matches.image)))
    parts = [weights[start : start + rows] for start in range(0, len(weights), rows)]
    return np.concatenate([_ap_of_rows(matches, part.astype(np.float64)) for part in parts], axis=1)


def _ap_of_rows(matches: _ClassMatches, weights: np.ndarray) -> np.ndarray:
    """AP of one class at each threshold under a few weights, (T, W)."""
    objects = weights @ matches.objects
    times = weights[:, matches.image]  # (W, D)
    result = np.full((len(matches.right), len(weights)), np.nan)
    for threshold, (right, counts) in enumerate(zip(matches.right, matches.counts, strict=True)):
        true = np.cumsum(times * (right & counts), axis=1)
        false = np.cumsum(times * (~right & counts), axis=1)
        precision = true / np.maximum(true + false, np.spacing(1))
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recall = true / np.maximum(objects, 1)[:, None]
        for w in np.flatnonzero(objects > 0):
            at = np.searchsorted(recall[w], RECALLS, side="left")
            result[threshold, w] = precision[w, at[at < recall.shape[1]]].sum() / len(RECALLS)
    return result
