"""Optimisation of a detector for inference."""

from __future__ import annotations

import copy

import torch
from torch import nn

from doublehead.model.box_head import RESOLUTION
from doublehead.model.detector import Detector
from doublehead.model.folding import fold_norms
from doublehead.model.winograd import use_winograd

AUTOCAST = (nn.Conv2d, nn.Linear)
"""Layers that autocast computes in 16 bits."""

AT_ONCE_ON_CPU = 64
"""RoIs per call of a conv-head on CPUs. The allocator reuses the memory of their maps (13 MB each); for 1000 RoIs it
would request pages from the system and return them at every layer."""


def for_inference(model: Detector, device: torch.device, precision: torch.dtype | None = None) -> Detector:
    """Copy a detector to the device, optimised for inference. Detections are the same up to rounding.

    Norms with fixed statistics are folded into the preceding convolutions, and convolutions run channels last. On CPUs,
    a conv-head processes RoIs in parts, and 3x3 convolutions use Winograd's algorithm in float32; 16 bits are too
    coarse for it.

    Args:
        model: the detector; not modified.
        device: device of the copy.
        precision: type for autocast; weights are cast once here, since autocast does not cache casts of frozen weights.
            None: float32.
    """
    result = copy.deepcopy(model).eval().requires_grad_(False)
    side = 2 * result.backbone.body.multiple
    channels = result.config.fpn.channels
    fold_norms(result.backbone, result.mean.new_zeros(1, 3, side, side))
    for branch in result.roi_heads:
        fold_norms(branch.trunk, result.mean.new_zeros(1, channels, RESOLUTION, RESOLUTION))
        if device.type == "cpu":
            branch.trunk.in_parts(AT_ONCE_ON_CPU)
    if precision is None:
        if device.type == "cpu":
            use_winograd(result)
    else:
        for layer in result.modules():
            if isinstance(layer, AUTOCAST):
                layer.to(precision)
    return result.to(device).to(memory_format=torch.channels_last)


def compiled(model: Detector) -> Detector:
    """Compile backbone and trunks of a detector on first use, for any number of proposals.

    On CUDA the backbone is also recorded as a CUDA graph, once for each size of images.
    """
    model.backbone.compile(mode="reduce-overhead" if model.mean.is_cuda else "default")
    for branch in model.roi_heads:
        branch.trunk.compilable.compile(dynamic=True)
    return model
