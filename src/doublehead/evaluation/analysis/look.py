"""Analysis of one model: detections with every combination of heads, and the heads' predictions for windows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from doublehead.common.categories import Categories
from doublehead.data.records import Record
from doublehead.evaluation.analysis import spatial
from doublehead.evaluation.analysis.breakdown import Breakdown, Judged, break_down, judge
from doublehead.evaluation.analysis.curves import Curve, Survivors, foreground_mean, mean, pcc, survive
from doublehead.evaluation.analysis.heads import Answers, Heads, ask, chosen, heads_of, pooled
from doublehead.evaluation.analysis.proposals import Object, iou
from doublehead.evaluation.coco import evaluate_detections
from doublehead.inference.detections import Detections
from doublehead.inference.predictor import Predictor
from doublehead.model.branches import Branch
from doublehead.model.detector import FirstStage


@dataclass(frozen=True)
class Combination:
    """COCO metrics of a model with the scores of one head and the boxes of one head."""

    score_branch: str
    box_branch: str
    ap: float
    ap75: float
    breakdown: Breakdown
    images: list[Judged]


@dataclass(frozen=True)
class ModelAnalysis:
    """Results of one model. Values by object are in the same order for all models."""

    name: str
    weights: str
    preset: str
    scores: list[Curve]
    boxes: list[Curve]
    survivors: list[Survivors]
    correlations: list[spatial.Correlation]
    combinations: list[Combination]  # the model's own first
    image_ids: list[int]  # of each object
    sizes: list[str]  # of each object
    stages: int  # box heads one after another; curves and correlations are of the last


@dataclass
class _Seen:
    """Detections of all images with one combination of heads."""

    images: list[Judged] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)


class Look:
    """Collects the results of one model, batch by batch.

    Args:
        predictor: the model, limited to the classes of the data.
        name: display name.
        weights: source of the weights.
        categories: classes of the data, all known to the model.
        windows: number of windows around each object.
    """

    def __init__(self, predictor: Predictor, name: str, weights: str, categories: Categories, windows: int) -> None:
        self.predictor, self.model = predictor, predictor.model
        self.name, self.weights = name, weights
        self.categories, self.windows = categories, windows
        known = predictor.categories.pairs
        self.to_model = np.array([0, *(known.index(pair) + 1 for pair in categories.pairs)])
        self.to_data = np.zeros(len(known) + 1, np.int64)  # 0: a class that the data does not have, never detected
        self.to_data[self.to_model[1:]] = np.arange(1, len(categories) + 1)
        self.options = predictor.options
        self.heads: Heads = heads_of(self.model, self.options)
        self.seen = {pair: _Seen() for pair in self.heads.combinations}
        self.scores = {branch: Curve(name, branch) for branch in self.heads.scores}
        self.boxes = {branch: Curve(name, branch) for branch in self.heads.boxes}
        self.survivors = [
            Survivors(name, score, box) for score in self.heads.scores for box in (None, *self.heads.boxes)
        ]
        self.correlations = self._correlations()
        self.image_ids: list[int] = []
        self.sizes: list[str] = []

    def detect(self, stage: FirstStage, records: list[Record]) -> None:
        """Detect objects with every combination of heads."""
        for (score, box), seen in self.seen.items():
            options = chosen(self.options, score, box)
            for record, result in zip(records, self.model.second_stage(stage, options), strict=True):
                boxes, scores, labels = (result[key].cpu().numpy() for key in ("boxes", "scores", "labels"))
                found = Detections(boxes, scores, self.to_data[labels], self.categories.names, self.categories.ids)
                seen.images.append(judge(record, found.boxes, found.scores, found.labels))
                seen.results += found.to_coco(record.image_id)

    def ask(self, stage: FirstStage, place: int, objects: list[Object]) -> None:
        """Run every head on the windows around the objects of one image of the batch."""
        for each in objects:
            windows, ious = each.windows(self.windows)
            labels = np.full(len(windows), self.to_model[each.label])
            self._note(each, windows, ious, ask(self.model, stage, place, windows, labels, self.options))
        if objects:
            self._correlate(stage, place, np.stack([each.box for each in objects]).astype(np.float32))

    def result(self) -> ModelAnalysis:
        """Return the collected results."""
        combinations = []
        records = [image.record for image in self.seen[self.heads.own].images]
        for (score, box), seen in self.seen.items():
            metrics = evaluate_detections(records, self.categories, seen.results, self.options.detections)
            combinations.append(
                Combination(score, box, metrics["AP"], metrics["AP75"], break_down(seen.images), seen.images)
            )
        return ModelAnalysis(
            self.name,
            self.weights,
            self.model.config.preset,
            list(self.scores.values()),
            list(self.boxes.values()),
            self.survivors,
            [correlation for correlation in self.correlations.values() if correlation.objects],
            combinations,
            self.image_ids,
            self.sizes,
            len(self.model.config.stages),
        )

    def _note(self, each: Object, windows: np.ndarray, ious: np.ndarray, answers: Answers) -> None:
        """Add one object."""
        self.image_ids.append(each.image_id)
        self.sizes.append(each.size)
        overlaps = {branch: iou(boxes, each.box[None])[:, 0] for branch, boxes in answers.boxes.items()}
        for branch, scores in answers.scores.items():
            self.scores[branch].add(each.size, ious, scores, pcc(scores, ious))
        for branch, regressed in overlaps.items():
            self.boxes[branch].add(each.size, ious, regressed, foreground_mean(ious, regressed))
        roi = self.options
        for row in self.survivors:
            boxes = windows if row.box_branch is None else answers.boxes[row.box_branch]
            kept = survive(boxes, answers.scores[row.score_branch], roi.score_threshold, roi.nms_iou)
            left = (ious if row.box_branch is None else overlaps[row.box_branch])[kept]
            row.best.append(float(left[0]) if len(left) else 0.0)
            row.kept.append(len(left))
            row.mean.append(mean(left))

    def _correlations(self) -> dict[tuple[str, str], spatial.Correlation]:
        """Initial correlations over positions, by branch and kind; only those of weights have values."""
        result = {("", "input"): spatial.Correlation.empty(self.name, None, "RoI features")}
        for branch, module in self._branches():
            weights = module.trunk.weights_by_position()
            of = "output" if weights is None else "output, split by position"
            result[branch, "output"] = spatial.Correlation.empty(self.name, branch, of)
            if weights is not None:
                result[branch, "weights"] = spatial.Correlation.empty(self.name, branch, "weights")
                result[branch, "weights"].add(weights)
        return result

    @torch.no_grad()
    def _correlate(self, stage: FirstStage, place: int, boxes: np.ndarray) -> None:
        """Add the objects of one image, each pooled by its own box (N, 4)."""
        truth = torch.from_numpy(boxes).to(stage.levels[0].device)
        self.correlations["", "input"].add(spatial.roi_features(pooled(self.model, stage, place, truth, 1.0)))
        for branch, module in self._branches():
            rois = pooled(self.model, stage, place, truth, module.config.scale)
            split = module.trunk.by_position(rois)
            if split is not None:
                self.correlations[branch, "output"].add(split)

    def _branches(self) -> list[tuple[str, Branch]]:
        return list(zip(self.model.config.branch_names, self.model.roi_heads.last, strict=True))
