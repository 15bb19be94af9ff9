"""RoIAlign (Mask R-CNN, section 3), with the fastest implementation for each device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag
from torchvision.ops import roi_align as torchvisions


def roi_align(features: Tensor, rois: Tensor, resolution: int, scale: float, sampling: int, aligned: bool) -> Tensor:
    """Pool RoI features from one level of the pyramid.

    Args:
        features: (B, C, H, W), preferably channels last.
        rois: (N, 5) index of the image in the batch, and xyxy in input pixels.
        resolution: side of the output.
        scale: pixels of the level per input pixel.
        sampling: points per bin and side; 0: adaptive.
        aligned: whether coordinates are shifted by half a pixel.

    Returns:
        (N, C, resolution, resolution)
    """
    if features.device.type == "cpu" and sampling and not torch.compiler.is_exporting():
        return _as_sums_of_pixels(features, rois, resolution, scale, sampling, aligned)
    return torchvisions(features, rois, resolution, scale, sampling, aligned)


def _as_sums_of_pixels(
    features: Tensor, rois: Tensor, resolution: int, scale: float, sampling: int, aligned: bool
) -> Tensor:
    """Replacement for torchvision's single-threaded CPU kernel: each bin is a weighted sum of a few pixels' channels.

    Along each axis, a bin has `sampling` points, each between two pixels. The weights of a bin's pixels are products
    over both axes.
    """
    batch, channels, height, width = features.shape
    start = rois[:, 1:3] * scale - 0.5 * aligned
    length = rois[:, 3:5] * scale - 0.5 * aligned - start
    if not aligned:
        length = length.clamp(min=1)
    x, across = _pixels(start[:, 0], length[:, 0], resolution, sampling, width)
    y, down = _pixels(start[:, 1], length[:, 1], resolution, sampling, height)
    first = rois[:, 0].long() * (height * width)
    index = (first[:, None, None] + y * width)[:, :, None, :, None] + x[:, None, :, None, :]
    weight = down[:, :, None, :, None] * across[:, None, :, None, :]
    pixels = features.permute(0, 2, 3, 1).reshape(batch * height * width, channels)
    bags, weights = (t.flatten(3).flatten(0, 2) for t in (index, weight))
    sums = embedding_bag(bags, pixels, per_sample_weights=weights.to(pixels.dtype), mode="sum")
    return sums.view(len(rois), resolution, resolution, channels).permute(0, 3, 1, 2)


def _pixels(start: Tensor, length: Tensor, bins: int, sampling: int, size: int) -> tuple[Tensor, Tensor]:
    """Along one axis, the pixels of each bin and their weights, both (N, bins, 2 sampling).

    Points more than one pixel outside have no weight; points within one pixel of the edge take the edge's pixel.
    """
    bin_length = (length / bins)[:, None, None]
    point = (torch.arange(sampling, device=start.device, dtype=start.dtype) + 0.5) * bin_length / sampling
    at = start[:, None, None] + torch.arange(bins, device=start.device)[:, None] * bin_length + point
    inside = (at >= -1) & (at <= size)
    at = at.clamp(0, size - 1)
    low = at.floor()
    high = at - low
    pixel = torch.stack([low, (low + 1).clamp(max=size - 1)], -1).long()
    weight = torch.stack([1 - high, high], -1) * (inside.to(at.dtype) / sampling)[..., None]
    return pixel.flatten(2), weight.flatten(2)
