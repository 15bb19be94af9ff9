"""The authors' release: Double-Head-Ext with non-local blocks, in a fork of maskrcnn-benchmark.

Theirs takes BGR in 0..255, and keeps its anchors, which end at their last pixel, among the weights.
"""

from __future__ import annotations

from typing import Any

import torch

from doublehead.common.errors import DoubleheadError
from doublehead.config import ModelConfig
from doublehead.model.anchors import ANCHORS
from doublehead.model.interop.format import BRANCH, MANY, Format, Weights, exchange_colours

ANCHOR = "rpn.anchor_generator.cell_anchors."
EXTRACTOR = "roi_heads.box.feature_extractor."
PREDICTOR = "roi_heads.box.predictor."
STEM = "backbone.body.stem.conv1.weight"
LAST_PIXEL = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float32)


def _laid_out(weights: Weights) -> tuple[Weights, dict[str, Any]]:
    """Colours as RGB; the anchors' sizes; of class-agnostic boxes the object's alone, without the background's."""
    result = exchange_colours({key: value for key, value in weights.items() if not key.startswith(ANCHOR)}, STEM)
    for key in _box_keys(result):
        classes = result.get(key.replace("bbox_pred", "cls_score"))
        if classes is not None and len(result[key]) == 8 < 4 * len(classes):
            result[key] = result[key][4:]
    anchors = [weights[key] + LAST_PIXEL for key in sorted(weights) if key.startswith(ANCHOR)]
    if not anchors:
        return result, {}
    sizes = [_square_side(level) for level in anchors]
    ours = ANCHORS["authors"](sizes, ModelConfig.model_fields["rpn"].default.aspect_ratios).cell_anchors
    if len(ours) != len(anchors) or not all(map(torch.equal, ours, anchors)):
        raise DoubleheadError(f"has {ANCHOR}* that are not of one size per level and the ratios 1:2, 1:1 and 2:1")
    return result, {"rpn": {"anchor_sizes": sizes}}


def _laid_back(weights: Weights, config: ModelConfig) -> Weights:
    """Colours as BGR; the anchors."""
    result = exchange_colours(weights, STEM)
    if config.roi.class_agnostic:
        for key in _box_keys(result):
            result[key] = torch.cat([torch.zeros_like(result[key]), result[key]])
    anchors = ANCHORS[config.rpn.anchors](config.rpn.anchor_sizes, config.rpn.aspect_ratios).cell_anchors
    return result | {f"{ANCHOR}{level}": anchor - LAST_PIXEL for level, anchor in enumerate(anchors)}


def _box_keys(weights: Weights) -> list[str]:
    return [key for key in weights if key.startswith(f"{PREDICTOR}bbox_pred")]


def _square_side(anchors: torch.Tensor) -> float:
    """The side of the anchor that is a square."""
    sides = anchors[:, 2:] - anchors[:, :2]
    return float(sides[(sides[:, 0] - sides[:, 1]).abs().argmin(), 0])


DOUBLE_HEAD_EXT = Format(
    "Double-Head-Ext of the authors",
    marker=f"{EXTRACTOR}nonlocal_conv.",
    table=(
        *((f"backbone.body.stem.{layer}.", f"backbone.body.{layer}.") for layer in ("conv1", "bn1")),
        *((f"backbone.body.layer{n}.", f"backbone.body.layer{n}.") for n in (1, 2, 3, 4)),
        *((f"backbone.fpn.fpn_inner{n + 1}.", f"backbone.fpn.inner_blocks.{n}.0.") for n in range(4)),
        *((f"backbone.fpn.fpn_layer{n + 1}.", f"backbone.fpn.layer_blocks.{n}.0.") for n in range(4)),
        ("rpn.head.conv.", "rpn.head.conv.0.0."),
        ("rpn.head.cls_logits.", "rpn.head.cls_logits."),
        ("rpn.head.bbox_pred.", "rpn.head.bbox_pred."),
        (f"{EXTRACTOR}fc6.", f"{BRANCH}0.trunk.layers.0."),
        (f"{EXTRACTOR}fc7.", f"{BRANCH}0.trunk.layers.1."),
        (f"{PREDICTOR}cls_score_fc.", f"{BRANCH}0.classifier."),
        (f"{PREDICTOR}bbox_pred_fc.", f"{BRANCH}0.regressor."),
        (f"{PREDICTOR}cls_score.", f"{BRANCH}1.classifier."),
        (f"{PREDICTOR}bbox_pred.", f"{BRANCH}1.regressor."),
        *(
            (f"{EXTRACTOR}nonlocal_conv.{theirs}.", f"{BRANCH}1.trunk.blocks.0.{ours}.")
            for theirs, ours in (
                ("bottom.0", "conv1"),
                ("bottom.1", "norm1"),
                ("bottom.3", "conv2"),
                ("bottom.4", "norm2"),
                ("top.0", "skip"),
                ("top.1", "skip_norm"),
            )
        ),
        *(
            (f"{EXTRACTOR}shared_nonlocal.{n}.{theirs}.", f"{BRANCH}1.trunk.blocks.{2 * n + place}.{ours}.")
            for n in MANY
            for place, theirs, ours in (
                (1, "theta", "theta"),
                (1, "phi", "phi"),
                (1, "g", "g"),
                (1, "W.0", "out"),
                (1, "W.bn", "norm"),
                (2, "ffconv.bottleneck.0", "conv1"),
                (2, "ffconv.bottleneck.1", "norm1"),
                (2, "ffconv.bottleneck.3", "conv2"),
                (2, "ffconv.bottleneck.4", "norm2"),
                (2, "ffconv.bottleneck.6", "conv3"),
                (2, "ffconv.bottleneck.7", "norm3"),
            )
        ),
    ),
    conventions={
        "backbone": {"norm": "frozen", "resnet": {"stride_in": "1x1", "norm_eps": 0.0}},
        "rpn": {"anchors": "authors"},
        "roi": {"aligned": False, "sampling_ratio": 2},
        "input": {"mean": [122.7717 / 255, 115.9465 / 255, 102.9801 / 255], "std": [1 / 255] * 3},
        "inclusive_pixels": True,
    },
    defaults={
        "preset": "authors-double-head-ext",
        "branches": [
            {"trunk": "fc", "classify": 1.4, "regress": 0.6},
            {"trunk": "conv", "classify": 0.5, "regress": 2.0},
        ],
        "rpn": {"smallest_side": 0.0},
        "roi": {"smallest_side": 0.0},
    },
    laid_out=_laid_out,
    laid_back=_laid_back,
)
"""l_fc = 0.7, l_conv = 0.8, w_fc = 2.0, w_conv = 2.5."""

FORMATS = (DOUBLE_HEAD_EXT,)
