"""Detection in large images with bounded memory: overlapping tiles whose detections are merged.

Tiles are cut from the original pixels. Each is resized like an image of its size: shorter side to `short_side`, unless
the longer side would exceed `long_side`. The model also runs on the whole image, for objects that fit into no tile.

Objects cut by the inner edge of a tile must not be detected twice or in parts:

1. A box that ends at an inner edge of its tile is dropped if another tile contains it clear of its inner edges, since
   that tile sees more of the object. Boxes of the whole image that fit into a tile are dropped too.
2. The remaining boxes that end at no inner edge are merged per class, by hard NMS or weighted box fusion.
3. Boxes that still end at an inner edge belong to objects larger than the overlap. A box is dropped if a merged box
   covers the same part of its tile. Parts that agree where their tiles overlap become one box around all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from doublehead.config import InferenceOptions
from doublehead.inference.fusion import Found, ious, weighted_box_fusion
from doublehead.model.postprocess import suppress

Detect = Callable[[list[Tensor], InferenceOptions], list[Found]]
"""Detects objects in images (3, H, W) of any sizes."""

Region = tuple[int, int, int, int]
"""x1, y1, x2, y2 in pixels of the image."""

NEAR = 0.01
"""Distance to a tile's edge, as a share of its side, within which a box counts as ending at that edge."""

SAME = 0.5
"""IoU inside a tile above which two boxes of a class count as parts of one object."""


def detect_in_tiles(detect: Detect, images: list[Tensor], options: InferenceOptions) -> list[Found]:
    """Detect objects in images of any sizes, cutting those with a side longer than `options.tiles` into tiles.

    Args:
        detect: the model. It is called with `options.tile_batch` tiles at a time; images that fit into one tile are
            passed unchanged, in one call.
        images: RGB, uint8 (3, H, W).
        options: tiles, overlap, merging, and the options of the model.
    """
    side = options.tiles
    if side is None:
        return detect(images, options)
    small = [place for place, image in enumerate(images) if max(image.shape[-2:]) <= side]
    found = dict(zip(small, detect([images[place] for place in small], options) if small else [], strict=True))
    return [
        found[place] if place in found else _detect_in_large(detect, image, options)
        for place, image in enumerate(images)
    ]


def tiles_of(height: int, width: int, side: int, overlap: float) -> list[Region]:
    """Cover an image with the fewest evenly spaced tiles of equal size that have the overlap, row by row.

    Args:
        height: height of the image.
        width: width of the image.
        side: side of a tile, limited to the image's side.
        overlap: minimum share of a tile that its neighbour also covers.
    """
    return [
        (x, y, min(x + side, width), min(y + side, height))
        for y in _starts(height, side, overlap)
        for x in _starts(width, side, overlap)
    ]


def _starts(length: int, side: int, overlap: float) -> list[int]:
    if length <= side:
        return [0]
    step = max(1, math.floor(side * (1 - overlap)))
    more = math.ceil((length - side) / step)
    return [round(place * (length - side) / more) for place in range(more + 1)]


def _detect_in_large(detect: Detect, image: Tensor, options: InferenceOptions) -> Found:
    assert options.tiles is not None
    height, width = image.shape[-2:]
    tiles = tiles_of(height, width, options.tiles, options.overlap)
    found = []
    for start in range(0, len(tiles), options.tile_batch):
        batch = tiles[start : start + options.tile_batch]
        found += detect([image[:, y1:y2, x1:x2].contiguous() for x1, y1, x2, y2 in batch], options)
    found += detect([image], options)
    return merge(found, [*tiles, (0, 0, width, height)], options)


@dataclass(frozen=True)
class _Seen:
    """Boxes in pixels of the image, with the regions they were found in."""

    boxes: np.ndarray  # (N, 4)
    scores: np.ndarray  # (N,)
    labels: np.ndarray  # (N,)
    regions: np.ndarray  # (N, 4)

    @classmethod
    def of(cls, found: Sequence[Found], regions: Sequence[Region]) -> _Seen:
        """Collect the detections of all regions, best first."""
        boxes, scores, labels = (
            np.concatenate([one[key].cpu().numpy() for one in found]) for key in ("boxes", "scores", "labels")
        )
        where = np.repeat(np.array(regions, np.float32), [len(one["scores"]) for one in found], axis=0)
        boxes = boxes + where[:, [0, 1, 0, 1]]
        return cls(boxes, scores, labels, where)[np.argsort(-scores, kind="stable")]

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, chosen: np.ndarray) -> _Seen:
        return _Seen(self.boxes[chosen], self.scores[chosen], self.labels[chosen], self.regions[chosen])

    def found(self) -> Found:
        """The detections without their regions."""
        values = {"boxes": self.boxes, "scores": self.scores, "labels": self.labels}
        return {key: torch.from_numpy(value) for key, value in values.items()}


def merge(found: Sequence[Found], regions: Sequence[Region], options: InferenceOptions) -> Found:
    """Merge the detections of an image's tiles.

    Args:
        found: detections of each region, in pixels of that region.
        regions: the tiles, followed by the whole image.
        options: merging, and the maximum number of detections.

    Returns:
        Detections in pixels of the image, on the CPU.
    """
    *tiles, (_, _, *size) = regions
    seen, margin = _Seen.of(found, regions), NEAR * max(tiles[0][2:])
    cut = ~_clear(seen.boxes, seen.regions, size, margin)
    doubtful = np.flatnonzero(cut | (seen.regions == regions[-1]).all(1))
    held = np.zeros(len(seen), bool)
    for tile in tiles:
        held[doubtful] |= _clear(seen.boxes[doubtful], np.array([tile]), size, margin)
    whole = _merged(seen[~cut & ~held].found(), options)
    joined = _joined(_unexplained(seen[cut & ~held], whole))
    boxes, scores, labels = (torch.cat([whole[key], joined[key]]) for key in ("boxes", "scores", "labels"))
    order = scores.argsort(descending=True, stable=True)[: options.detections]
    return {"boxes": boxes[order], "scores": scores[order], "labels": labels[order]}


def _clear(boxes: np.ndarray, regions: np.ndarray, size: Sequence[int], margin: float) -> np.ndarray:
    """Whether boxes (N, 4) lie in regions (N, 4) or (1, 4) and end at no inner edge of theirs: (N,) bool."""
    begins = np.where(regions[:, :2] > 0, regions[:, :2] + margin, -np.inf)
    ends = np.where(regions[:, 2:] < np.array(size), regions[:, 2:] - margin, np.inf)
    return np.all((boxes[:, :2] > begins) & (boxes[:, 2:] < ends), axis=1)


def _merged(found: Found, options: InferenceOptions) -> Found:
    """Merge boxes of one object from several tiles."""
    if options.tile_merge == "wbf":
        return weighted_box_fusion([found], options.wbf_iou, all_see=False)
    places = suppress(found["boxes"], found["scores"], found["labels"], options)
    return {name: value[places] for name, value in found.items()}


def _unexplained(parts: _Seen, whole: Found) -> _Seen:
    """Parts that no whole box of their class covers."""
    boxes, labels = whole["boxes"].numpy(), whole["labels"].numpy()
    kept = [
        not (ious(box, _clipped(boxes[labels == label], region)) > SAME).any()
        for box, label, region in zip(parts.boxes, parts.labels, parts.regions, strict=True)
    ]
    return parts[np.array(kept, bool)]


def _joined(parts: _Seen) -> Found:
    """Join the parts of each object into one box with the highest of their scores."""
    left, groups = np.arange(len(parts)), list[np.ndarray]()
    while len(left):
        group, left = [int(left[0])], left[1:]
        for part in group:  # which grows on the way
            others = parts[left]
            here, there = parts.regions[part], others.regions
            mine = _clipped(parts.boxes[part], there)
            same = ious(mine, _clipped(others.boxes, here)) > SAME
            same &= (others.labels == parts.labels[part]) & (there != here).any(1)
            group += left[same].tolist()
            left = left[~same]
        groups.append(np.array(group))
    best = parts[np.array([group[0] for group in groups], int)].found()
    around = [np.r_[parts.boxes[group, :2].min(0), parts.boxes[group, 2:].max(0)] for group in groups]
    return best | {"boxes": torch.from_numpy(np.array(around, np.float32).reshape(-1, 4))}


def _clipped(boxes: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Boxes (N, 4) inside one region (4,), or a box (4,) inside each of several (N, 4); empty where it is outside."""
    low, high = region[..., [0, 1, 0, 1]], region[..., [2, 3, 2, 3]]
    return np.clip(boxes, low, high)
