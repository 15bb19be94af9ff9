"""Matching of boxes to objects by IoU, as in torchvision's Matcher, with bounded memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

AT_ONCE = 2**24
"""IoUs in memory at a time, of 4 bytes each: 5000 objects and 160,000 anchors would otherwise take 3 GB per image."""


class BoxMatcher:
    """Match each box to at most one object.

    Args:
        foreground: minimum IoU of a match.
        background: IoU below which a box is background; between the two it is neither.
        best_of_each: whether each object also gets the boxes of highest IoU with it, even below `foreground`.
    """

    BELOW_LOW_THRESHOLD, BETWEEN_THRESHOLDS = Matcher.BELOW_LOW_THRESHOLD, Matcher.BETWEEN_THRESHOLDS

    def __init__(self, foreground: float, background: float, best_of_each: bool = False) -> None:
        self.foreground, self.background, self.best_of_each = foreground, background, best_of_each

    def __call__(self, objects: Tensor, boxes: Tensor) -> Tensor:
        """Match boxes to objects.

        Args:
            objects: (M, 4) xyxy, M at least 1.
            boxes: (N, 4) xyxy.

        Returns:
            (N,) index of the object, BELOW_LOW_THRESHOLD for background, or BETWEEN_THRESHOLDS for neither.
        """
        parts = boxes.split(max(1, AT_ONCE // len(objects)))
        ious = [box_iou(objects, parts[0])] if len(parts) == 1 else None  # one part is not computed twice

        def iou(place: int) -> Tensor:
            return ious[place] if ious else box_iou(objects, parts[place])

        best = [iou(place).max(0) for place in range(len(parts))]
        value, match = torch.cat([b.values for b in best]), torch.cat([b.indices for b in best])
        result = match.clone()
        result[(value >= self.background) & (value < self.foreground)] = self.BETWEEN_THRESHOLDS
        result[value < self.background] = self.BELOW_LOW_THRESHOLD
        if self.best_of_each and len(boxes):
            highest = torch.stack([iou(place).amax(1) for place in range(len(parts))]).amax(0)
            is_best = torch.cat([(iou(place) == highest[:, None]).any(0) for place in range(len(parts))])
            result = torch.where(is_best, match, result)
        return result


class PairMatcher(BoxMatcher):
    """A BoxMatcher that is called with a pair of objects and boxes."""

    def __call__(self, pair: tuple[Tensor, Tensor]) -> Tensor:  # type: ignore[override]
        """As `BoxMatcher`."""
        return super().__call__(*pair)
