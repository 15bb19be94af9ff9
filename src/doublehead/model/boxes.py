"""Conventions for where a box ends: at the edge of its last pixel, as in this package, or at that pixel's coordinate.

The authors' boxes end at their last pixel and are x2 - x1 + 1 wide ("inclusive"). Stored with x2 + 1 and y2 + 1, they
follow our convention: coding, levels, enlarging and overlaps are then equal. `Edges` handles the remaining differences.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Size = tuple[int, int] | tuple[Tensor, Tensor]
"""Height and width of an image's part of the input, in pixels: numbers, or in a graph of fixed sizes tensors ()."""


@dataclass(frozen=True)
class Edges:
    """Operations that differ for inclusive boxes. Boxes are (..., 4) xyxy and end at the edge of their last pixel."""

    inclusive: bool

    def clip(self, boxes: Tensor, size: Size) -> Tensor:
        """Clip boxes to an image of (height, width); inclusive ones keep at least one pixel."""
        height, width = size
        x1, y1, x2, y2 = boxes.unbind(-1)
        least = int(self.inclusive)
        return torch.stack(
            [
                x1.clamp(min=0).clamp(max=width - least),
                y1.clamp(min=0).clamp(max=height - least),
                x2.clamp(min=least).clamp(max=width),
                y2.clamp(min=least).clamp(max=height),
            ],
            -1,
        )

    def corners(self, boxes: Tensor) -> Tensor:
        """Coordinates of the boxes for RoIAlign."""
        return _end_later(boxes, -int(self.inclusive))

    def rescale(self, boxes: Tensor, ratio: Tensor) -> Tensor:
        """Rescale boxes by `ratio`, (4,) for x, y, x, y."""
        return _end_later(self.corners(boxes) * ratio, int(self.inclusive))


EXCLUSIVE = Edges(inclusive=False)


def _end_later(boxes: Tensor, pixels: int) -> Tensor:
    return torch.cat([boxes[..., :2], boxes[..., 2:] + pixels], -1)
