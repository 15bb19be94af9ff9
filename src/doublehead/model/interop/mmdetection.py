"""MMDetection's Double-Head R-CNN (`dh-faster-rcnn_r50_fpn`), Faster R-CNN and Cascade R-CNN, from version 2.0 on.

Theirs has the background as the last class and no box for it. Of Mask R-CNN the heads that give masks are left out.
"""

from __future__ import annotations

from typing import Any

import torch

from doublehead.config import ModelConfig
from doublehead.model.interop.format import (
    BRANCH,
    MANY,
    ONE_STAGE,
    Format,
    Table,
    Weights,
    background_first,
    background_last,
    branch_of,
    cascade_conventions,
)

COUNTER = "num_batches_tracked"
HEAD = "roi_head.bbox_head."
MASKS = ("roi_head.mask_head.",)
STAGES = tuple(f"{HEAD}{stage}." for stage in range(3))
"""How the keys of a cascade's heads begin."""


FIRST_STAGE = (
    ("backbone.", "backbone.body."),
    *((f"neck.lateral_convs.{n}.conv.", f"backbone.fpn.inner_blocks.{n}.0.") for n in range(4)),
    *((f"neck.fpn_convs.{n}.conv.", f"backbone.fpn.layer_blocks.{n}.0.") for n in range(4)),
    ("rpn_head.rpn_conv.", "rpn.head.conv.0.0."),
    ("rpn_head.rpn_cls.", "rpn.head.cls_logits."),
    ("rpn_head.rpn_reg.", "rpn.head.bbox_pred."),
)
CONVENTIONS: dict[str, Any] = {
    "backbone": {"norm": "frozen", "resnet": {"stride_in": "3x3", "norm_eps": 1e-5}},
    "rpn": {"anchors": "mmdetection"},
    "roi": {"aligned": True, "sampling_ratio": 0},
    "input": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    "inclusive_pixels": False,
}
DEFAULTS: dict[str, Any] = {
    "input": {"antialias": False},
    "rpn": {"smallest_side": 1e-6},
    "roi": {"smallest_side": 0.0},
}


def _background_first(weights: Weights) -> tuple[Weights, dict[str, Any]]:
    """The background to the front; counters that inference never reads are left out."""
    result = {k: v for k, v in weights.items() if not (k.startswith("backbone.") and k.endswith(COUNTER))}
    for head in (HEAD, *STAGES):
        result = background_first(result, f"{head}fc_cls.", f"{head}fc_reg.")
    return result, {}


def _background_last(weights: Weights, config: ModelConfig) -> Weights:
    """The background to the end."""
    result = weights
    for head in (HEAD, *STAGES):
        result = background_last(result, f"{head}fc_cls.", f"{head}fc_reg.", config.roi.class_agnostic)
    variances = [k for k in result if k.startswith("backbone.") and k.endswith("running_var")]
    return result | {k.replace("running_var", COUNTER): torch.tensor(0) for k in variances}


def _shared_fcs(head: str, branch: str) -> Table:
    """An fc-head that gives scores and boxes."""
    return (
        (f"{head}fc_cls.", f"{branch}0.classifier."),
        (f"{head}fc_reg.", f"{branch}0.regressor."),
        *((f"{head}shared_fcs.{n}.", f"{branch}0.trunk.layers.{n}.") for n in MANY),
    )


DOUBLE_HEAD = Format(
    "Double-Head R-CNN of MMDetection",
    marker=f"{HEAD}res_block.",
    table=(
        *FIRST_STAGE,
        (f"{HEAD}fc_cls.", f"{BRANCH}0.classifier."),
        (f"{HEAD}fc_reg.", f"{BRANCH}1.regressor."),
        *((f"{HEAD}fc_branch.{n}.", f"{BRANCH}0.trunk.layers.{n}.") for n in MANY),
        *(
            (f"{HEAD}res_block.{theirs}.", f"{BRANCH}1.trunk.blocks.0.{ours}.")
            for theirs, ours in (
                ("conv1.conv", "conv1"),
                ("conv1.bn", "norm1"),
                ("conv2.conv", "conv2"),
                ("conv2.bn", "norm2"),
                ("conv_identity.conv", "skip"),
                ("conv_identity.bn", "skip_norm"),
            )
        ),
        *(
            (f"{HEAD}conv_branch.{n}.{theirs}{i}.", f"{BRANCH}1.trunk.blocks.{n + 1}.{ours}{i}.")
            for n in MANY
            for i in (1, 2, 3)
            for theirs, ours in (("conv", "conv"), ("bn", "norm"))
        ),
    ),
    conventions=CONVENTIONS | ONE_STAGE,
    defaults={
        **DEFAULTS,
        "preset": "mmdet-double-head",
        "branches": [
            {"trunk": "fc", "classify": 2.0, "regress": 0.0},
            {"trunk": "conv", "classify": 0.0, "regress": 2.0},
        ],
        "conv_head": {"blocks": "mmdetection"},
    },
    laid_out=_background_first,
    laid_back=_background_last,
    masks=MASKS,
)

FASTER_RCNN = Format(
    "Faster R-CNN of MMDetection",
    marker=f"{HEAD}shared_fcs.",
    table=(*FIRST_STAGE, *_shared_fcs(HEAD, BRANCH)),
    conventions=CONVENTIONS | ONE_STAGE,
    defaults={
        **DEFAULTS,
        "preset": "mmdet-faster-rcnn",
        "branches": [{"trunk": "fc", "classify": 1.0, "regress": 1.0}],
    },
    laid_out=_background_first,
    laid_back=_background_last,
    masks=MASKS,
)

CASCADE_RCNN = Format(
    "Cascade R-CNN of MMDetection",
    marker=f"{STAGES[0]}shared_fcs.",
    table=(*FIRST_STAGE, *(row for stage, head in enumerate(STAGES) for row in _shared_fcs(head, branch_of(stage)))),
    conventions=CONVENTIONS | cascade_conventions("mmdetection"),
    defaults={
        **DEFAULTS,
        "preset": "mmdet-cascade-rcnn",
        "branches": [{"trunk": "fc", "classify": 1.0, "regress": 1.0}],
        "cascade": {"convention": "mmdetection"},
        "roi": {**DEFAULTS["roi"], "class_agnostic": True},
    },
    laid_out=_background_first,
    laid_back=_background_last,
    masks=MASKS,
)

FORMATS = (DOUBLE_HEAD, FASTER_RCNN, CASCADE_RCNN)
