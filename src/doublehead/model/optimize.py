"""The same detector, faster: a copy for inference alone."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from doublehead.model.detector import Detector
from doublehead.model.trunks import ConvHead

FOLLOWED_BY = {
    "conv1": ("bn1", "norm1"),
    "conv2": ("bn2", "norm2"),
    "conv3": ("bn3", "norm3"),
    "skip": ("skip_norm",),
    "out": ("norm",),
    "0": ("1",),  # the ResNet's downsampling
}
"""Layers of ResNet and conv-head, and the norm that each goes through."""


AT_ONCE_ON_CPU = 64
"""RoIs that go through a conv-head at once: their maps (13 MB each) stay where the allocator reuses memory that is
warm; those of 1000 would be fetched from the system and given back, page by page, at every layer."""


def for_inference(model: Detector, device: torch.device) -> Detector:
    """A copy on the device that gives the same detections up to rounding, and no longer learns.

    Norms with fixed statistics are folded into the convolutions before them, convolutions run channels last, and on
    CPUs a conv-head takes its RoIs in parts.
    """
    result = copy.deepcopy(model).eval().requires_grad_(False)
    for module in result.modules():
        layers = dict(module.named_children())
        for name, norms in FOLLOWED_BY.items():
            for norm in norms:
                if isinstance(layers.get(name), nn.Conv2d) and hasattr(layers.get(norm), "running_var"):
                    _fold(layers[name], layers[norm])
                    setattr(module, norm, nn.Identity())
    for branch in result.roi_heads:
        if isinstance(branch.trunk, ConvHead) and device.type == "cpu":
            branch.trunk.at_once = AT_ONCE_ON_CPU
    return result.to(device).to(memory_format=torch.channels_last)


def compiled(model: Detector) -> Detector:
    """The same detector, its backbone and trunks compiled at their first use, for any number of proposals."""
    model.backbone.compile()
    for branch in model.roi_heads:
        trunk = branch.trunk
        (trunk.blocks if isinstance(trunk, ConvHead) else trunk).compile(dynamic=True)
    return model


def _fold(conv: nn.Module, norm: nn.Module) -> None:
    """Make the convolution do the norm's work."""
    assert isinstance(conv, nn.Conv2d)
    statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)  # type: ignore[arg-type]
    conv.weight, conv.bias = weight.requires_grad_(False), bias.requires_grad_(False)
