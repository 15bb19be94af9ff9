"""Weighted box fusion: merge detections of one image from several opinions, such as models or views.

Source: Solovyev, Wang and Gabruseva, "Weighted boxes fusion: Ensembling boxes from different object detection models",
Image and Vision Computing 2021, section 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from doublehead.config import InferenceOptions
from doublehead.model.postprocess import thresholds

Found = dict[str, Tensor]
"""Detections of one image: `boxes` (D, 4) float32 xyxy, `scores` (D,) falling, `labels` (D,) int64."""


@dataclass
class _Cluster:
    """Boxes of one class that are treated as one object."""

    score: float  # sum over the boxes, each times its opinion's weight
    corners: np.ndarray  # (4,) sum of the boxes, each times its weighted score
    boxes: int = 1

    def add(self, score: float, box: np.ndarray) -> None:
        self.score += score
        self.corners = self.corners + score * box
        self.boxes += 1

    @property
    def fused(self) -> np.ndarray:
        """(4,) the mean box, weighted by score."""
        return self.corners / self.score


def weighted_box_fusion(
    opinions: Sequence[Found], iou: float = 0.55, weights: Sequence[float] | None = None, all_see: bool = True
) -> Found:
    """Fuse detections of one image: boxes become means weighted by score, scores become means.

    Boxes are processed in order of falling score. Each joins the cluster of its class with the highest IoU, if that is
    above `iou`; otherwise it starts a new cluster.

    Args:
        opinions: detections of the same image.
        iou: IoU with a cluster's fused box above which a box joins it.
        weights: factors of the opinions' scores; None: equal.
        all_see: whether each opinion covers the whole image, so that an object that some opinions miss gets a lower
            score: the mean is multiplied by min(N, T) / W for N boxes of T opinions whose weights sum to W, and limited
            to 1.

    Returns:
        Fused detections on the CPU, best first.
    """
    weights = [1.0] * len(opinions) if weights is None else weights
    boxes = np.concatenate([_array(opinion["boxes"]) for opinion in opinions]).reshape(-1, 4)
    scores = np.concatenate([_array(o["scores"]) * w for o, w in zip(opinions, weights, strict=True)])
    labels = torch.cat([opinion["labels"].cpu() for opinion in opinions]).numpy()
    found: list[tuple[float, int, np.ndarray]] = []
    for label in np.unique(labels):
        own = labels == label
        for cluster in _clusters(boxes[own], scores[own], iou):
            score = cluster.score / cluster.boxes
            if all_see:
                score = min(1.0, score * min(cluster.boxes, len(opinions)) / sum(weights))
            found.append((score, int(label), cluster.fused))
    found.sort(key=lambda one: -one[0])
    return {
        "boxes": torch.tensor(np.array([box for _, _, box in found]).reshape(-1, 4), dtype=torch.float32),
        "scores": torch.tensor([score for score, _, _ in found], dtype=torch.float32),
        "labels": torch.tensor([label for _, label, _ in found], dtype=torch.int64),
    }


def fuse_opinions(
    opinions: Sequence[Found], options: InferenceOptions, weights: Sequence[float] | None = None
) -> Found:
    """Fuse opinions about whole images with the options' IoU, minimum score and maximum number of detections."""
    found = weighted_box_fusion(opinions, options.wbf_iou, weights)
    kept = torch.where(found["scores"] > thresholds(options, found["labels"]))[0][: options.detections]
    return {name: value[kept] for name, value in found.items()}


def _clusters(boxes: np.ndarray, scores: np.ndarray, iou: float) -> Iterator[_Cluster]:
    """Clusters of the boxes of one class."""
    clusters: list[_Cluster] = []
    fused = np.empty_like(boxes)  # of each cluster
    for place in np.argsort(-scores, kind="stable"):
        box, score = boxes[place], float(scores[place])
        overlaps = ious(box, fused[: len(clusters)])
        best = int(overlaps.argmax()) if len(overlaps) else 0
        if len(overlaps) and overlaps[best] > iou:
            clusters[best].add(score, box)
        else:
            best = len(clusters)
            clusters.append(_Cluster(score, score * box))
        fused[best] = clusters[best].fused
    yield from clusters


def ious(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of a box (4,) with others (N, 4), or of each of N boxes (N, 4) with its own; 0 where both are empty."""
    sides = np.minimum(box[..., 2:], others[..., 2:]) - np.maximum(box[..., :2], others[..., :2])
    common = sides.clip(0).prod(-1)
    area, other = ((one[..., 2:] - one[..., :2]).prod(-1) for one in (box, others))
    return common / np.maximum(area + other - common, np.finfo(np.float32).tiny)


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().double().numpy()
