"""Cost of a model: parameters, and GFLOPs with all proposals in every branch or with a typical number of owners."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from doublehead.config import ModelConfig
from doublehead.model.box_head import RESOLUTION
from doublehead.model.detector import Detector, padded

TYPICAL_OWNERS = 100


@dataclass(frozen=True)
class Cost:
    """Parameters, and GFLOPs per image at the model's input size. A multiply-add counts as two operations."""

    parameters: int
    gflops: float  # a branch that only regresses sees TYPICAL_OWNERS proposals, in early stages of a cascade all
    gflops_all: float  # every branch sees every proposal
    size: tuple[int, int]  # height, width


def cost(config: ModelConfig, classes: int = 80) -> Cost:
    """Count a model's parameters and GFLOPs from shapes, without computing anything."""
    with torch.device("meta"):
        model = Detector(config, classes).eval()
    multiple = model.backbone.body.multiple
    height, width = (padded(side, multiple) for side in (config.input.short_side, config.input.long_side))
    base = _first_stage(config.model_dump_json(include={"backbone", "fpn", "rpn"}), height, width)
    proposals = config.rpn.proposals_inference

    def branches(owners: int) -> int:
        flops = 0
        for head in model.roi_heads.each:
            for i, branch in enumerate(head):
                scores, boxes = i in head.score_branches(model.options), i in head.box_branches(model.options)
                by_all = scores or (boxes and head.stage.refines)
                seen = proposals if by_all else owners if boxes else 0
                shape = (seen, config.fpn.channels, RESOLUTION, RESOLUTION)
                rois = torch.empty(shape, dtype=torch.float32, device="meta")
                with FlopCounterMode(display=False) as counter:
                    branch(rois)
                flops += counter.get_total_flops()
        return flops

    return Cost(
        parameters=parameters(model),
        gflops=(base + branches(min(TYPICAL_OWNERS, proposals))) / 1e9,
        gflops_all=(base + branches(proposals)) / 1e9,
        size=(height, width),
    )


@cache
def _first_stage(parts: str, height: int, width: int) -> int:
    """FLOPs of backbone, FPN and RPN, which the variants of a size share.

    Args:
        parts: their settings, as JSON.
        height: height of the padded input.
        width: width of the padded input.
    """
    head = {"branches": [{"trunk": "fc", "classify": 1, "regress": 1}]}
    config = ModelConfig.model_validate(json.loads(parts) | head)
    with torch.device("meta"):
        model = Detector(config, 1).eval()
    with FlopCounterMode(display=False) as counter:
        features = model.backbone(torch.empty(1, 3, height, width, dtype=torch.float32, device="meta"))
        model.rpn.head(list(features.values()))
    return counter.get_total_flops()


def parameters(module: nn.Module) -> int:
    """Number of parameters of a module, including frozen ones."""
    return sum(p.numel() for p in module.parameters())
