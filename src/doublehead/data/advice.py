"""What a dataset asks of a model: the input size and the anchors that suit its boxes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from doublehead.config import ModelConfig
from doublehead.data.records import Split

SMALL = 8.0
"""Pixels of a box's shorter side in the input below which hardly a detector finds it."""
MANY_SMALL = 0.1
"""Share of small boxes from which a larger input is suggested."""
REACHED = 0.5
"""IoU at which an anchor reaches a box."""
WORTH = 0.03
"""Share of all boxes that other anchors must reach besides, to be suggested."""
LARGEST = 800
"""Short side in pixels up to which a larger input is suggested."""
SIDES = (240, 320, 400, 480, 560, 640, 720, 800)
SCALES = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8)
"""Factors of the model's anchor sizes among which the best is sought."""
RATIOS = ((0.5, 1.0, 2.0), (0.33, 0.5, 1.0, 2.0, 3.0), (0.2, 0.33, 0.5, 1.0, 2.0, 3.0, 5.0))
"""Sets of aspect ratios among which the smallest that is worth it is sought."""


@dataclass(frozen=True)
class Advice:
    """How the boxes of a training split and a model go together. Shares are in 0..1, NaN without boxes."""

    model: str
    boxes: int
    short_side: int  # of the model's input, in pixels
    small: float  # share of boxes whose shorter side is under SMALL pixels in the input
    unreached: float  # share of boxes that no anchor reaches, wherever it stands
    settings: dict[str, Any]  # what would suit better, by keys of --set; empty: nothing
    reasons: list[str]  # a sentence for each of the settings

    @property
    def line(self) -> str:
        """The settings as they are pasted behind `doublehead train`."""
        return " ".join(
            f"--set {key}={json.dumps(value, separators=(',', ':'))}" for key, value in self.settings.items()
        )

    def to_json(self) -> dict[str, Any]:
        """As plain values; NaN is null."""
        return {
            "model": self.model,
            "boxes": self.boxes,
            "short_side": self.short_side,
            "small": None if np.isnan(self.small) else self.small,
            "unreached": None if np.isnan(self.unreached) else self.unreached,
            "settings": self.settings,
            "reasons": self.reasons,
        }


def advise(split: Split, config: ModelConfig, name: str) -> Advice:
    """Look at the boxes of a split as a model would see them, and say what would suit them better.

    An anchor reaches a box if their IoU is at least 0.5 when their centres are in one place: the best that any position
    can give. Suggested anchors never reach fewer boxes than the model's, and a suggested size never leaves more small.

    Args:
        split: the training split.
        config: the model.
        name: what the model is called.
    """
    sizes, images = _boxes(split)
    size, anchors = config.input, config.rpn
    short, long = size.short_side, size.long_side
    settings: dict[str, Any] = {}
    reasons: list[str] = []
    seen = sizes * _scales(images, short, long)[:, None]
    small, unreached = _share(seen.min(1) < SMALL), _unreached(seen, anchors.anchor_sizes, anchors.aspect_ratios)
    if small >= MANY_SMALL:
        side = _larger_side(sizes, images, short, long)
        if side > short:
            long = round(side * long / short)
            settings |= {"model.input.short_side": side, "model.input.long_side": long}
            seen = sizes * _scales(images, side, long)[:, None]
            less = _share(seen.min(1) < SMALL)
            reasons.append(
                f"{small:.0%} of the boxes are under {SMALL:.0f} pixels at short side {short}: take {side} ({less:.0%})"
            )
    best = _better_anchors(seen, anchors.anchor_sizes, anchors.aspect_ratios)
    if best:
        found, ratios = best
        before, after = (_unreached(seen, *pair) for pair in ((anchors.anchor_sizes, anchors.aspect_ratios), best))
        if found != tuple(anchors.anchor_sizes):
            settings["model.rpn.anchor_sizes"] = list(found)
        if ratios != tuple(anchors.aspect_ratios):
            settings["model.rpn.aspect_ratios"] = list(ratios)
        reasons.append(f"{before:.0%} of the boxes are reached by no anchor at IoU {REACHED}: with these {after:.0%}")
    return Advice(name, len(sizes), size.short_side, small, unreached, settings, reasons)


def _boxes(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Width and height of each training box, (N, 2), and of its image, (N, 2); in pixels of the image."""
    sizes, images = [np.zeros((0, 2))], [np.zeros((0, 2))]
    for record in split.records:
        boxes, _ = record.training_boxes()
        kept = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64)
        kept = kept[(kept > 0).all(1)]
        sizes.append(kept)
        images.append(np.full((len(kept), 2), (record.width, record.height), dtype=np.float64))
    return np.concatenate(sizes), np.concatenate(images)


def _scales(images: np.ndarray, short: float, long: float) -> np.ndarray:
    """By how much each image is resized, (N,)."""
    return np.minimum(short / images.min(1, initial=np.inf), long / images.max(1, initial=1.0))


def _share(found: np.ndarray) -> float:
    return float(found.mean()) if len(found) else float("nan")


def _larger_side(sizes: np.ndarray, images: np.ndarray, short: int, long: int) -> int:
    """The smallest short side that leaves few small boxes, or halves their share; the images' own is the limit."""
    limit = min(LARGEST, float(np.median(images.min(1))))
    before = _share(sizes.min(1) * _scales(images, short, long) < SMALL)
    best = short
    for side in (side for side in SIDES if short < side <= limit):
        share = _share(sizes.min(1) * _scales(images, side, side * long / short) < SMALL)
        if share <= before / 2:
            best = side
            if share < MANY_SMALL / 2:
                break
    return best


def _unreached(sizes: np.ndarray, anchor_sizes: Sequence[float], ratios: Sequence[float]) -> float:
    """The share of boxes that no anchor reaches."""
    return 1 - _share(_best_iou(sizes, anchor_sizes, ratios) >= REACHED)


def _best_iou(sizes: np.ndarray, anchor_sizes: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
    """The highest IoU of each box (N, 2) with an anchor about the same centre, (N,)."""
    root = np.sqrt(np.array(ratios, dtype=np.float64))
    side = np.array(anchor_sizes, dtype=np.float64)[:, None]
    anchors = np.stack([side / root, side * root], -1).reshape(-1, 2)
    both = np.minimum(sizes[:, None], anchors).prod(-1)
    return (both / (sizes.prod(-1)[:, None] + anchors.prod(-1) - both)).max(1) if len(sizes) else np.zeros(0)


def _better_anchors(
    sizes: np.ndarray, anchor_sizes: Sequence[float], ratios: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Sizes and ratios that reach at least WORTH more of the boxes, with as few ratios as that takes; or None."""
    if not len(sizes):
        return None
    before = _unreached(sizes, anchor_sizes, ratios)
    for choice in dict.fromkeys((tuple(ratios), *(r for r in RATIOS if len(r) > len(ratios)))):
        scored = [
            (round(_unreached(sizes, [s * f for s in anchor_sizes], choice), 3), abs(np.log(f)), f) for f in SCALES
        ]
        unreached, _, factor = min(scored)
        if before - unreached >= WORTH:
            return tuple(float(round(size * factor)) for size in anchor_sizes), choice
    return None
