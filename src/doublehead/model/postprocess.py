"""Post-processing of class scores into detections, computing boxes only where they can matter.

A candidate is a pair of a proposal and a class with a score above the threshold; the proposal is its owner. Greedy NMS
visits candidates in order of falling score, so its results among the first k do not depend on the rest. Once the
maximum number of detections is reached, the boxes of the remaining owners are not computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou, nms

from doublehead.config import InferenceOptions
from doublehead.model.boxes import EXCLUSIVE, Edges, Size

FIRST_ROUND = 128
"""Owners per image whose boxes are computed in the first round. Each further round doubles the number."""

CANDIDATES = 3000
"""Maximum candidates passed to NMS with fixed sizes, best scores first; TensorRT sorts at most 3840."""

SMALLEST_SIDE = 1e-2
"""Default minimum side of a detection, in pixels. Smaller ones are dropped."""


@dataclass
class Scored:
    """Scored proposals of a batch. All lists have an entry per image."""

    proposals: list[Tensor]  # (N, 4) xyxy in input pixels
    indices: list[Tensor]  # (N,) indices into the proposals passed to the head
    scores: list[Tensor]  # (N, C + 1) with the background first
    staged: bool  # whether to ask for boxes best owners first, in rounds, or for all owners at once

    def boxes(self, chosen: list[Tensor]) -> list[Tensor]:
        """Compute the boxes of proposals by index (M,): (M, C + 1, 4), or (M, 1, 4) if class-agnostic."""
        raise NotImplementedError


def fuse(scores: list[Tensor], rule: str) -> Tensor:
    """Fuse the scores (N, C + 1) of several classifying branches (paper, section 4.3)."""
    if len(scores) == 1:
        return scores[0]
    stack = torch.stack(scores)
    if rule == "average":
        return stack.mean(0)
    if rule == "maximum":
        return stack.amax(0)
    return 1 - (1 - stack).prod(0)


def average(deltas: list[Tensor]) -> Tensor:
    """Mean of the box deltas (N, 4 (C + 1)) of several regressing branches."""
    return deltas[0] if len(deltas) == 1 else torch.stack(deltas).mean(0)


def thresholds(options: InferenceOptions, labels: Tensor) -> Tensor:
    """Minimum scores (N,) of the labels (N,)."""
    least = torch.full(labels.shape, options.score_threshold, device=labels.device)
    for label, threshold in options.class_thresholds:
        least = torch.where(labels == label, threshold, least)
    return least


def _least(options: InferenceOptions, scores: Tensor) -> float | Tensor:
    """Minimum score of a candidate: one for all classes, or one per class (C,)."""
    if not options.class_thresholds:
        return options.score_threshold
    return thresholds(options, torch.arange(1, scores.shape[1], device=scores.device))


def is_candidate(scores: Tensor, threshold: float | Tensor) -> Tensor:
    """Mask of candidates among the classes 1..C of each proposal: scores (N, C + 1) to (N, C) bool.

    Args:
        scores: background first.
        threshold: one for all classes, or one per class (C,).
    """
    return scores[:, 1:] > threshold


def owns_candidate(scores: Tensor, threshold: float) -> Tensor:
    """Mask of proposals that own a candidate: scores (N, C + 1) to (N,) bool."""
    return is_candidate(scores, threshold).any(1)


@dataclass
class _Image:
    """Candidates of one image, best score first, with the boxes computed so far."""

    size: tuple[int, int]
    scores: Tensor  # (K,)
    labels: Tensor  # (K,)
    rank: Tensor  # (K,) the owner's place in `owners`
    owners: Tensor  # (M,) proposals that own a candidate, by their best score
    first: Tensor  # (M,) place of each owner's best candidate
    boxes: list[Tensor]  # (m, C + 1, 4) of the owners done so far, round by round
    done: int = 0
    result: dict[str, Tensor] | None = None


def detect(
    scored: Scored,
    sizes: list[tuple[int, int]],
    options: InferenceOptions,
    edges: Edges = EXCLUSIVE,
    smallest_side: float = SMALLEST_SIDE,
) -> list[dict[str, Tensor]]:
    """Select the best detections of each image.

    Args:
        scored: scored proposals. Boxes are requested once per round for all images.
        sizes: per image, (height, width) of its part of the input.
        options: threshold, classes, NMS and the maximum number of detections.
        edges: convention for clipping boxes.
        smallest_side: minimum side of a detection, in pixels.

    Returns:
        Per image `boxes` (D, 4), `scores` (D,) in falling order, `labels` (D,) in 1..C, and `proposals` (D,), the
        indices of their owners among the proposals passed to the head.
    """
    images = [_candidates(s, size, options) for s, size in zip(scored.scores, sizes, strict=True)]
    count = FIRST_ROUND
    while any(image.result is None for image in images):
        chosen = [
            image.owners[image.done : count if scored.staged else None] if image.result is None else image.owners[:0]
            for image in images
        ]
        for image, indices, found in zip(images, chosen, scored.boxes(chosen), strict=True):
            if image.result is None:
                image.boxes.append(found)
                image.done += len(indices)
                image.result = _finish(image, options, edges, smallest_side)
        count *= 2
    results = [image.result for image in images if image.result is not None]
    for result, indices in zip(results, scored.indices, strict=True):
        result["proposals"] = indices[result["proposals"]]
    return results


def _candidates(scores: Tensor, size: tuple[int, int], options: InferenceOptions) -> _Image:
    candidates = is_candidate(scores, _least(options, scores))
    if options.classes is not None:
        others = [label - 1 for label in range(1, scores.shape[1]) if label not in options.classes]
        candidates[:, others] = False
    proposal, label = torch.where(candidates)
    score, order = scores[proposal, label + 1].sort(descending=True, stable=True)
    proposal, label = proposal[order], label[order] + 1
    place = torch.arange(len(score), device=scores.device)
    first = place.new_full((len(scores),), len(score)).scatter_reduce(0, proposal, place, "amin")
    first, owners = first.sort()
    owners = owners[: int((first < len(score)).sum())]
    rank = torch.empty_like(first).scatter(0, owners, torch.arange(len(owners), device=scores.device))
    return _Image(size, score, label, rank[proposal], owners, first[: len(owners)], [])


def _finish(image: _Image, options: InferenceOptions, edges: Edges, smallest_side: float) -> dict[str, Tensor] | None:
    """Detections of an image, or None if boxes not yet computed could still change them."""
    everything = image.done == len(image.owners)
    known = len(image.scores) if everything else int(image.first[image.done])
    rank, labels = image.rank[:known], image.labels[:known]
    found = torch.cat(image.boxes)
    box_class = labels if found.shape[1] > 1 else torch.zeros_like(labels)
    next_score = 0.0 if everything else float(image.scores[known])
    candidates, keep, scores = _suppressed(
        found[rank, box_class], image.scores[:known], labels, image.size, options, edges, smallest_side, next_score
    )
    if len(keep) < options.detections and not everything:
        return None
    keep, scores = keep[: options.detections], scores[: options.detections]
    return {
        "boxes": candidates[keep],
        "scores": scores,
        "labels": labels[keep],
        "proposals": image.owners[rank[keep]],
    }


def detect_in_one_round(
    scored: Scored,
    size: tuple[int, int],
    options: InferenceOptions,
    most: int | None,
    edges: Edges = EXCLUSIVE,
    smallest_side: float = SMALLEST_SIDE,
) -> dict[str, Tensor]:
    """Select the best detections of one image without data-dependent control flow, which cannot be exported.

    Args:
        scored: scored proposals of one image. Boxes are requested once.
        size: (height, width) of the image's part of the input.
        options: threshold, NMS and the maximum number of detections.
        most: maximum owners whose boxes are computed, best scores first; None: all.
        edges: convention for clipping boxes.
        smallest_side: minimum side of a detection, in pixels.

    Returns:
        As `detect`. Results are equal unless there are more owners than `most`.
    """
    (scores,) = scored.scores
    proposals = scores.shape[0]
    best, owners = scores[:, 1:].amax(1).topk(proposals if most is None else torch.sym_min(most, proposals))
    owners = owners[best > options.score_threshold]
    own = scores[owners]
    rank, label = torch.where(is_candidate(own, options.score_threshold))
    score, order = own[rank, label + 1].topk(rank.shape[0])
    rank, labels = rank[order], label[order] + 1
    (found,) = scored.boxes([owners])
    box_class = labels if found.shape[1] > 1 else torch.zeros_like(labels)
    candidates, keep, kept = _suppressed(found[rank, box_class], score, labels, size, options, edges, smallest_side)
    keep, kept = keep[: options.detections], kept[: options.detections]
    return {
        "boxes": candidates[keep],
        "scores": kept,
        "labels": labels[keep],
        "proposals": scored.indices[0][owners[rank[keep]]],
    }


def detect_in_fixed_sizes(
    scored: Scored,
    real: list[Tensor],
    sizes: Sequence[Size],
    options: InferenceOptions,
    most: int | None,
    edges: Edges = EXCLUSIVE,
    smallest_side: float = SMALLEST_SIDE,
) -> list[dict[str, Tensor]]:
    """Select the best detections of each image by operations of fixed sizes, as some runtimes require.

    Args:
        scored: scored proposals, equally many per image. Boxes are requested once.
        real: per image, (N,) bool; False for padding.
        sizes: per image, (height, width) of its part of the input.
        options: threshold, NMS and the number of detections.
        most: owners per image whose boxes are computed, best scores first; None: all proposals.
        edges: convention for clipping boxes.
        smallest_side: minimum side of a detection, in pixels.

    Returns:
        Per image `boxes` (D, 4), `scores` (D,) in falling order and `labels` (D,), where D is the maximum number of
        detections; empty places have score 0. Results equal those of `detect` unless there are more owners than `most`
        or its detections lie beyond the best `CANDIDATES` candidates.
    """
    owned = [torch.where(r[:, None], s[:, 1:], 0.0) for r, s in zip(real, scored.scores, strict=True)]
    owners = [own.amax(1).topk(min(most or len(own), len(own))).indices for own in owned]
    found = scored.boxes(owners)
    return [
        _best_in_fixed_sizes(own[chosen], boxes, size, options, edges, smallest_side)
        for own, chosen, boxes, size in zip(owned, owners, found, sizes, strict=True)
    ]


def _best_in_fixed_sizes(
    scores: Tensor, boxes: Tensor, size: Size, options: InferenceOptions, edges: Edges, smallest_side: float
) -> dict[str, Tensor]:
    """Detections of one image, from its owners' scores (M, C) and boxes (M, C + 1, 4) or (M, 1, 4)."""
    owners, classes = scores.shape
    best, place = scores.flatten().topk(min(CANDIDATES, scores.numel()))
    rank = torch.arange(owners, device=place.device)[:, None].expand(owners, classes).flatten()[place]
    label = torch.arange(1, classes + 1, device=place.device).repeat(owners)[place]
    candidates = edges.clip(boxes[rank, label if boxes.shape[1] > 1 else torch.zeros_like(label)], size)
    big = ((candidates[:, 2:] - candidates[:, :2]) >= smallest_side).all(1)
    best = torch.where(big & (best > options.score_threshold), best, 0.0)
    apart, most = (torch.zeros_like(label), 1) if options.nms_across_classes else (label, classes + 1)
    kept = kept_by_class_nms(candidates, best, apart, options.nms_iou, most)
    final, place = torch.where(kept, best, 0.0).topk(min(options.detections, len(best)))
    there = final > 0
    return {
        "boxes": torch.where(there[:, None], candidates[place], 0.0),
        "scores": final,
        "labels": torch.where(there, label[place], 0),
    }


def _suppressed(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    size: tuple[int, int],
    options: InferenceOptions,
    edges: Edges,
    smallest_side: float,
    next_score: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates clipped to the image, indices kept by NMS, and their scores; input scores (K,) fall."""
    candidates = edges.clip(boxes, size)
    big = torch.where(((candidates[:, 2:] - candidates[:, :2]) >= smallest_side).all(1))[0]
    if options.nms == "hard":
        keep = big[suppress(candidates[big], scores[big], labels[big], options)]
        return candidates, keep, scores[keep]
    keep, lowered = soft_nms(candidates[big], scores[big], labels[big], options, next_score)
    return candidates, big[keep], lowered


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, options: InferenceOptions) -> Tensor:
    """Indices kept by hard NMS with these options; see `class_nms`."""
    apart = torch.zeros_like(labels) if options.nms_across_classes else labels
    return class_nms(boxes, scores, apart, options.nms_iou)


def soft_nms(
    boxes: Tensor, scores: Tensor, labels: Tensor, options: InferenceOptions, next_score: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Soft-NMS (Bodla et al., ICCV 2017): each selected detection lowers the scores of those that overlap it.

    A score is multiplied by 1 - IoU if the IoU is above `nms_iou` (linear), or by exp(-IoU^2 / nms_sigma) (gaussian).
    Detections whose scores fall to the class's threshold or below are dropped. A selection only depends on earlier
    ones, with higher scores, so candidates not yet known do not affect those with higher scores.

    Args:
        boxes: (K, 4) xyxy.
        scores: (K,) in falling order.
        labels: (K,); only boxes of the same class interact, unless `nms_across_classes` is set.
        options: kind of NMS, and the maximum number of detections.
        next_score: highest score of a candidate not yet known.

    Returns:
        Indices of the detections, best first, and their scores.
    """
    left, least, wide = scores.clone(), thresholds(options, labels).to(scores.dtype), boxes.double()
    chosen: list[Tensor] = []
    lowered: list[Tensor] = []
    while len(chosen) < min(options.detections, len(scores)):
        left = torch.where(left > least, left, -1.0)
        place = left.argmax()
        if float(left[place]) < max(next_score, 0.0):
            break
        chosen.append(place)
        lowered.append(left[place])
        overlaps = box_iou(wide[place][None], wide)[0]
        if options.nms == "linear":
            factor = torch.where(overlaps > options.nms_iou, 1 - overlaps, 1.0)
        else:
            factor = torch.exp(-(overlaps**2) / options.nms_sigma)
        meets = torch.ones_like(labels, dtype=torch.bool) if options.nms_across_classes else labels == labels[place]
        left = torch.where(meets, left * factor.to(left.dtype), left)
        left[place] = -1.0
    if not chosen:
        return labels.new_empty(0, dtype=torch.int64), scores[:0]
    return torch.stack(chosen), torch.stack(lowered)


@torch.library.custom_op("doublehead::class_nms", mutates_args=())
def class_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> Tensor:
    """Indices kept by NMS within each class, best first; boxes (K, 4), scores (K,) in falling order, labels (K,).

    Classes are moved apart by an offset and processed in one call. In float64 the offset changes no IoU; in float32 the
    result would depend on the largest coordinate. It is a custom operator because the NMS of other runtimes handles
    classes itself.
    """
    if len(boxes) == 0:
        return labels.new_empty(0, dtype=torch.int64)
    moved = boxes.double() + (labels.double() * (boxes.max().double() + 1))[:, None]
    return nms(moved, scores.double(), iou)


@class_nms.register_fake
def _(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> Tensor:
    """Shape function for the exporter: an unknown number of indices."""
    return labels.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


@torch.library.custom_op("doublehead::kept_by_class_nms", mutates_args=())
def kept_by_class_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, classes: int) -> Tensor:
    """Mask (K,) of boxes with a score above 0 that NMS keeps within each class; unlike indices, its size is static.

    Args:
        boxes: (K, 4).
        scores: (K,) in any order.
        labels: (K,) in 0..classes - 1.
        iou: threshold above which the box with the lower score is dropped.
        classes: number of classes.
    """
    kept = torch.zeros_like(labels, dtype=torch.bool)
    kept[class_nms(boxes, scores, labels, iou)] = True
    return kept & (scores > 0)


@kept_by_class_nms.register_fake
def _(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, classes: int) -> Tensor:
    """Shape function for the exporter."""
    return torch.empty_like(labels, dtype=torch.bool)
