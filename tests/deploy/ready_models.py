"""Untrained detectors whose scores and boxes are as far apart as a trained one's."""

from __future__ import annotations

from typing import Any

import torch

from doublehead.config import ModelConfig, merge
from doublehead.model.detector import Detector
from doublehead.model.presets import preset_values

SMALL: dict[str, Any] = {
    "input": {"short_side": 96, "long_side": 128},
    "backbone": {"norm": "group", "resnet": {"width": 16}},
    "fpn": {"channels": 16},
    "head_norm": "group",
    "fc_head": {"width": 32},
    "conv_head": {"width": 32, "bottleneck_width": 16, "non_local_width": 16},
}

OTHERS_CONVENTIONS: dict[str, Any] = {
    "inclusive_pixels": True,
    "input": {"antialias": False},
    "backbone": {"name": "resnet50", "norm": "frozen", "resnet": {"stride_in": "1x1"}},
    "rpn": {"anchors": "authors", "smallest_side": 4.0},
    "roi": {"class_agnostic": True, "aligned": True, "sampling_ratio": 0, "score_floor": 0.06},
    "conv_head": {"blocks": "mmdetection"},
    "head_norm": "batch",
}
"""All at once what published implementations do otherwise."""


def ready_model(variant: str, **changes: Any) -> Detector:
    """A small detector of four classes whose predictors' weights are larger than at the start of training."""
    torch.manual_seed(0)
    values = merge(merge(preset_values(f"{variant}-tiny"), SMALL), changes)
    model = Detector(ModelConfig.model_validate(values), 4).eval()
    with torch.no_grad():
        model.rpn.head.cls_logits.weight.mul_(20)
        model.rpn.head.bbox_pred.weight.mul_(5)
        for branch in model.roi_heads:
            for layer in (branch.classifier, branch.regressor):
                if layer is not None:
                    layer.weight.mul_(40)
    return model
