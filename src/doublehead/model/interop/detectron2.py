"""detectron2's Faster R-CNN and Cascade R-CNN with a ResNet and FPN, and its new baselines, our single-convfc.

Input is BGR in 0..255. The last class is the background, which has no box. The published weights are `.pkl` files of
numpy arrays. Their ResNets have the stride in the first convolution of a block. Models that started from torchvision's
ResNet have it in the second, which no weight tells: convert them with `--set model.backbone.resnet.stride_in=3x3`.
Of Mask R-CNN, which the published cascades are, the head that gives masks is left out.
"""

from __future__ import annotations

from typing import Any

import torch

from doublehead.config import ModelConfig, merge
from doublehead.model.interop.format import (
    BRANCH,
    ONE_STAGE,
    Format,
    Table,
    Weights,
    background_first,
    background_last,
    branch_of,
    cascade_conventions,
    exchange_colours,
)

BODY = "backbone.bottom_up."
RPN = "proposal_generator."
STEM = f"{BODY}stem.conv1.weight"
HEADS = "roi_heads."
NUMBERS = ("", "0.", "1.", "2.")
"""What stands between the name of a part of a box head and that of a layer: the number of the head, in a cascade."""
BLOCKS = range(36)
"""Enough for a stage of ResNet-152."""

NOT_LEARNED = ("pixel_mean", "pixel_std", f"{RPN}anchor_generator.")
"""Buffers of some files that the config tells."""
VARIANCE, COUNTER = "running_var", "num_batches_tracked"
MASKS = (f"{HEADS}mask_head.",)


def _laid_out(weights: Weights) -> tuple[Weights, dict[str, Any]]:
    """Colours as RGB, the background to the front; norms that learn get the counters that a file may lack."""
    result = {key: value for key, value in weights.items() if not key.startswith(NOT_LEARNED)}
    learns = any(_counts(key) and (not key.startswith(BODY) or key.endswith(COUNTER)) for key in result)
    for key in [key for key in result if key.endswith(VARIANCE)]:
        if learns:
            result.setdefault(key.replace(VARIANCE, COUNTER), torch.tensor(0))
    result = exchange_colours(result, STEM)
    for number in NUMBERS:
        result = background_first(result, *_predictors(number))
    return result, {"backbone": {"norm": "batch" if learns else "frozen"}}


def _counts(key: str) -> bool:
    return key.endswith((VARIANCE, COUNTER))


def _laid_back(weights: Weights, config: ModelConfig) -> Weights:
    """Colours as BGR, and the background to the end."""
    numbered = f"{RPN}rpn_head.conv.conv0."
    if config.rpn.depth == 1:
        weights = {key.replace(numbered, f"{RPN}rpn_head.conv."): value for key, value in weights.items()}
    result = exchange_colours(weights, STEM)
    for number in NUMBERS:
        result = background_last(result, *_predictors(number), config.roi.class_agnostic)
    return result


def _predictors(number: str) -> tuple[str, str]:
    return f"{HEADS}box_predictor.{number}cls_score.", f"{HEADS}box_predictor.{number}bbox_pred."


def _head(number: str, branch: str) -> Table:
    """An fc-head that gives scores and boxes."""
    classifier, regressor = _predictors(number)
    return (
        *((f"{HEADS}box_head.{number}fc{n + 1}.", f"{branch}0.trunk.layers.{n}.") for n in range(4)),
        (classifier, f"{branch}0.classifier."),
        (regressor, f"{branch}0.regressor."),
    )


FIRST_STAGE: Table = (
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
FC: dict[str, Any] = {"branches": [{"trunk": "fc", "classify": 1.0, "regress": 1.0}]}

FASTER_RCNN = Format(
    "Faster R-CNN of detectron2",
    marker=f"{HEADS}box_head.fc1.",
    table=(*FIRST_STAGE, *_head("", BRANCH)),
    conventions=CONVENTIONS | ONE_STAGE,
    defaults={**DEFAULTS, **FC, "preset": "detectron2-faster-rcnn"},
    laid_out=_laid_out,
    laid_back=_laid_back,
    masks=MASKS,
)

CONV_FC = Format(
    "new baseline of detectron2",
    marker=f"{HEADS}box_head.conv1.",
    table=(
        *FIRST_STAGE,
        *(
            (f"{HEADS}box_head.conv{n + 1}.{norm}", f"{BRANCH}0.trunk.convs.{n}.{place}.")
            for n in range(8)
            for norm, place in (("norm.", 1), ("", 0))
        ),
        *_head("", BRANCH),
    ),
    conventions=CONVENTIONS | ONE_STAGE,
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
    masks=MASKS,
)
"""Box parts of `mask_rcnn_R_50_FPN_100ep_LSJ` and the like: norms everywhere, two convolutions in the RPN, and a box
head of four convolutions and one layer."""

CASCADE_RCNN = Format(
    "Cascade R-CNN of detectron2",
    marker=f"{HEADS}box_head.0.fc1.",
    table=(
        *FIRST_STAGE,
        *(row for stage, number in enumerate(NUMBERS[1:]) for row in _head(number, branch_of(stage))),
    ),
    conventions=CONVENTIONS | cascade_conventions("detectron2"),
    defaults=merge(
        {**DEFAULTS, **FC, "preset": "detectron2-cascade-rcnn"},
        {"cascade": {"convention": "detectron2"}, "roi": {"class_agnostic": True}},
    ),
    laid_out=_laid_out,
    laid_back=_laid_back,
    masks=MASKS,
)

FORMATS = (FASTER_RCNN, CONV_FC, CASCADE_RCNN)
