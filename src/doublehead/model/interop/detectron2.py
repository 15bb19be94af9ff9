"""detectron2's Faster R-CNN with a ResNet and FPN, our single-fc, and its new baselines, our single-convfc.

Input is BGR in 0..255. The last class is the background, which has no box. The published weights are `.pkl` files of
numpy arrays. Their ResNets have the stride in the first convolution of a block. Models that started from torchvision's
ResNet have it in the second, which no weight tells: convert them with `--set model.backbone.resnet.stride_in=3x3`.
"""

from __future__ import annotations

from typing import Any

import torch

from doublehead.config import ModelConfig, merge
from doublehead.model.interop.format import BRANCH, Format, Weights, background_first, background_last, exchange_colours

BODY = "backbone.bottom_up."
RPN = "proposal_generator."
STEM = f"{BODY}stem.conv1.weight"
PREDICTOR = "roi_heads.box_predictor."
BLOCKS = range(36)
"""Enough for a stage of ResNet-152."""

NOT_LEARNED = ("pixel_mean", "pixel_std", f"{RPN}anchor_generator.")
"""Buffers of some files that the config tells."""
VARIANCE, COUNTER = "running_var", "num_batches_tracked"


def _laid_out(weights: Weights) -> tuple[Weights, dict[str, Any]]:
    """Colours as RGB, the background to the front; norms that learn get the counters that a file may lack."""
    result = {key: value for key, value in weights.items() if not key.startswith(NOT_LEARNED)}
    learns = any(_counts(key) and (not key.startswith(BODY) or key.endswith(COUNTER)) for key in result)
    for key in [key for key in result if key.endswith(VARIANCE)]:
        if learns:
            result.setdefault(key.replace(VARIANCE, COUNTER), torch.tensor(0))
    result = background_first(exchange_colours(result, STEM), f"{PREDICTOR}cls_score.", f"{PREDICTOR}bbox_pred.")
    return result, {"backbone": {"norm": "batch" if learns else "frozen"}}


def _counts(key: str) -> bool:
    return key.endswith((VARIANCE, COUNTER))


def _laid_back(weights: Weights, config: ModelConfig) -> Weights:
    """Colours as BGR, and the background to the end."""
    agnostic = config.roi.class_agnostic
    numbered = f"{RPN}rpn_head.conv.conv0."
    if config.rpn.depth == 1:
        weights = {key.replace(numbered, f"{RPN}rpn_head.conv."): value for key, value in weights.items()}
    return background_last(
        exchange_colours(weights, STEM), f"{PREDICTOR}cls_score.", f"{PREDICTOR}bbox_pred.", agnostic
    )


FIRST_STAGE = (
    (f"{BODY}stem.conv1.norm.", "backbone.body.bn1."),
    (f"{BODY}stem.conv1.", "backbone.body.conv1."),
    *(
        (f"{BODY}res{stage + 1}.{block}.{theirs}.", f"backbone.body.layer{stage}.{block}.{ours}.")
        for stage in (1, 2, 3, 4)
        for block in BLOCKS
        for theirs, ours in (
            *((f"conv{n}.norm", f"bn{n}") for n in (1, 2, 3)),
            *((f"conv{n}", f"conv{n}") for n in (1, 2, 3)),
            ("shortcut.norm", "downsample.1"),
            ("shortcut", "downsample.0"),
        )
    ),
    *(
        (f"backbone.fpn_{theirs}{n + 2}.{norm}", f"backbone.fpn.{ours}_blocks.{n}.{place}.")
        for theirs, ours in (("lateral", "inner"), ("output", "layer"))
        for n in range(4)
        for norm, place in (("norm.", 1), ("", 0))
    ),
    *((f"{RPN}rpn_head.conv.conv{n}.", f"rpn.head.conv.{n}.0.") for n in range(4)),
    (f"{RPN}rpn_head.conv.", "rpn.head.conv.0.0."),  # where it is the only one
    (f"{RPN}rpn_head.objectness_logits.", "rpn.head.cls_logits."),
    (f"{RPN}rpn_head.anchor_deltas.", "rpn.head.bbox_pred."),
    (f"{PREDICTOR}cls_score.", f"{BRANCH}0.classifier."),
    (f"{PREDICTOR}bbox_pred.", f"{BRANCH}0.regressor."),
)
CONVENTIONS: dict[str, Any] = {
    "backbone": {"resnet": {"norm_eps": 1e-5}},
    "rpn": {"anchors": "mmdetection"},
    "roi": {"aligned": True, "sampling_ratio": 0},
    "input": {"mean": [123.675 / 255, 116.28 / 255, 103.53 / 255], "std": [1 / 255] * 3},
    "inclusive_pixels": False,
}
DEFAULTS: dict[str, Any] = {
    "backbone": {"norm": "frozen", "resnet": {"stride_in": "1x1"}},
    "rpn": {"smallest_side": 0.0},
    "roi": {"smallest_side": 0.0},
}
FC = f"{BRANCH}0.trunk.layers."

FASTER_RCNN = Format(
    "Faster R-CNN of detectron2",
    marker=f"{RPN}rpn_head.",
    table=(
        *FIRST_STAGE,
        *((f"roi_heads.box_head.fc{n + 1}.", f"{FC}{n}.") for n in range(4)),
    ),
    conventions=CONVENTIONS,
    defaults={
        **DEFAULTS,
        "preset": "detectron2-faster-rcnn",
        "branches": [{"trunk": "fc", "classify": 1.0, "regress": 1.0}],
    },
    laid_out=_laid_out,
    laid_back=_laid_back,
    masks=("roi_heads.mask_head.",),
)

CONV_FC = Format(
    "new baseline of detectron2",
    marker="roi_heads.box_head.conv1.",
    table=(
        *FIRST_STAGE,
        *(
            (f"roi_heads.box_head.conv{n + 1}.{norm}", f"{BRANCH}0.trunk.convs.{n}.{place}.")
            for n in range(8)
            for norm, place in (("norm.", 1), ("", 0))
        ),
        *((f"roi_heads.box_head.fc{n + 1}.", f"{FC}{n}.") for n in range(4)),
    ),
    conventions=CONVENTIONS,
    defaults=merge(
        DEFAULTS,
        {
            "preset": "detectron2-new-baseline",
            "branches": [{"trunk": "convfc", "classify": 1.0, "regress": 1.0}],
            "backbone": {"norm": "batch"},
            "fpn": {"norm": "batch"},
            "rpn": {"depth": 2},
        },
    ),
    laid_out=_laid_out,
    laid_back=_laid_back,
    masks=("roi_heads.mask_head.",),
)
"""Box parts of `mask_rcnn_R_50_FPN_100ep_LSJ` and the like: norms everywhere, two convolutions in the RPN, and a box
head of four convolutions and one layer."""

FORMATS = (FASTER_RCNN, CONV_FC)
