"""The same detector, faster: a copy for inference alone."""

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
"""RoIs that go through a conv-head at once: their maps (13 MB each) stay where the allocator reuses memory that is
warm; those of 1000 would be fetched from the system and given back, page by page, at every layer."""


def for_inference(model: Detector, device: torch.device, precision: torch.dtype | None = None) -> Detector:
    """A copy on the device that gives the same detections up to rounding, and no longer learns.

    Norms with fixed statistics are folded into the convolutions before them, and convolutions run channels last. On
    CPUs a conv-head takes its RoIs in parts, and in float32 the 3x3 convolutions are Winograd's, whose tiles 16 bits
    would round too coarsely.

    Args:
        model: the detector; it stays as it is.
        device: where the copy computes.
        precision: what it will be autocast to; its weights are cast here, once, since autocast keeps no casts of
            weights that do not learn. None: none.
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
    """The same detector, its backbone and trunks compiled at their first use, for any number of proposals."""
    model.backbone.compile()
    for branch in model.roi_heads:
        branch.trunk.compilable.compile(dynamic=True)
    return model
