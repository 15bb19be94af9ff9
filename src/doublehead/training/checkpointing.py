"""Gradient checkpointing of the backbone: memory for time."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from doublehead.common.errors import DoubleheadError
from doublehead.model.detector import Detector


def checkpoint_backbone(model: Detector) -> None:
    """Keep only the outputs of the backbone's stages for the gradient, and compute the rest again (Chen et al. 2016).

    Random layers, such as drop path, draw the same numbers again.

    Raises:
        DoubleheadError: the backbone has batch norm that learns, whose statistics would count each batch twice.
    """
    body = model.backbone.body
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in body.modules()):
        raise DoubleheadError(
            "train.checkpoint_backbone: batch norm would count each batch twice; set model.backbone.norm to frozen or "
            "group, or leave train.checkpoint_backbone out"
        )
    for stage in body.stages():
        for layer in stage:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
