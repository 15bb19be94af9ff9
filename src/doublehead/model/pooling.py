"""Multi-level RoIAlign with a scale per branch. The level is chosen by the unscaled box (reference: the authors)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from doublehead.model.boxes import EXCLUSIVE, Edges
from doublehead.model.roi_align import roi_align

STRIDES = (4, 8, 16, 32)
"""Strides of P2..P5."""


class RoIPooler(nn.Module):
    """Pool RoIs from the pyramid levels P2..P5.

    Args:
        resolution: side of the output.
        sampling: sampling points per bin and side; 0: adaptive.
        aligned: whether box coordinates are shifted by half a pixel.
        edges: convention for where a box ends.
        strides: strides of the levels.

    Attributes:
        fixed_sizes: whether all RoIs are pooled from all levels, so that no size depends on where they lie.
    """

    def __init__(
        self,
        resolution: int = 7,
        sampling: int = 2,
        aligned: bool = False,
        edges: Edges = EXCLUSIVE,
        strides: Sequence[int] = STRIDES,
    ) -> None:
        super().__init__()
        self.resolution = resolution
        self.sampling = sampling
        self.aligned = aligned
        self.edges = edges
        self.strides = strides
        self.fixed_sizes = False

    def forward(self, levels: list[Tensor], boxes: list[Tensor], scale: float = 1.0) -> Tensor:
        """Pool the boxes of a batch of images.

        Args:
            levels: feature maps P2, P3, P4, P5, or one per stride; each (B, C, H, W).
            boxes: per image, (N, 4) xyxy in input pixels.
            scale: factor by which boxes are enlarged about their centres; they may extend beyond the image.

        Returns:
            (sum of N, C, resolution, resolution)
        """
        flat = torch.cat(boxes)
        level = pyramid_level(flat, self.strides)
        image = torch.cat([flat.new_full((b.shape[0], 1), i) for i, b in enumerate(boxes)])
        rois = torch.cat([image, self.edges.corners(enlarge(flat, scale))], dim=1)
        pooled = levels[0].new_zeros(flat.shape[0], levels[0].shape[1], self.resolution, self.resolution)
        for i, (features, stride) in enumerate(zip(levels, self.strides, strict=True)):
            if self.fixed_sizes:
                part = roi_align(features, rois, self.resolution, 1 / stride, self.sampling, self.aligned)
                pooled = torch.where((level == i)[:, None, None, None], part, pooled)
                continue
            here = torch.where(level == i)[0]
            part = roi_align(features, rois[here], self.resolution, 1 / stride, self.sampling, self.aligned)
            pooled.index_put_((here,), part.to(pooled.dtype))  # in place: no copy of all RoIs for each level
        return pooled


def pyramid_level(boxes: Tensor, strides: Sequence[int] = STRIDES) -> Tensor:
    """Index of the level for boxes (N, 4): floor(4 + log2(sqrt(area) / 224)) (FPN, equation 1), clamped to the strides.

    As in torchvision, levels are counted from the first stride to the last: if two levels have the same stride, the
    second is not used.
    """
    first, last = (int(math.log2(strides[place])) for place in (0, -1))
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=1e-6).sqrt()
    return (4 + torch.log2(side / 224) + 1e-6).floor().clamp(first, last).long() - first


def enlarge(boxes: Tensor, scale: float) -> Tensor:
    """Enlarge boxes (N, 4) xyxy by `scale` about their centres."""
    if scale == 1.0:
        return boxes
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]) / 2 * scale
    return torch.cat([centre - half, centre + half], dim=1)
