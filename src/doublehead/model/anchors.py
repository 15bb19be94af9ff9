"""Anchors on each level of the pyramid, with the rounding and placement of three implementations.

All are xyxy with x2 - x1 = width; the aspect ratio is height / width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator

STRIDES = (4, 8, 16, 32, 64)
"""Strides of P2..P6."""

Sizes = Sequence[float | Sequence[float]]
"""The square root of an anchor's area, one or several for each level."""


class TorchvisionAnchors(AnchorGenerator):
    """torchvision's anchors: rounded to whole pixels, centred on 0.

    Strides are padded size // map size: 53 for P6 of 160 rows.

    Args:
        sizes: anchor sizes.
        ratios: aspect ratios.
        strides: strides of the levels.
    """

    def __init__(self, sizes: Sizes, ratios: Sequence[float], strides: Sequence[int] = STRIDES) -> None:
        levels = tuple(tuple(level) if isinstance(level, Sequence) else (level,) for level in sizes)
        super().__init__(levels, (tuple(ratios),) * len(levels))
        self.strides = strides


class MMDetectionAnchors(TorchvisionAnchors):
    """MMDetection's anchors: not rounded, centred on 0, at the strides of the pyramid."""

    def __init__(self, sizes: Sizes, ratios: Sequence[float], strides: Sequence[int] = STRIDES) -> None:
        super().__init__(sizes, ratios, strides)
        self.cell_anchors = [
            torch.stack([self.cell(size, stride, ratios) for size in level], 1).flatten(0, 1)  # ratio by ratio
            for level, stride in zip(self.sizes, strides, strict=True)
        ]

    def cell(self, size: float, stride: int, ratios: Sequence[float]) -> Tensor:
        """The anchors (R, 4) of one size at one position."""
        root = torch.tensor(ratios, dtype=torch.float32).sqrt()
        half = torch.stack([size / root, size * root], 1) / 2
        return torch.cat([-half, half], 1)

    def grid_anchors(self, grid_sizes: list[list[int]], strides: list[Any]) -> list[Tensor]:
        """Anchors of all positions, per level. The `strides` that torchvision computes are ignored."""
        fixed: list[Any] = [[stride, stride] for stride in self.strides]
        return super().grid_anchors(grid_sizes, fixed)


class AuthorsAnchors(MMDetectionAnchors):
    """Anchors of the authors' release: rounded at the size of one stride, then scaled, centred on the first cell."""

    def cell(self, size: float, stride: int, ratios: Sequence[float]) -> Tensor:
        """The anchors (R, 4) of one size at one position."""
        ratio = torch.tensor(ratios, dtype=torch.float64)
        width = (stride**2 / ratio).sqrt().round()
        half = torch.stack([width, (width * ratio).round()], 1) * size / stride / 2
        return torch.cat([stride / 2 - half, stride / 2 + half], 1).float()


ANCHORS: dict[str, type[TorchvisionAnchors]] = {
    "torchvision": TorchvisionAnchors,
    "mmdetection": MMDetectionAnchors,
    "authors": AuthorsAnchors,
}
