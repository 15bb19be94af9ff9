"""What the heads of a model say of boxes: which class is in each, whether the box lies well, and where they differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch

from doublehead.data.loader import evaluation_loader
from doublehead.data.records import Record, Split
from doublehead.evaluation.analysis.breakdown import FOREGROUND, covered
from doublehead.evaluation.analysis.heads import FUSED, ask_for_all, heads_of
from doublehead.evaluation.analysis.proposals import iou
from doublehead.evaluation.evaluate import for_classes, require_known_classes
from doublehead.inference.detections import Detections
from doublehead.inference.predictor import Predictor
from doublehead.model.detector import FirstStage


@dataclass(frozen=True, eq=False)
class Opinion:
    """What the heads say of N boxes of one image, each asked about for one class."""

    boxes: np.ndarray  # (N, 4) xyxy in pixels of the image
    labels: np.ndarray  # (N,) 1..C of the data
    scores: np.ndarray  # (N, C + 1) of the classifying head, the background first
    regressed: np.ndarray  # (N, 4) where the head that localises moves each box
    disagreement: np.ndarray  # (N,) 0..1 between the heads

    @property
    def sure(self) -> np.ndarray:
        """Score of the class asked for, (N,)."""
        return self.scores[np.arange(len(self.labels)), self.labels]

    @property
    def tightness(self) -> np.ndarray:
        """IoU of each box with where it is moved, (N,): 1 where it lies as the head would have it."""
        return paired_iou(self.boxes, self.regressed)

    @property
    def entropy(self) -> np.ndarray:
        """Entropy of the scores, (N,): 0 one class is sure, 1 all are alike."""
        return _entropy(_distribution(self.scores)) / np.log(self.scores.shape[1])


@dataclass(frozen=True, eq=False)
class Seen:
    """One image as a model sees it."""

    record: Record
    found: Detections  # of what no label explains: by the data's classes, each place once, whatever its class
    detections: Opinion  # of the same
    annotated: Opinion  # of the annotated boxes, crowds left out
    moved: Opinion  # of the same after the head that localises has moved them
    rows: np.ndarray  # (N,) places of the annotated boxes in the record


def look_at(
    predictor: Predictor, split: Split, batch_size: int, workers: int, advance: Callable[[], object]
) -> Iterator[Seen]:
    """Detect in the images of a split, and ask the heads about what was found and what is annotated.

    Args:
        predictor: the model; it is asked as its options say, with NMS across classes.
        split: its classes must be the model's.
        batch_size: images that go through the model at once.
        workers: processes that decode images.
        advance: called after each image.

    Raises:
        DoubleheadError: the split has classes unknown to the model, or the model cannot be looked into.
    """
    require_known_classes(predictor.categories, split.categories)
    asked = for_classes(predictor, split.categories).with_options(nms_across_classes=True)
    asking = _Asking(asked, split)
    for images, records in evaluation_loader(split, batch_size, workers):
        with asked.autocast(), torch.no_grad():
            stage = asked.model.first_stage(images, asked.options)
            results = asked.model.second_stage(stage, asked.options)
            for place, (record, result) in enumerate(zip(records, results, strict=True)):
                yield asking.see(stage, place, record, result)
                advance()


class _Asking:
    """A model, and its classes beside those of the data."""

    def __init__(self, predictor: Predictor, split: Split) -> None:
        self.model, self.options = predictor.model, predictor.options
        self.heads = heads_of(self.model, self.options)
        self.categories = split.categories
        known = predictor.categories.pairs
        self.to_model = np.array([0, *(known.index(pair) + 1 for pair in split.categories.pairs)])
        self.to_data = np.zeros(len(known) + 1, np.int64)
        self.to_data[self.to_model] = np.arange(len(self.to_model))

    def see(self, stage: FirstStage, place: int, record: Record, result: dict[str, torch.Tensor]) -> Seen:
        boxes, scores, labels = (result[key].cpu().numpy() for key in ("boxes", "scores", "labels"))
        found = Detections(boxes, scores, self.to_data[labels], self.categories.names, self.categories.ids)
        rows = np.flatnonzero(~record.crowd)
        limits = np.tile([record.width, record.height], 2)
        annotated = self.ask(stage, place, record.boxes[rows].clip(0, limits), record.labels[rows])
        moved = self.ask(stage, place, annotated.regressed, annotated.labels)
        found = found[~explained(found.boxes, record, annotated)]
        return Seen(record, found, self.ask(stage, place, found.boxes, found.labels), annotated, moved, rows)

    def ask(self, stage: FirstStage, place: int, boxes: np.ndarray, labels: np.ndarray) -> Opinion:
        boxes = boxes.astype(np.float32)
        if not len(boxes):
            return Opinion(boxes, labels, np.zeros((0, len(self.to_model))), boxes, np.zeros(0))
        scores, regressed = ask_for_all(self.model, stage, place, boxes, self.options)
        own = self.to_model[labels]
        tables = {name: table[:, self.to_model] for name, table in scores.items()}
        moved = {name: _of_class(table, own) for name, table in regressed.items()}
        score_branch, box_branch = self.heads.own
        opinion = Opinion(boxes, labels, tables[score_branch], moved[box_branch], np.zeros(len(boxes)))
        of_branches = ([table for name, table in of.items() if name != FUSED] for of in (tables, moved))
        between = disagreement(opinion, *of_branches)
        return Opinion(boxes, labels, opinion.scores, opinion.regressed, between)


def explained(boxes: np.ndarray, record: Record, annotated: Opinion) -> np.ndarray:
    """Which boxes (D, 4) a label explains, (D,) bool: it overlaps them before it is moved or after, or is a crowd."""
    near = [iou(boxes, others).max(1, initial=0) for others in (record.boxes, annotated.regressed)]
    on_crowd = covered(boxes, record.boxes[record.crowd]).max(1, initial=0)
    return np.max([*near, on_crowd], axis=0) >= FOREGROUND


def paired_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU (N,) of boxes (N, 4) with others (N, 4), each with its own."""
    return np.diagonal(iou(boxes, others))


def disagreement(opinion: Opinion, scores: list[np.ndarray], boxes: list[np.ndarray]) -> np.ndarray:
    """How far the heads disagree over each box, (N,) 0..1: the largest of what the model lets one compare.

    Class against box: 1 - |T + P - 1| with tightness T and score P (Kao et al. 2018, "Localization-Aware Active
    Learning for Object Detection", their J): a sure class in a box that would be moved far, or a box that stays, of no
    sure class. With two heads one gives P and the other T. Between heads that classify: Jensen-Shannon divergence of
    their scores. Between heads that localise: 1 - IoU of their boxes.
    """
    found = [1 - np.abs(opinion.tightness + opinion.sure - 1)]
    if len(scores) > 1:
        each = [_distribution(table) for table in scores]
        spread = _entropy(np.mean(each, axis=0)) - np.mean([_entropy(one) for one in each], axis=0)
        found.append(spread / np.log(len(each)))
    found += [1 - paired_iou(one, other) for one, other in combinations(boxes, 2)]
    return np.max(found, axis=0).clip(0, 1)


def _of_class(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return table[np.arange(len(labels)), labels if table.shape[1] > 1 else 0]


def _distribution(scores: np.ndarray) -> np.ndarray:
    """Scores (N, C + 1) that sum to 1, which those of classes scored by themselves do not."""
    scores = scores.astype(np.float64)
    return scores / np.maximum(scores.sum(1, keepdims=True), 1e-12)


def _entropy(distribution: np.ndarray) -> np.ndarray:
    return -(distribution * np.log(np.maximum(distribution, 1e-12))).sum(1)
