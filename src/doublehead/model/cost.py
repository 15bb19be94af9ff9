"""Cost of a model: parameters, and GFLOPs with all proposals in every branch or with a typical number of owners."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from doublehead.common.device import float32_by_default
from doublehead.config import ModelConfig, inference_options
from doublehead.model.box_head import RESOLUTION
from doublehead.model.detector import Detector, padded
from doublehead.model.roi_heads import RoIHeads

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
    with torch.device("meta"), float32_by_default():
        roi_heads = RoIHeads(config, classes).eval()
    options, proposals = inference_options(config), config.rpn.proposals_inference
    first = _first_stage(
        config.model_dump_json(include={"backbone", "fpn", "rpn"}), config.input.short_side, config.input.long_side
    )

    def branches(owners: int) -> int:
        flops = 0
        for head in roi_heads.each:
            for i, branch in enumerate(head):
                scores, boxes = i in head.score_branches(options), i in head.box_branches(options)
                by_all = scores or (boxes and head.stage.refines)
                seen = proposals if by_all else owners if boxes else 0
                shape = (seen, config.fpn.channels, RESOLUTION, RESOLUTION)
                rois = torch.empty(shape, dtype=torch.float32, device="meta")
                with FlopCounterMode(display=False) as counter:
                    branch(rois)
                flops += counter.get_total_flops()
        return flops

    return Cost(
        parameters=first.parameters + parameters(roi_heads),
        gflops=(first.flops + branches(min(TYPICAL_OWNERS, proposals))) / 1e9,
        gflops_all=(first.flops + branches(proposals)) / 1e9,
        size=first.size,
    )


class _FirstStage(NamedTuple):
    """Backbone, FPN and RPN."""

    parameters: int
    flops: int
    size: tuple[int, int]  # height, width of the padded input


@cache
def _first_stage(parts: str, short_side: int, long_side: int) -> _FirstStage:
    """Cost of backbone, FPN and RPN, which the variants of a size share.

    Args:
        parts: their settings, as JSON.
        short_side: short side of the input in pixels.
        long_side: long side of the input in pixels.
    """
    head = {"branches": [{"trunk": "fc", "classify": 1, "regress": 1}]}
    config = ModelConfig.model_validate(json.loads(parts) | head)
    with torch.device("meta"):
        model = Detector(config, 1).eval()
    height, width = (padded(side, model.backbone.body.multiple) for side in (short_side, long_side))
    with FlopCounterMode(display=False) as counter:
        features = model.backbone(torch.empty(1, 3, height, width, dtype=torch.float32, device="meta"))
        model.rpn.head(list(features.values()))
    found = parameters(model.backbone) + parameters(model.rpn)
    return _FirstStage(found, counter.get_total_flops(), (height, width))


def parameters(module: nn.Module) -> int:
    """Number of parameters of a module, including frozen ones."""
    return sum(p.numel() for p in module.parameters())
