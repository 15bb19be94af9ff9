"""A branch of the box head: a trunk and the predictors of its tasks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from doublehead.common.tables import imported
from doublehead.config import ModelConfig
from doublehead.model.classification import RARE
from doublehead.model.parts import TRUNKS, BranchConfig
from doublehead.model.trunks import Trunk


class Branch(nn.Module):
    """A trunk with the predictors of its tasks.

    Args:
        config: the trunk, and the weight of each task.
        model: settings of trunks and their inputs.
        classes: number of classes C without the background.
        resolution: side of the pooled RoI features.
    """

    def __init__(self, config: BranchConfig, model: ModelConfig, classes: int, resolution: int) -> None:
        super().__init__()
        self.config = config
        build = imported(TRUNKS[config.trunk].trunk)
        self.trunk: Trunk = build(model.fpn.channels, resolution, model.trunk(config.trunk), model.head_norm)
        boxes = 1 if model.roi.class_agnostic else classes + 1
        self.classifier = _predictor(self.trunk.width, classes + 1, 0.01) if config.classify else None
        if self.classifier is not None and model.roi.classification == "sigmoid":
            nn.init.constant_(self.classifier.bias, math.log(RARE / (1 - RARE)))
        self.regressor = _predictor(self.trunk.width, 4 * boxes, 0.001) if config.regress else None

    def forward(self, rois: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """RoI features (N, channels, 7, 7) to class logits (N, C + 1) and box deltas (N, 4 (C + 1)), in float32.

        Outputs that the branch does not predict are None. With class-agnostic boxes the deltas are (N, 4).
        """
        hidden = self.trunk(rois)
        logits = at_least_float32(self.classifier(hidden)) if self.classifier is not None else None
        deltas = at_least_float32(self.regressor(hidden)) if self.regressor is not None else None
        return logits, deltas


def at_least_float32(x: Tensor) -> Tensor:
    """Convert 16-bit outputs of autocast to float32, for sorting scores and decoding boxes."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _predictor(width: int, outputs: int, std: float) -> nn.Linear:
    """A linear layer initialised as published: weights N(0, std), biases 0."""
    layer = nn.Linear(width, outputs)
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
    return layer
