"""Anchors of one size per level of the pyramid, as three implementations round and place them.

All are xyxy with x2 - x1 = width; the aspect ratio is height / width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator

STRIDES = (4, 8, 16, 32, 64)
"""Of P2..P6."""


class TorchvisionAnchors(AnchorGenerator):
    """Rounded to whole pixels about 0. Strides are padded size // map size: 53 for P6 of 160 rows.

    Args:
        sizes: the square root of an anchor's area, one for each level.
        ratios: aspect ratios.
    """

    def __init__(self, sizes: Sequence[float], ratios: Sequence[float]) -> None:
        super().__init__(tuple((size,) for size in sizes), (tuple(ratios),) * len(sizes))


class MMDetectionAnchors(TorchvisionAnchors):
    """Not rounded, about 0, at the strides of the pyramid."""

    def __init__(self, sizes: Sequence[float], ratios: Sequence[float]) -> None:
        super().__init__(sizes, ratios)
        self.cell_anchors = [self.cell(size, stride, ratios) for size, stride in zip(sizes, STRIDES, strict=True)]

    def cell(self, size: float, stride: int, ratios: Sequence[float]) -> Tensor:
        """The anchors (R, 4) of one position."""
        root = torch.tensor(ratios, dtype=torch.float32).sqrt()
        half = torch.stack([size / root, size * root], 1) / 2
        return torch.cat([-half, half], 1)

    def grid_anchors(self, grid_sizes: list[list[int]], strides: list[Any]) -> list[Tensor]:
        """Per level, the anchors of all its positions; `strides`, which torchvision reckons, are left aside."""
        fixed: list[Any] = [[stride, stride] for stride in STRIDES]
        return super().grid_anchors(grid_sizes, fixed)


class AuthorsAnchors(MMDetectionAnchors):
    """Rounded at the size of one stride, then scaled, about the middle of the first cell (the authors' release)."""

    def cell(self, size: float, stride: int, ratios: Sequence[float]) -> Tensor:
        """The anchors (R, 4) of one position."""
        ratio = torch.tensor(ratios, dtype=torch.float64)
        width = (stride**2 / ratio).sqrt().round()
        half = torch.stack([width, (width * ratio).round()], 1) * size / stride / 2
        return torch.cat([stride / 2 - half, stride / 2 + half], 1).float()


ANCHORS: dict[str, type[TorchvisionAnchors]] = {
    "torchvision": TorchvisionAnchors,
    "mmdetection": MMDetectionAnchors,
    "authors": AuthorsAnchors,
}
